"""Normalised deduplication: rows equal after rules that the user picks per column are asked once.

Rules work on the distinct values of a column, so they cost per value and not per row, and decide only which rows are
equal: the prompt holds the values as they are in the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vllm_relational.dedup.rules import normalizer
from vllm_relational.records import NULL_CODE, EncodedTable, RelationalError

ALL_COLUMNS = "*"
DEFAULT_RULES = ("unicode", "case", "punctuation", "whitespace")
# Names that stand for a set of rules.
RULE_SETS = {"default": DEFAULT_RULES, "exact": ()}


def column_rules(names: Sequence[str], chosen: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The rules of each used column: its own, else those of '*', else none; nothing chosen means ``DEFAULT_RULES``.

    Raises ``RelationalError`` for a column that the prompt does not use.
    """
    unused = [name for name in chosen if name not in names and name != ALL_COLUMNS]
    if unused:
        raise RelationalError(
            f"normalize names the column {unused[0]!r}, which the prompt does not use: only what the prompt reads "
            f"counts ({', '.join(names)})"
        )
    fallback = chosen.get(ALL_COLUMNS, () if chosen else DEFAULT_RULES)
    return {name: _spelled_out(chosen.get(name, fallback)) for name in names}


def _spelled_out(rules: Sequence[str]) -> tuple[str, ...]:
    return tuple(rule for name in rules for rule in RULE_SETS.get(name.strip(), (name,)))


def normal_codes(table: EncodedTable, rules: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Codes of normal forms: int32 ``[num_columns, num_rows]``, nulls as before; equal form, equal code.

    rules: by column, see ``rules.normalizer``; columns without rules keep their codes. Only texts have forms:
    numbers, dates, bytes, lists and nulls are as they are.
    """
    codes: np.ndarray = table.codes.copy()
    for column, name in enumerate(table.names):
        if rules.get(name) and table.is_text[column]:
            form_of = _form_codes(table.values[column], normalizer(rules[name]))
            asked = codes[column] != NULL_CODE
            codes[column, asked] = form_of[codes[column, asked]]
    return codes


def _form_codes(values: Sequence[str], normal: Callable[[str], str]) -> np.ndarray:
    """For each distinct value the number of its form, by first appearance; int32 ``[num_values]``."""
    numbers: dict[tuple[bool, str], int] = {}
    forms = (_form(value, normal) for value in values)
    return np.fromiter((numbers.setdefault(form, len(numbers)) for form in forms), np.int32, len(values))


def _form(value: str, normal: Callable[[str], str]) -> tuple[bool, str]:
    """Whether it is a text, and its form: the text "1" and the number 1 stay apart."""
    return (True, normal(json.loads(value))) if value.startswith('"') else (False, value)

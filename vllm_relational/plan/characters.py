"""The measure without a tokenizer: characters of the cells, joined without names or separators.

Two ways to count. ``objective.hit_tokens`` on ``CharacterTable.batch`` counts whole cells, which is what planners work
on. ``hit_characters`` counts the joined texts, in which a prefix may end inside a cell, or cells that differ may
agree: this is the prefix hit rate of published comparisons, and may exceed ``objective.repeated_share``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vllm_relational.plan.tree import value_overlaps
from vllm_relational.records import NULL_CODE, EncodedTable, Plan, PlanInput, TokenSegments, ValueOverlaps


@dataclass(frozen=True)
class CharacterTable:
    """A table in characters.

    batch: the input of a planner; ``cell_tokens`` are characters.
    texts: per column the cell texts by the codes of ``batch``.
    """

    batch: PlanInput
    texts: tuple[tuple[str, ...], ...]


def character_table(table: EncodedTable) -> CharacterTable:
    """Texts as they stand in the cells (other values as JSON), a null as the empty text, equal texts under one code."""
    columns = [_column(codes, values) for codes, values in zip(table.codes, table.values, strict=True)]
    codes = np.array([codes for codes, _ in columns], dtype=np.int32).reshape(table.codes.shape)
    texts = tuple(texts for _, texts in columns)
    lengths = tuple(np.array([len(text) for text in column], dtype=np.int64) for column in texts)
    return CharacterTable(PlanInput(codes, lengths, overlaps=character_overlaps(texts)), texts)


def character_overlaps(texts: Iterable[tuple[str, ...]]) -> tuple[ValueOverlaps, ...]:
    """``PlanInput.overlaps`` of columns given as texts, in characters."""
    return value_overlaps([_segments(column) for column in texts])


def _segments(texts: tuple[str, ...]) -> TokenSegments:
    """One token a character: its code point."""
    tokens = np.concatenate([np.empty(0, np.uint32), *map(_code_points, texts)]).astype(np.int32)
    return TokenSegments(tokens, np.cumsum([0, *map(len, texts)], dtype=np.int64))


def _column(codes: np.ndarray, values: Iterable[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    numbers: dict[str, int] = {}
    recode = [numbers.setdefault(_cell_text(value), len(numbers)) for value in values]
    if (codes == NULL_CODE).any():
        recode.append(numbers.setdefault("", len(numbers)))  # NULL_CODE is -1: the last entry
    return np.asarray(recode, dtype=np.int32)[codes], tuple(numbers)


def _cell_text(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value


def hit_characters(table: CharacterTable, plan: Plan) -> int:
    """Characters of the joined rows that lie in a prefix of an earlier row; cache without limit.

    They do not depend on the row order: sorted, each row shares its longest prefix with the one before.
    """
    joined = sorted(joined_rows(table, plan))
    return sum(_common_prefix(a, b) for a, b in pairwise(map(_code_points, joined)))


def joined_rows(table: CharacterTable, plan: Plan) -> list[str]:
    """The text of each row in planned order: its cells end to end."""
    cells = table.batch.codes[plan.fields, plan.rows[:, None]].tolist()
    return [
        "".join([table.texts[column][code] for column, code in zip(fields, codes, strict=True)])
        for fields, codes in zip(plan.fields.tolist(), cells, strict=True)
    ]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length

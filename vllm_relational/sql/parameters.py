"""Parameters of a statement: ``?``, ``$1`` and ``$name``, and their values.

A plan sends parts of a statement to DuckDB one by one, so ``?`` gets a number first, and each part gets the values that
it names. What the planner must know itself, the prompt and the labels of a call and the number of a LIMIT, is written
into the tree.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import duckdb
from duckdb import token_type
from sqlglot import exp

from vllm_relational.records import RelationalError
from vllm_relational.sql.functions import LITERALS
from vllm_relational.sql.parse import calls, is_retrieval

Parameters = Sequence[Any] | Mapping[str, Any] | None


_UP_TO_A_DOLLAR = re.compile(r"[^\s$]*\$")


@dataclass(frozen=True)
class Marker:
    """``?``, ``$1`` or ``$name`` in a text: where it stands, and what it is called; '' for ``?``."""

    start: int
    end: int
    name: str


def markers(text: str) -> list[Marker]:
    """The parameters of a text, in order."""
    tokens = _tokens(text)
    found = []
    for (start, kind), (after, _) in zip(tokens, [*tokens[1:], (len(text), None)], strict=True):
        if kind != token_type.operator or text[start] not in "?$":
            continue
        end = start + 1
        while end < len(text) and (text[end].isalnum() or text[end] == "_"):
            end += 1
        if text[start] == "?" or (end > start + 1 and after == start + 1):
            found.append(Marker(start, end, text[start + 1 : end]))
    return found


def _tokens(text: str) -> list[tuple[int, Any]]:
    """DuckDB's words of a text; it counts bytes."""
    tokens: list[tuple[int, Any]] = duckdb.tokenize(text)
    if text.isascii():
        return tokens
    starts = list(accumulate((len(character.encode()) for character in text), initial=0))
    return [(bisect_left(starts, place), kind) for place, kind in tokens]


def numbered(text: str) -> str:
    """``?`` -> ``$1``, so that parts of a statement mean the same parameter as the whole."""
    highest, pieces, position = 0, [], 0
    for marker in markers(text):
        number = int(marker.name) if marker.name.isdigit() else 0 if marker.name else highest + 1
        highest = max(highest, number)
        if text[marker.start] == "?":
            pieces += [text[position : marker.start], f"${number}"]
            position = marker.end
    return set_apart("".join([*pieces, text[position:]]))


def set_apart(text: str) -> str:
    """With a space behind ``$1`` in ``$1,$2``: sqlglot takes ``$1,$`` for the start of a dollar quote."""
    pieces, position = [], 0
    for marker in markers(text):
        if text[marker.start] == "$" and _UP_TO_A_DOLLAR.match(text, marker.end):
            pieces += [text[position : marker.end], " "]
            position = marker.end
    return "".join([*pieces, text[position:]])


def values_of(text: str, given: Parameters) -> dict[str, Any]:
    """The values by the names that a numbered text has for them; ``RelationalError`` for one too few or too many."""
    wanted = list(dict.fromkeys(marker.name for marker in markers(text)))
    if given is None:
        given = {}
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise RelationalError(f"params is {given!r}: give a list for ? and $1, or a dict for $name")
    is_named = isinstance(given, Mapping)
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given, 1)
    values = {str(name): value for name, value in pairs}
    folded = {name.casefold(): value for name, value in values.items()}
    missing = [f"${name}" for name in wanted if name.casefold() not in folded]
    if missing:
        example = "{" + ", ".join(f"'{name[1:]}': ..." for name in missing) + "}"
        how = f"params={example}" if is_named and not missing[0][1:].isdigit() else "params=[...], in order"
        raise RelationalError(f"no value for the parameter {', '.join(missing)}: give it with {how}")
    known = {name.casefold() for name in wanted}
    excess = [name for name in values if name.casefold() not in known]
    if excess:
        raise RelationalError(f"params has {len(excess)} more than the statement names: {', '.join(excess)}")
    return {name: folded[name.casefold()] for name in wanted}


def spell_literals(tree: exp.Expr, values: Mapping[str, Any]) -> None:
    """Write the values of parameters where the planner reads them, in place."""
    for place in [place for place in _read_places(tree) if isinstance(place, exp.Placeholder)]:
        literal = _literal(values.get(place.name))
        if literal is not None:
            place.replace(literal)


def _read_places(tree: exp.Expr) -> Iterator[exp.Expr]:
    for call in calls(tree):
        if is_retrieval(call):
            yield from call.expressions[1:]
        else:
            yield from call.expressions[: len(LITERALS[call.name.upper()]) + 1]
    for limit in tree.find_all(exp.Limit, exp.Offset):
        yield limit.expression


def _literal(value: Any) -> exp.Expr | None:
    """A text, whole number, truth value or list of these; None for another value."""
    if isinstance(value, bool):
        return exp.true() if value else exp.false()
    if isinstance(value, str):
        return exp.Literal.string(value)
    if isinstance(value, int):
        number = exp.Literal.number(abs(value))
        return exp.Neg(this=number) if value < 0 else number
    if isinstance(value, list | tuple):
        items = [_literal(item) for item in value]
        return exp.Array(expressions=items) if all(item is not None for item in items) else None
    return None

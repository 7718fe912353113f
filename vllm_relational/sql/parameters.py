"""Parameters of a statement: ``?``, ``$1`` and ``$name``, and their values.

A plan sends parts of a statement to DuckDB one by one, so ``?`` gets a number first, and each part gets the values that
it names. What the planner must know itself, the prompt and the labels of a call and the number of a LIMIT, is written
into the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlglot import exp

from vllm_relational.records import RelationalError
from vllm_relational.sql.functions import LLM_FUNCTIONS
from vllm_relational.sql.markers import markers, runs_on
from vllm_relational.sql.parse import calls, is_retrieval

Parameters = Sequence[Any] | Mapping[str, Any] | None


def numbered(text: str) -> str:
    """``?`` -> ``$1``, so that parts of a statement mean the same parameter as the whole; set apart, see there."""
    highest, pieces, position = 0, [], 0
    for marker in markers(text):
        number = int(marker.name) if marker.name.isdigit() else 0 if marker.name else highest + 1
        highest = max(highest, number)
        name = f"${number}" if text[marker.start] == "?" else text[marker.start : marker.end]
        pieces += [text[position : marker.start], name, " " * runs_on(text, marker)]
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
            yield from call.expressions[: len(LLM_FUNCTIONS[call.name.upper()].literals) + 1]
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

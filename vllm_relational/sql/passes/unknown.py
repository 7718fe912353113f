"""Calls whose answers are not known yet, as a value that DuckDB cannot tell from an answer: NULL of their type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlglot import exp

from vllm_relational.records import JsonSchema, RelationalError
from vllm_relational.sql.blocks import SOURCES, key_of, lookup
from vllm_relational.sql.functions import LLM_FUNCTIONS
from vllm_relational.sql.json_types import sql_type_of
from vllm_relational.sql.parse import calls, is_retrieval, literal


def type_of(call: exp.Anonymous) -> str | None:
    """The type of a call's answer; None where it takes the call's columns to tell."""
    if is_retrieval(call):
        return None
    function = LLM_FUNCTIONS[call.name.upper()]
    if function.sql_type != "STRUCT":
        return function.sql_type
    given = [literal(argument) for argument in call.expressions[1 : len(function.literals) + 1]]
    try:
        form = function.answer_format([*given, *[None] * (len(function.literals) - len(given))], 1, 1)
        return sql_type_of(form.schema) if isinstance(form, JsonSchema) else None
    except (ValueError, RelationalError):
        return None


def unknown(name: str, call: exp.Anonymous) -> exp.Expr | None:
    """What stands for the answer: the lookup called ``name``, over what the call reads. None without a type."""
    kind = type_of(call)
    if kind is None:
        return None
    columns = [given.copy() for given in call.expressions if not given.is_star and not isinstance(given, exp.Literal)]
    value = exp.cast(lookup(name, key_of(columns, keeps_nulls=True)), "VARCHAR", dialect="duckdb")
    return exp.cast(value, kind, dialect="duckdb")


@contextmanager
def hidden(block: exp.Select, name: str) -> Iterator[bool]:
    """While inside, the calls that the block's FROM reads are unknown; whether that can be said of all of them."""
    places: list[tuple[exp.Expr, exp.Expr]] = []
    whole = True
    for call in _read_calls(block):
        value = unknown(name, call)
        if value is None:
            whole = False
            break
        call.replace(value)
        places.append((value, call))
    try:
        yield whole and bool(places)
    finally:
        for shown, asked in reversed(places):
            shown.replace(asked)


def _read_calls(block: exp.Select) -> list[exp.Anonymous]:
    """The calls in a FROM and in the common table expressions, the inner ones of nested calls first."""
    held = [block.args.get(key) for key in SOURCES]
    parts = [part for item in held if item for part in (item if isinstance(item, list) else [item])]
    around = {id(node) for node in _ancestors(block)}
    parts += [cte for cte in block.root().find_all(exp.CTE) if id(cte) not in around]
    found = {id(call): call for part in parts for call in calls(part)}
    return list(reversed(found.values()))


def _ancestors(node: exp.Expr | None) -> Iterator[exp.Expr]:
    while node is not None:
        yield node
        node = node.parent

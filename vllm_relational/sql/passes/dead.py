"""Calls behind a condition of constants that does not hold, as in ``CASE WHEN 1 = 0 THEN LLM(...) END``.

No row evaluates such a call. As a NULL of its type it no longer hides from DuckDB what the condition around it comes
to, so that other calls are asked for no row that this drops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlglot import exp

from vllm_relational.sql.blocks import Aggregates, sql_of
from vllm_relational.sql.functions import asks_groups
from vllm_relational.sql.parse import calls
from vllm_relational.sql.passes.guards import guards_of
from vllm_relational.sql.passes.unknown import type_of
from vllm_relational.sql.row_functions import unnests

# What a constant condition may be made of: a function may give another value each time.
_CONSTANT = (
    *(exp.Literal, exp.Boolean, exp.Null, exp.Paren, exp.Neg, exp.Not, exp.And, exp.Or, exp.Predicate, exp.Is),
    *(exp.Add, exp.Sub, exp.Mul, exp.Mod, exp.Cast, exp.DataType, exp.Placeholder, exp.Parameter, exp.Var),
)


def dead_calls(tree: exp.Expr, aggregates: Aggregates, holds: Callable[[str], bool]) -> list[exp.Anonymous]:
    """The calls that no row evaluates. holds: whether DuckDB takes a condition of constants for TRUE, or cannot say."""
    return [
        call
        for call in calls(tree)
        if _may_go(call, aggregates) and not all(holds(text) for text in _constant_guards(call, aggregates))
    ]


def bury(dead: list[exp.Anonymous]) -> list[str]:
    """Put NULLs in place of calls, the inner ones of nested calls first; returns what was done."""
    for call in reversed(dead):
        call.replace(exp.cast(exp.Null(), type_of(call) or "VARCHAR", dialect="duckdb"))
    return [f"{call.name.upper()} behind a condition that never holds is not asked" for call in dead]


def _may_go(call: exp.Anonymous, aggregates: Aggregates) -> bool:
    """Whether the block makes the same rows without the call."""
    return (
        not asks_groups(call.name.upper())
        and type_of(call) is not None
        and not aggregates.within(call)
        and not unnests(call)
    )


def _constant_guards(call: exp.Expr, aggregates: Aggregates) -> Iterator[str]:
    return (
        sql_of(guard)
        for guard in guards_of(call, aggregates)
        if all(isinstance(node, _CONSTANT) and not isinstance(node, exp.SubqueryPredicate) for node in guard.walk())
    )

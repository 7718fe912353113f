"""The tables of a FROM, as passes see them: which have a SELECT of their own that conditions may be moved into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlglot import exp

from vllm_relational.sql.blocks import Aggregates
from vllm_relational.sql.parse import holds_call
from vllm_relational.sql.row_functions import holds_window

_ROWS_DEPEND = ("group", "having", "limit", "offset", "qualify", "windows", "sample", "with_")


@dataclass(frozen=True)
class FromTable:
    """A table of a FROM. ``body``: its SELECT, where conditions may be put into it. ``join``: None for the first."""

    alias: str
    table: exp.Expr
    join: exp.Join | None
    body: exp.Select | None


def sources_of(tree: exp.Expr, block: exp.Select, aggregates: Aggregates) -> Iterator[FromTable]:
    """The tables of a FROM; those with calls inside have a body if its rows do not depend on one another."""
    first = block.args.get("from_")
    parts = [(None, first.this)] if first is not None else []
    parts += [(join, join.this) for join in block.args.get("joins") or []]
    for join, table in parts:
        body = _body(tree, table)
        usable = body is not None and holds_call(body) and _rows_are_free(body, aggregates)
        yield FromTable(table.alias_or_name, table, join, body if usable else None)


def _body(tree: exp.Expr, table: exp.Expr) -> exp.Select | None:
    """The SELECT of a derived table, or of a common table expression that is read once, read as it is."""
    if any(value for key, value in table.args.items() if key not in ("this", "alias")):
        return None  # PIVOT, a sample, a join in parentheses: other rows, or other columns of the same names
    if isinstance(table, exp.Subquery):
        alias = table.args.get("alias")
        plain = isinstance(table.this, exp.Select) and (alias is None or not alias.columns)
        return table.this if plain else None
    if not isinstance(table, exp.Table):
        return None
    name = table.name.casefold()
    named = [cte for cte in tree.find_all(exp.CTE) if cte.alias.casefold() == name]
    uses = [use for use in tree.find_all(exp.Table) if use.name.casefold() == name]
    if len(named) != 1 or len(uses) != 1 or named[0].args["alias"].columns:
        return None
    return named[0].this if isinstance(named[0].this, exp.Select) else None


def _rows_are_free(body: exp.Select, aggregates: Aggregates) -> bool:
    """Whether dropping rows of the body changes no other of its rows."""
    if any(body.args.get(key) for key in _ROWS_DEPEND) or aggregates.groups(body):
        return False
    distinct = body.args.get("distinct")
    if distinct is not None and distinct.args.get("on") is not None:
        return False
    return not any(holds_window(item) for item in body.expressions)

"""Cheap predicates through subqueries and joins: what is dropped outside need not be asked about inside.

A condition of the outer query on columns of a subquery holds just as well inside of it, before its calls, as long as
the subquery's rows do not depend on one another (no groups, windows, DISTINCT, LIMIT). A join on equal keys drops the
rows without a partner, so the keys of the other side are such a condition too (``semijoin``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlglot import exp

from vllm_relational.sql.blocks import Aggregates, condition_of, conjuncts, lookups, own_nodes, set_condition, sql_of
from vllm_relational.sql.parse import holds_call
from vllm_relational.sql.passes.semijoin import is_one_of, partner_keys, rejects_nulls
from vllm_relational.sql.passes.sources import FromTable, sources_of
from vllm_relational.sql.row_functions import is_window

# Joins that give a row another partner where a row of one side is gone.
_ODD_METHODS = ("ASOF", "POSITIONAL")


def push_conditions(tree: exp.Expr, aggregates: Aggregates, is_whole: Callable[[exp.Expr], bool]) -> list[str]:
    """Copy conditions into the subqueries that they are about, in place; returns what was done.

    is_whole: whether a query, in a condition, reads nothing of the queries around it.
    """
    notes = []
    for block in list(tree.find_all(exp.Select, bfs=True)):
        sources = list(sources_of(tree, block, aggregates))
        for source in sources:
            if source.body is not None and _loses_rows(block, source):
                notes += _push(block, source, sources, is_whole)
    return notes


def push_answered(block: exp.Select, aggregates: Aggregates, binds: Callable[[exp.Select], bool]) -> None:
    """The same for the conditions of a block that are lookups by now, as far as a body still binds with them."""
    sources = list(sources_of(block.root(), block, aggregates))
    for source in sources:
        if source.body is None or not _loses_rows(block, source):
            continue
        held = condition_of(source.body, "where")
        parts = _outer_conditions(block, source, len(sources) == 1, lambda _: False)
        for part in [part for part in parts if any(lookups(part))]:
            set_condition(source.body, "where", [*held, part])
            if binds(source.body):
                held = condition_of(source.body, "where")
            else:
                set_condition(source.body, "where", held)


def _loses_rows(block: exp.Select, source: FromTable) -> bool:
    """Whether a condition that is false for a row of the source drops it: no outer join keeps it."""
    joins = block.args.get("joins") or []
    place = joins.index(source.join) if source.join is not None else -1
    if any(join.side in ("RIGHT", "FULL") or join.kind == "ANTI" for join in joins[place + 1 :]):
        return False
    if any(join.method in _ODD_METHODS for join in joins):
        return False
    return source.join is None or (source.join.side in ("", "LEFT") and source.join.kind != "OUTER")


def _push(
    block: exp.Select, source: FromTable, sources: list[FromTable], is_whole: Callable[[exp.Expr], bool]
) -> list[str]:
    assert source.body is not None
    found = [*_outer_conditions(block, source, len(sources) == 1, is_whole), *_partner_keys(block, source, sources)]
    known = {sql_of(part) for part in condition_of(source.body, "where")}
    fresh = [part for part in found if sql_of(part) not in known]
    if fresh:
        set_condition(source.body, "where", [*condition_of(source.body, "where"), *fresh])
    return [f"{source.alias} is asked only where {sql_of(part)}" for part in fresh]


def _outer_conditions(
    block: exp.Select, source: FromTable, alone: bool, is_whole: Callable[[exp.Expr], bool]
) -> Iterator[exp.Expr]:
    """Conditions on the source alone: of its own join, and of WHERE unless a LEFT JOIN keeps what they drop."""
    held = source.join.args.get("on") if source.join is not None else None
    parts = conjuncts(held)
    if source.join is None or not source.join.side or rejects_nulls(block, source):
        parts += condition_of(block, "where")
    for part in parts:
        if holds_call(part) or not all(_may_move(query, is_whole) for query in part.find_all(exp.Query)):
            continue
        own = list(own_nodes(part))
        if any(isinstance(node, exp.Column) for node in own) and not any(
            isinstance(node, exp.AggFunc) or is_window(node) for node in own
        ):
            inner = mapped(part, source, alone)
            if inner is not None:
                yield inner


def _may_move(query: exp.Expr, is_whole: Callable[[exp.Expr], bool]) -> bool:
    """Whether a query in a condition means the same elsewhere: it is whole, and reads no common table expression."""
    named = {cte.alias.casefold() for cte in query.root().find_all(exp.CTE)}
    return not any(table.name.casefold() in named for table in query.find_all(exp.Table)) and is_whole(query)


def mapped(part: exp.Expr, source: FromTable, alone: bool) -> exp.Expr | None:
    """The condition in terms of the body's own columns; None where it cannot be said so."""
    copy = exp.paren(part.copy(), copy=False)
    for column in [node for node in own_nodes(copy) if isinstance(node, exp.Column)]:
        mine = column.table.casefold() == source.alias.casefold() if column.table else alone
        inner = _inner(column.name, source.body) if mine and source.body is not None else None
        if inner is None:
            return None
        column.replace(exp.paren(inner.copy(), copy=False))
    return copy


def _inner(name: str, body: exp.Select) -> exp.Expr | None:
    """What the body's column of that name is; None where that takes an answer or is not plain to see."""
    items = [item for item in body.expressions if item.alias_or_name.casefold() == name.casefold()]
    if len(items) == 1 and not any(item.is_star or isinstance(item, exp.Columns) for item in body.expressions):
        inner = items[0].unalias()
        return inner if not holds_call(inner) and not inner.find(exp.Query) else None
    # Beside a star that has a column of that name this would come first.
    return exp.column(name) if not items and _is_all_of_one_table(body) else None


def _is_all_of_one_table(body: exp.Select) -> bool:
    """Whether ``*`` or ``t.*`` stands for the columns of the only table, as they are; other items may stand beside."""
    stars = [item for item in body.expressions if item.is_star]
    if len(stars) != 1 or body.args.get("joins") or body.args.get("laterals") or body.find(exp.Columns):
        return False
    star = stars[0].this if isinstance(stars[0], exp.Column) else stars[0]
    return isinstance(star, exp.Star) and not any(star.args.get(key) for key in ("except_", "replace", "rename"))


def _partner_keys(block: exp.Select, source: FromTable, sources: list[FromTable]) -> Iterator[exp.Expr]:
    """``key IN (SELECT other's key ...)`` in terms of the body's own columns, for the keys that can be said so."""
    for names, keys in partner_keys(block, source, sources):
        found = [_inner(name, source.body) if source.body is not None else None for name in names]
        known = [place for place, inner in enumerate(found) if inner is not None]
        if known:
            keys.set("expressions", [keys.expressions[place] for place in known])
            columns = [exp.paren(inner.copy(), copy=False) for inner in found if inner is not None]
            yield is_one_of([column.unnest() if len(columns) == 1 else column for column in columns], keys)

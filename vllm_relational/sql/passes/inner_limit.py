"""LIMIT over a subquery with calls: the subquery needs only the rows that come out.

``SELECT * FROM (SELECT id, LLM(...) AS s FROM t) ORDER BY id LIMIT 3`` takes three rows of t. The outer clauses stay,
so that order and offset are theirs; the subquery gets the order and as many rows as the outer query reads.
"""

from __future__ import annotations

from sqlglot import exp

from vllm_relational.sql.blocks import Aggregates, condition_of, sql_of
from vllm_relational.sql.parse import holds_call
from vllm_relational.sql.passes.limit import number_of
from vllm_relational.sql.passes.pushdown import mapped
from vllm_relational.sql.passes.sources import FromTable, sources_of
from vllm_relational.sql.row_functions import holds_window, unnests

_KEEPS_ROWS_APART = ("group", "having", "distinct", "qualify", "windows", "joins", "laterals")


def push_limits(tree: exp.Expr, aggregates: Aggregates) -> list[str]:
    """Put limits into subqueries, in place; returns what was done. Conditions must have been pushed before."""
    notes = []
    for block in list(tree.find_all(exp.Select, bfs=True)):
        if block.args.get("limit") is None or any(block.args.get(key) for key in _KEEPS_ROWS_APART):
            continue
        size, start = number_of(block.args["limit"]), number_of(block.args.get("offset"))
        sources = list(sources_of(tree, block, aggregates))
        if size is None or start is None or len(sources) != 1 or aggregates.groups(block) or _rows_differ(block):
            continue
        if _push(block, sources[0], size + start):
            notes.append(f"{sources[0].alias or 'the subquery'} is asked for {size + start:,} rows, those of the LIMIT")
    return notes


def _rows_differ(block: exp.Select) -> bool:
    """Whether the list sees more rows than its own, or makes none or many of one."""
    return any(holds_window(item) or unnests(item) for item in block.expressions)


def _push(block: exp.Select, source: FromTable, rows: int) -> bool:
    """Limit the body, if its rows come out in an order that it can compute itself."""
    body, order = source.body, _inner_order(block, source)
    if body is None or order is None or not all(_holds_inside(part, source) for part in condition_of(block, "where")):
        return False
    body.set("order", order if order.expressions else body.args.get("order"))
    body.set("limit", exp.Limit(expression=exp.Literal.number(rows)))
    return True


def _holds_inside(part: exp.Expr, source: FromTable) -> bool:
    """Whether a condition of the outer query is one that ``push_conditions`` has put into the body."""
    if holds_call(part) or source.body is None:
        return False
    inner = mapped(part, source, alone=True)
    return inner is not None and sql_of(inner) in {sql_of(held) for held in condition_of(source.body, "where")}


def _inner_order(block: exp.Select, source: FromTable) -> exp.Order | None:
    """ORDER BY in terms of the body's columns; an empty one without, None where that takes an answer or an alias."""
    order: exp.Order | None = block.args.get("order")
    aliases = {item.alias.casefold() for item in block.expressions if isinstance(item, exp.Alias)}
    inner = order.copy() if order is not None else exp.Order(expressions=[])
    for part in inner.expressions:
        names = {column.name.casefold() for column in part.find_all(exp.Column)}
        key = mapped(part.this, source, alone=True) if names and not names & aliases else None
        if key is None:
            return None
        part.set("this", key)
    return inner

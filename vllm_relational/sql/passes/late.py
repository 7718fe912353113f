"""Rows first: where LIMIT or DISTINCT ON decides which rows come out, the select list is asked about those only.

The block is computed without these calls (its groups, windows, QUALIFY, order and limit are DuckDB's), its rows are
stored once, as ties may fall otherwise a second time, and the calls are asked over them. ``limit`` does more where
predicates ask, for plain blocks; this takes any block whose order and conditions do not read the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sqlglot import exp

from vllm_relational.sql.blocks import SOURCES, Aggregates, group_keys, sql_of
from vllm_relational.sql.normalise import is_reshaped
from vllm_relational.sql.parse import holds_call
from vllm_relational.sql.passes.limit import (
    ITEM,
    ROW,
    Columns,
    merges_columns,
    numbered,
    spell_keys,
    stands_alone,
)
from vllm_relational.sql.row_functions import is_window, unnests

_DONE = ("where", "group", "having", "qualify", "windows", "distinct", "order", "limit", "offset")


def may_be_late(block: exp.Select) -> bool:
    """Whether the block chooses rows after its select list, and asks in that list."""
    distinct = block.args.get("distinct")
    on = distinct is not None and distinct.args.get("on") is not None
    chooses = block.args.get("limit") is not None if distinct is None else on
    asks = any(holds_call(item) for item in block.expressions)
    return chooses and asks and stands_alone(block) and block.args.get("from_") is not None and _is_plain_list(block)


def late_items(block: exp.Select, aggregates: Aggregates) -> list[exp.Expr]:
    """The items of a select list without stars whose calls may be asked after the rows are known."""
    if not spell_keys(_keys(block.copy()), block.expressions):
        return []
    return [item for item in block.expressions if holds_call(item) and _is_late(item, block, aggregates)]


def _is_plain_list(block: exp.Select) -> bool:
    """Whether the columns that come out can be named one by one."""
    items = block.expressions
    if any(is_reshaped(item) or item.find(exp.Columns) or item.alias_or_name.casefold() == ROW for item in items):
        return False
    return not (any(item.is_star for item in items) and merges_columns(block))


def _is_late(item: exp.Expr, block: exp.Select, aggregates: Aggregates) -> bool:
    """Whether nothing but the item itself reads it, and it can be computed from values of its row."""
    if item.find(exp.Query) or unnests(item) or not isinstance(item, exp.Alias):
        return False
    name, place = item.alias.casefold(), str(block.expressions.index(item) + 1)
    if any(isinstance(key, exp.Literal) and key.this == place for key in _keys(block)):
        return False
    named = (node for node in _readers(block, item) if isinstance(node, exp.Column))
    if any(name in (node.name.casefold(), node.table.casefold()) for node in named):
        return False
    return leaves_of(item.this, block, aggregates) is not None


def _readers(block: exp.Select, item: exp.Expr) -> Iterator[exp.Expr]:
    """The nodes that may read an item by its alias."""
    parts = [block.args.get(key) for key in ("order", "distinct", "qualify")]
    for part in [*parts, *(other for other in block.expressions if other is not item)]:
        yield from part.walk() if part is not None else ()


def leaves_of(value: exp.Expr, block: exp.Select, aggregates: Aggregates) -> list[exp.Expr] | None:
    """The values that an expression with calls is computed from, row by row; None where a call is part of one.

    These are columns, windows, and in a block with groups aggregates and what it groups by.
    """
    group = block.args.get("group")
    grouped, keys = aggregates.groups(block), {sql_of(key) for key in group_keys(group)} if group is not None else set()
    found: list[exp.Expr] = []

    def is_leaf(node: exp.Expr) -> bool:
        known = is_window(node) or aggregates.is_aggregate(node) or sql_of(node) in keys
        leaf = known or (isinstance(node, exp.Column) and not isinstance(node.this, exp.Star))
        if leaf:
            found.append(node)
        return leaf

    for _ in value.walk(prune=is_leaf):
        pass
    bare = (node for node in found if grouped and isinstance(node, exp.Column) and sql_of(node) not in keys)
    if any(holds_call(node) for node in found) or any(True for _ in bare):
        return None
    return found


def apart(
    block: exp.Select, late: Sequence[exp.Expr], aggregates: Aggregates, name: Callable[[exp.Expr], str]
) -> tuple[exp.Select, list[exp.Expr]]:
    """The rows of a block without its late items, numbered in their order, and the select list over them.

    name: the column name that DuckDB gives an item.
    """
    columns, items = Columns(), list[exp.Expr]()
    for item in block.expressions:
        if any(item is each for each in late):
            items.append(_over(item.copy(), leaves_of(item.this, block, aggregates) or [], columns))
        else:
            items.append(columns.kept(item, name))
    rows = block.copy()
    spell_keys(_keys(rows), block.expressions)
    rows.set("with_", None)
    rows.set("expressions", columns.expressions or [exp.alias_(exp.Literal.number(1), ITEM.format("x"))])
    return numbered(rows, block), items


def _over(item: exp.Expr, leaves: Sequence[exp.Expr], columns: Columns) -> exp.Expr:
    """A late item with its values taken from the rows."""
    names = {sql_of(leaf): columns.column(leaf) for leaf in leaves}
    found: list[exp.Expr] = []

    def is_leaf(node: exp.Expr) -> bool:
        if sql_of(node) in names:
            found.append(node)
        return sql_of(node) in names

    for _ in item.this.walk(prune=is_leaf):
        pass
    for node in found:
        node.replace(names[sql_of(node)].copy())
    return item


def _keys(block: exp.Select) -> list[exp.Expr]:
    """What ORDER BY and DISTINCT ON go by."""
    order, distinct = block.args.get("order"), block.args.get("distinct")
    keys = [part.this for part in order.expressions] if order is not None else []
    on = distinct.args.get("on") if distinct is not None else None
    return [*keys, *(on.expressions if isinstance(on, exp.Tuple) else [on] if on is not None else [])]


def read_rows(block: exp.Select, table: exp.Expr, items: list[exp.Expr]) -> None:
    """Make the block the select list over its stored rows."""
    for key in (*SOURCES, *_DONE):
        block.set(key, None)
    block.set("expressions", items)
    block.set("from_", exp.From(this=table))
    block.set("order", exp.Order(expressions=[exp.Ordered(this=exp.column(ROW), nulls_first=False)]))

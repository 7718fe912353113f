"""Columns that nothing reads are not asked for: a call in the list of a subquery whose name occurs nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from vllm_relational.sql.parse import holds_call


def drop_unread(tree: exp.Expr) -> list[str]:
    """Replace calls in columns that nothing reads by NULL, in place; returns what was done."""
    notes = []
    for alias, body in _named_queries(tree):
        for item in body.expressions:
            if isinstance(item, exp.Alias) and holds_call(item.this) and not _is_read(tree, alias, body, item):
                notes.append(f"column {item.alias} of {alias} is not asked for: nothing reads it")
                item.set("this", exp.Null())
    return notes


def _named_queries(tree: exp.Expr) -> Iterator[tuple[str, exp.Select]]:
    """Common table expressions and derived tables that are plain SELECTs, with their names."""
    for held in list(tree.find_all(exp.CTE, exp.Subquery)):
        body, alias = held.this, held.args.get("alias")
        named = isinstance(alias, exp.TableAlias) and alias.name and not alias.columns
        if isinstance(body, exp.Select) and named and not body.args.get("distinct") and not body.args.get("group"):
            yield held.alias, body


def _is_read(tree: exp.Expr, alias: str, body: exp.Select, item: exp.Alias) -> bool:
    """Whether anything but the item itself may read it: its name anywhere, the table's as a value, a star over it."""
    name, own = item.alias.casefold(), {id(node) for node in item.walk()}
    inside = {id(node) for node in body.walk()}
    called = {alias.casefold()} | {use.alias.casefold() for use in _uses(tree, alias) if use.alias}
    for node in tree.walk():
        if isinstance(node, exp.Identifier) and id(node) not in own and node.name.casefold() == name:
            return True
        if isinstance(node, exp.Column) and not node.table and node.name.casefold() in called:
            return True
        if isinstance(node, exp.Columns | exp.Summarize | exp.Describe) or (
            isinstance(node, exp.Join) and node.method == "NATURAL"
        ):
            return True
        if isinstance(node, exp.Star) and id(node) not in inside and _covers(node, alias, called, body):
            return True
    reshaped = any(use.alias_column_names or use.args.get("pivots") for use in _uses(tree, alias))
    return reshaped or any(isinstance(part, exp.Literal | exp.Var) for part in _ordinals(body))


def _uses(tree: exp.Expr, alias: str) -> Iterator[exp.Expr]:
    """Where a FROM names the query called ``alias``, or is it."""
    tables = (held for held in tree.find_all(exp.Table) if held.name.casefold() == alias.casefold())
    yield from tables
    yield from (held for held in tree.find_all(exp.Subquery) if held.alias.casefold() == alias.casefold())


def _covers(star: exp.Star, alias: str, called: set[str], body: exp.Select) -> bool:
    """Whether a star may stand for the columns of the query ``alias``; ``called``: its names in any FROM."""
    table = star.parent.table if isinstance(star.parent, exp.Column) else ""
    if isinstance(star.parent, exp.Count) or (table and table.casefold() not in called):
        return False
    block = star.find_ancestor(exp.Select)
    if block is None:
        return True
    held = body.parent
    tables = {table.name.casefold() for table in block.find_all(exp.Table)}
    return alias.casefold() in tables or any(node is held for node in block.walk())


def _ordinals(body: exp.Select) -> Iterator[exp.Expr]:
    """What ORDER BY sorts by: a number names a column of the list, ALL is all of them."""
    order = body.args.get("order")
    yield from (part.this for part in order.expressions) if order is not None else ()

"""Columns before ``.method()``: sqlglot makes plain names of them, which no rewrite would see.

In ``upper(t.x).length()`` it takes ``t.x`` for the beginning of a longer name: ``t`` and ``x`` are identifiers there,
and no column. Here they become columns again.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

# What may hold a value that is a column, and the parts of them that hold a name.
_HOLDERS = (
    *(exp.Func, exp.Binary, exp.Unary, exp.Predicate, exp.Bracket, exp.Tuple, exp.Ordered, exp.Distinct, exp.Where),
    *(exp.Alias, exp.Window),
)
_NAMES = ((exp.PropertyEQ, "this"), (exp.Kwarg, "this"), (exp.Dot, "expression"), (exp.Alias, "alias"))
START, END = "start", "end"


def restore_columns(tree: exp.Expr, sql: str, span: str) -> None:
    """Make columns of the names before methods, in place. span: the key of a node's place in ``sql`` among its meta."""
    for dot in [node for node in tree.find_all(exp.Dot) if isinstance(node.expression, exp.Func | exp.Window)]:
        for name in list(_values(dot.this)):
            held = name.parent
            table: exp.Identifier | None = None
            place: exp.Expr = name
            if isinstance(held, exp.Dot) and name.arg_key == "this" and isinstance(held.expression, exp.Identifier):
                table, name, place = name, held.expression, held
            first = (table or name).meta.get(START)
            if first is None or sql[:first].rstrip().endswith("."):
                continue  # the name of a schema before it is lost: only the text has it
            column = exp.Column(this=name.copy(), table=table.copy() if table is not None else None)
            column.meta[span] = (first, name.meta[END] + 1)
            place.replace(column)


def _values(tree: exp.Expr) -> Iterator[exp.Identifier]:
    """The names that stand where a value stands, but for parameters of lambdas."""
    for node in tree.walk():
        if not isinstance(node, exp.Identifier) or not isinstance(node.parent, _HOLDERS):
            continue
        is_name = any(isinstance(node.parent, kind) and node.arg_key == key for kind, key in _NAMES)
        if not is_name and not _is_parameter(node):
            yield node


def _is_parameter(node: exp.Identifier) -> bool:
    above = node.find_ancestor(exp.Lambda)
    while above is not None:
        if any(given.name.casefold() == node.name.casefold() for given in above.expressions):
            return True
        above = above.find_ancestor(exp.Lambda)
    return False

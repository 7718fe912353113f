"""Cheap predicates before passages: ``FROM q, retrieve(q.text, ...) AS p WHERE q.kind = 1`` searches for kind 1 only.

A subquery in a FROM that reads the tables before it is computed for their rows. What the outer WHERE says of these
tables alone drops such a row whatever the subquery gives, so its passages are not needed. A LIMIT likewise: passages
make one row of one row.
"""

from __future__ import annotations

from sqlglot import exp

from vllm_relational.sql.blocks import Aggregates, condition_of, set_condition, visible_ctes
from vllm_relational.sql.parse import holds_call
from vllm_relational.sql.passes.limit import number_of, stands_alone
from vllm_relational.sql.retrieve import passage_names
from vllm_relational.sql.row_functions import holds_window, unnests

# Joins that make rows of their own where a row of another side is gone.
_ODD_METHODS = ("ASOF", "POSITIONAL")
_GROUPS = ("group", "having", "distinct", "qualify", "windows", "sample", "laterals")
_SAMPLES = ("sample", "pivots", "joins", "laterals")


def conditions_on_rows(outer: exp.Select, block: exp.Select) -> list[exp.Expr]:
    """The conditions of ``outer`` that its rows must pass, and that ask nothing, for a ``block`` in its FROM.

    Whether the tables before the block have their columns is for the caller to try.
    """
    if not _stands_in_from(outer, block):
        return []
    joins = outer.args.get("joins") or []
    if any(join.side in ("RIGHT", "FULL") or join.method in _ODD_METHODS for join in joins):
        return []
    return [part.copy() for part in condition_of(outer, "where") if not holds_call(part) and not part.find(exp.Query)]


def _stands_in_from(outer: exp.Select, block: exp.Select) -> bool:
    node: exp.Expr | None = block
    while node is not None and node.parent is not outer:
        node = node.parent
    return node is not None and node.arg_key in ("from_", "joins", "laterals")


# ------------------------------------------------------------------------------------------------------------- limit
def rows_of_limit(block: exp.Select, aggregates: Aggregates) -> exp.Select | None:
    """The rows of a table with passages beside it that a LIMIT may let out; None where it takes more to tell."""
    size, start = number_of(block.args.get("limit")), number_of(block.args.get("offset"))
    table, taken = _table(block), _passages(block)
    if block.args.get("limit") is None or size is None or start is None or table is None or taken is None:
        return None
    order: exp.Order | None = block.args.get("order")
    keys = [part.this for part in order.expressions] if order is not None else []
    parts = [*condition_of(block, "where"), *keys]
    taken |= {item.alias.casefold() for item in block.expressions if isinstance(item, exp.Alias)}
    if not _is_plain(block, aggregates) or not all(_is_about(part, table, taken) for part in parts):
        return None
    if any(not key.find(exp.Column) for key in keys):
        return None  # a number, or ALL
    rows = exp.Select(expressions=[exp.Star()]).from_(table.copy())
    set_condition(rows, "where", condition_of(block, "where"))
    rows.set("order", order.copy() if order is not None else None)
    rows.set("limit", exp.Limit(expression=exp.Literal.number(size + start)))
    rows.set("with_", visible_ctes(block))
    return rows


def read_from(block: exp.Select, rows: exp.Expr) -> None:
    """Put the rows in place of the block's table, under its name."""
    held = block.args["from_"]
    name = held.this.alias_or_name
    held.set("this", exp.Select(expressions=[exp.Star()]).from_(rows).subquery(exp.to_identifier(name, quoted=True)))


def _table(block: exp.Select) -> exp.Expr | None:
    """The first table of a FROM, where it has a name and asks nothing."""
    held = block.args.get("from_")
    table: exp.Expr | None = held.this if held is not None else None
    if not isinstance(table, exp.Table | exp.Subquery) or not table.alias_or_name or holds_call(table):
        return None
    return None if any(table.args.get(key) for key in _SAMPLES) else table


def _passages(block: exp.Select) -> set[str] | None:
    """The names of passages and of their tables, where these are all that the first table is joined with."""
    names: set[str] = set()
    for join in block.args.get("joins") or []:
        found = passage_names(join.this)
        on = join.args.get("on")
        if found is None or join.side or join.kind not in ("", "CROSS", "INNER") or on not in (None, exp.true()):
            return None
        names |= {name.casefold() for name in (*found, join.this.alias)}
    return names or None


def _is_plain(block: exp.Select, aggregates: Aggregates) -> bool:
    """Whether each row that comes out is one row of the block's FROM, and the FROM can be computed by itself."""
    if any(block.args.get(key) for key in _GROUPS) or aggregates.groups(block) or not stands_alone(block):
        return False
    if any(holds_window(item) or unnests(item) for item in block.expressions):
        return False
    return not any(column.name.casefold() == "rowid" or column.db for column in block.find_all(exp.Column))


def _is_about(part: exp.Expr, table: exp.Expr, taken: set[str]) -> bool:
    """Whether a condition or key reads the table alone. taken: names that are others'."""
    if holds_call(part) or part.find(exp.Query) or holds_window(part):
        return False
    own = table.alias_or_name.casefold()
    columns = list(part.find_all(exp.Column))
    return all(c.table.casefold() == own if c.table else c.name.casefold() not in taken for c in columns)

"""LIMIT: only rows that come out are asked about, and an LLM filter is asked in batches until enough rows pass.

A block with a LIMIT is split in three: the rows that may come out, in their order (``rows``); of these, the ones that
pass the LLM predicates, up to the limit (``kept``); and the select list over those. The first two are materialised:
computing them twice could give other rows where ORDER BY leaves a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlglot import exp
from sqlglot.optimizer.simplify import simplify

from vllm_relational.sql.blocks import SOURCES, Aggregates, condition_of, conjunction, set_condition, visible_ctes
from vllm_relational.sql.normalise import expand_stars, is_reshaped
from vllm_relational.sql.parse import calls, holds_call
from vllm_relational.sql.row_functions import holds_window, unnests

ROW, COLUMN, ITEM = "__row", "__c{}", "__i{}"
_GROUPS = ("group", "having", "distinct", "qualify", "windows", "sample")


@dataclass(frozen=True)
class Split:
    """The parts of a block with a LIMIT, still to be put together.

    rows:  the rows that may come out, numbered by ``ROW`` from 1; without LLM predicates these are all that do.
    kept:  the LLM predicates and the limit over ``rows``, its FROM left open; None without LLM predicates.
    items: the select list over the columns of ``rows``.
    need:  rows after which no more are asked about.
    """

    rows: exp.Select
    kept: exp.Select | None
    items: list[exp.Expr]
    need: int

    def finish(self, block: exp.Select, table: exp.Expr) -> None:
        """Make the block read its rows from ``table``."""
        for key in (*SOURCES, "where", "limit", "offset"):
            block.set(key, None)
        block.set("expressions", self.items)
        block.set("from_", exp.From(this=table))
        block.set("order", _by_row())


def split(
    block: exp.Select,
    aggregates: Aggregates,
    expand: Callable[[exp.Expr], list[exp.Expr]],
    name: Callable[[exp.Expr], str],
) -> Split | None:
    """Split a block; None where the LIMIT decides nothing that calls could be spared for.

    expand: a star -> columns; name: the column name that DuckDB gives an item.
    """
    size, start = number_of(block.args.get("limit")), number_of(block.args.get("offset"))
    if size is None or start is None or not _is_plain(block, aggregates):
        return None
    items = [column for item in block.expressions for column in (expand(item) if item.is_star else [item])]
    asking = [part for part in condition_of(block, "where") if holds_call(part)]
    order = _spelled_order(block, items)
    if order is None or any(item.is_star for item in items) or _reads_alias(items, asking):
        return None
    if any(item.alias_or_name.casefold() == ROW for item in items):
        return None  # it would be taken for the number
    for call in [call for part in (*items, *asking) for call in calls(part)]:
        expand_stars(call, expand)
    return _put_apart(block, items, order, size + start, name)


def _put_apart(
    block: exp.Select, items: list[exp.Expr], order: exp.Order, need: int, name: Callable[[exp.Expr], str]
) -> Split:
    """The parts of a block that can be split; ``items`` and ``order`` are those of its select list, written out."""
    conditions = condition_of(block, "where")
    asking = [part for part in conditions if holds_call(part)]
    columns = Columns()
    out = [columns.over(item.copy(), name) for item in items]
    kept = [columns.moved(part.copy()) for part in asking]
    rows = _rows(block, columns.expressions, [part for part in conditions if not holds_call(part)], order)
    if not asking:
        _copy_limit(block, rows)
    return Split(numbered(rows, block), _limited(kept, block) if kept else None, out, need)


def is_cut(block: exp.Select) -> bool:
    """Whether some of the block's rows may be left out by their place: LIMIT, FETCH, DISTINCT ON."""
    return block.args.get("limit") is not None or block.args.get("distinct") is not None


def _is_plain(block: exp.Select, aggregates: Aggregates) -> bool:
    """Whether each row that comes out is one row of the block's FROM, and the FROM can be computed by itself."""
    if any(block.args.get(key) for key in _GROUPS) or aggregates.groups(block) or not block.args.get("from_"):
        return False
    parts = [*block.expressions, *condition_of(block, "where")]
    asking = [part for part in parts if holds_call(part)]
    apart = (*asking, *block.expressions)
    if not asking or any(part.find(exp.Query, exp.Columns) or holds_window(part) for part in apart):
        return False
    if any(holds_call(item) and unnests(item) for item in block.expressions):
        return False
    if any(is_reshaped(item) for item in block.expressions):
        return False
    if any(item.is_star for item in block.expressions) and merges_columns(block):
        return False
    return not holds_call(block.args.get("order")) and stands_alone(block)


def merges_columns(block: exp.Select) -> bool:
    """Whether ``*`` has fewer columns than the tables together."""
    return any(join.args.get("using") or join.method == "NATURAL" for join in block.args.get("joins") or [])


def stands_alone(block: exp.Select) -> bool:
    """Whether the block cannot read columns of a query around it: it is one itself, or part of a FROM or a WITH."""
    node: exp.Expr = block
    while node.parent is not None:
        if isinstance(node.parent, exp.Lateral):
            return False
        if isinstance(node.parent, exp.Select) and node.arg_key not in ("from_", "joins", "with_"):
            return False
        if isinstance(node.parent, exp.Join) and node.arg_key != "this":
            return False
        node = node.parent
    return True


def number_of(held: exp.Expr | None) -> int | None:
    """The number of LIMIT or OFFSET; 0 without one, None for anything but a number."""
    if held is None:
        return 0
    given = held.args.get("count") if isinstance(held, exp.Fetch) else held.args.get("expression")
    if given is None or held.args.get("limit_options") or not isinstance(held, exp.Limit | exp.Offset | exp.Fetch):
        return None
    value = simplify(given.copy(), dialect="duckdb").unnest()
    plain = isinstance(value, exp.Literal) and not value.is_string and value.this.isdigit()
    return int(value.this) if plain else None


def _spelled_order(block: exp.Select, items: list[exp.Expr]) -> exp.Order | None:
    """ORDER BY without aliases and numbers of the select list; an empty one without ORDER BY, None where it asks."""
    order: exp.Order | None = block.args.get("order")
    spelled = order.copy() if order is not None else exp.Order(expressions=[])
    is_clear = spell_keys([part.this for part in spelled.expressions], items)
    return spelled if is_clear and not holds_call(spelled) else None


def spell_keys(keys: Sequence[exp.Expr], items: Sequence[exp.Expr]) -> bool:
    """Write out keys of ORDER BY or DISTINCT ON that are aliases or numbers of the select list, in place.

    False where one of them reads an alias in a larger expression, or is ALL.
    """
    aliases = {item.alias.casefold(): item.this for item in items if isinstance(item, exp.Alias)}
    for key in keys:
        if isinstance(key, exp.Literal) and key.this.isdigit() and 1 <= int(key.this) <= len(items):
            key.replace(items[int(key.this) - 1].unalias().copy())
        elif isinstance(key, exp.Column) and not key.table and key.name.casefold() in aliases:
            key.replace(aliases[key.name.casefold()].copy())
        elif isinstance(key, exp.Var) or any(
            not column.table and column.name.casefold() in aliases for column in key.find_all(exp.Column)
        ):
            return False
    return True


def _reads_alias(items: list[exp.Expr], asking: list[exp.Expr]) -> bool:
    """Whether an item may read another, or a field of it, by its alias, which has no column in the FROM."""
    aliases = {item.alias.casefold() for item in items if isinstance(item, exp.Alias)}
    columns = [column for part in (*items, *asking) for column in part.find_all(exp.Column)]
    return any((column.table or column.name).casefold() in aliases for column in columns)


class Columns:
    """The columns that the parts read from ``rows``, each once."""

    def __init__(self) -> None:
        self.expressions: list[exp.Expr] = []
        self._names: dict[str, str] = {}

    def over(self, item: exp.Expr, name: Callable[[exp.Expr], str]) -> exp.Expr:
        """An item of the select list over ``rows``: computed there, unless it asks."""
        return self.moved(item) if holds_call(item) else self.kept(item, name)

    def kept(self, item: exp.Expr, name: Callable[[exp.Expr], str]) -> exp.Expr:
        """An item that is computed in ``rows``, under the name that DuckDB gives it."""
        written = item.alias_or_name if isinstance(item, exp.Alias | exp.Column) else name(item)
        alias = ITEM.format(len(self.expressions))
        self.expressions.append(exp.alias_(item.unalias(), alias))
        return exp.alias_(exp.column(alias), written, quoted=True)

    def moved(self, part: exp.Expr) -> exp.Expr:
        """The part with its columns taken from ``rows``."""
        for column in list(part.find_all(exp.Column)):
            column.replace(self.column(column))
        return part

    def column(self, value: exp.Expr) -> exp.Column:
        """The column of ``rows`` that holds a value."""
        written = value.sql(dialect="duckdb")
        if written not in self._names:
            self._names[written] = COLUMN.format(len(self._names))
            self.expressions.append(exp.alias_(value.copy(), self._names[written]))
        return exp.column(self._names[written])


def _rows(block: exp.Select, expressions: list[exp.Expr], conditions: list[exp.Expr], order: exp.Order) -> exp.Select:
    rows = exp.Select(expressions=expressions or [exp.alias_(exp.Literal.number(1), ITEM.format("x"))])
    for key in SOURCES:
        held = block.args.get(key)
        rows.set(key, [part.copy() for part in held] if isinstance(held, list) else held.copy() if held else None)
    set_condition(rows, "where", conditions)
    rows.set("order", order if order.expressions else None)
    return rows


def numbered(rows: exp.Select, block: exp.Select) -> exp.Select:
    """The rows with their numbers, and what the block can name around them."""
    number = exp.Window(this=exp.RowNumber())
    query = exp.Select(expressions=[exp.Star(), exp.alias_(number, ROW)]).from_(rows.subquery("__ordered", copy=False))
    query.set("with_", visible_ctes(block))
    return query


def _limited(kept: list[exp.Expr], block: exp.Select) -> exp.Select:
    query = exp.Select(expressions=[exp.Star()], where=exp.Where(this=conjunction(kept)), order=_by_row())
    _copy_limit(block, query)
    return query


def _copy_limit(block: exp.Select, query: exp.Select) -> None:
    query.set("limit", block.args["limit"].copy())
    query.set("offset", block.args["offset"].copy() if block.args.get("offset") else None)


def _by_row() -> exp.Order:
    return exp.Order(expressions=[exp.Ordered(this=exp.column(ROW), nulls_first=False)])


def batches(total: int, first: int, passed: Callable[[int, int], int], need: int) -> Iterator[int]:
    """Ask rows ``low < row <= high`` until ``need`` of them pass; yields the rows asked so far after each batch.

    passed: asks a batch and says how many of it pass. Batches grow with the rows that are likely to be needed.
    """
    low, found, size = 0, 0, first
    while low < total and found < need:
        high = min(low + size, total)
        found += passed(low, high)
        low = high
        yield low
        likely = (need - found) * low // max(found, 1)
        size = min(max(first, likely), 4 * low)

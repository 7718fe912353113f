"""Which rows of one side of a join have a partner: a filter before the join then asks what one after it would.

``x JOIN t ON x.k = t.k`` gives no row of x whose key t does not have, so ``k IN (SELECT k FROM t ...)`` may stand in x,
before its calls. The keys are those of the rows of t that come out themselves: with what the statement asks of t alone,
and with a partner in the tables that t is joined to (a semi-join reduction: Bernstein and Chiu 1981). It is exact for
joins on equal keys that form a tree; otherwise rows without a partner may be left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlglot import exp

from vllm_relational.sql.blocks import condition_of, conjuncts
from vllm_relational.sql.parse import holds_call
from vllm_relational.sql.passes.sources import FromTable

_INNER = ("", "INNER", "CROSS")
# False or NULL where one of their operands is NULL.
_STRICT = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike, exp.Between, exp.In)
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod)


def partner_keys(
    block: exp.Select, source: FromTable, sources: Sequence[FromTable]
) -> Iterator[tuple[list[str], exp.Select]]:
    """Columns of the source, and the query for the values of which they must have one to come out of the block."""
    for other in sources:
        if other is source or not _is_readable(block, other) or _is_unknown(block, source, other):
            continue
        if (source.join is None or source.join.side != "LEFT") and not _must_match(block, other):
            continue
        pairs = list(_equations(block, source, other))
        if pairs:
            mine, theirs = zip(*pairs, strict=True)
            yield list(mine), _keys(block, other, theirs, source, [each for each in sources if each is not source])


def _keys(
    block: exp.Select, table: FromTable, names: Sequence[str], source: FromTable, sources: Sequence[FromTable]
) -> exp.Select:
    """The keys of the rows of ``table`` that may come out; ``sources``: the tables that are not on the way to it."""
    keys = exp.Select(expressions=[exp.column(name, table.alias) for name in names]).from_(table.table.copy())
    for part in _necessary(block, table, source):
        if _tables(part) == {table.alias.casefold()} and not part.find(exp.Query):
            keys.where(part.copy(), copy=False)
    rest = [each for each in sources if each is not table]
    for other in rest if not _extends(block) else ():
        if not _is_readable(block, other) or _is_unknown(block, source, other) or not _must_match(block, other):
            continue
        pairs = list(_equations(block, table, other))
        if pairs:
            mine, theirs = zip(*pairs, strict=True)
            columns = [exp.column(name, table.alias) for name in mine]
            keys.where(is_one_of(columns, _keys(block, other, theirs, source, rest)), copy=False)
    return keys


def is_one_of(columns: Sequence[exp.Expr], keys: exp.Select) -> exp.Expr:
    """``(a, b) IN (SELECT ...)``."""
    one = exp.paren(columns[0], copy=False) if len(columns) == 1 else exp.Tuple(expressions=list(columns))
    return exp.In(this=one, query=keys.subquery(copy=False))


def _extends(block: exp.Select) -> bool:
    """Whether a join may give rows in which tables before it are NULL: then no table needs a partner in another."""
    return any(join.side in ("RIGHT", "FULL") for join in block.args.get("joins") or [])


def _must_match(block: exp.Select, other: FromTable) -> bool:
    """Whether every row that comes out has one of ``other`` in it."""
    if other.join is None or (not other.join.side and other.join.kind in (*_INNER, "SEMI")):
        return True
    return other.join.side == "LEFT" and not _extends(block) and rejects_nulls(block, other)


def rejects_nulls(block: exp.Select, other: FromTable) -> bool:
    """Whether WHERE, or the ON of an inner join, drops the rows in which an optional table has no partner."""
    for part in (plain.unnest() for plain in _of_all_rows(block)):
        operands = [part.args.get("this"), part.args.get("expression")] if isinstance(part, _STRICT) else []
        if any(_is_null_with(operand, other.alias.casefold()) for operand in operands):
            return True
    return False


def _is_null_with(operand: exp.Expr | None, table: str) -> bool:
    """Whether the operand is NULL where the columns of the table are."""
    plain = operand.unnest() if operand is not None else None
    if isinstance(plain, _ARITHMETIC):
        return _is_null_with(plain.this, table) or _is_null_with(plain.expression, table)
    return isinstance(plain, exp.Column) and plain.table.casefold() == table


def _of_all_rows(block: exp.Select) -> list[exp.Expr]:
    """Conditions without calls that hold for every row that comes out."""
    joins = [] if _extends(block) else block.args.get("joins") or []
    inner = [join for join in joins if not join.side and join.kind in _INNER]
    parts = [part for join in inner for part in conjuncts(join.args.get("on"))] + condition_of(block, "where")
    return [part for part in parts if not holds_call(part)]


def _necessary(block: exp.Select, *tables: FromTable) -> list[exp.Expr]:
    """Conditions that rows of these tables meet where they come out together."""
    own = [table.join for table in tables if table.join is not None]
    parts = [part for join in own for part in conjuncts(join.args.get("on")) if not holds_call(part)]
    return [*parts, *(part for part in _of_all_rows(block) if not any(part is known for known in parts))]


def _equations(block: exp.Select, source: FromTable, other: FromTable) -> Iterator[tuple[str, str]]:
    """Pairs of column names, the source's and the other's, that the joins make equal."""
    if len(block.args.get("joins") or []) == 1:
        join = block.args["joins"][0]
        yield from ((name.name, name.name) for name in join.args.get("using") or [])
    wanted = {source.alias.casefold(), other.alias.casefold()}
    for part in (plain.unnest() for plain in _necessary(block, source, other)):
        if isinstance(part, exp.EQ) and isinstance(part.this, exp.Column) and isinstance(part.expression, exp.Column):
            sides = {side.table.casefold(): side.name for side in (part.this, part.expression)}
            if set(sides) == wanted:
                yield sides[source.alias.casefold()], sides[other.alias.casefold()]


def _tables(part: exp.Expr) -> set[str]:
    return {column.table.casefold() for column in part.find_all(exp.Column)}


def _is_readable(block: exp.Select, other: FromTable) -> bool:
    """Whether the table can be read in a subquery without asking anything."""
    if not isinstance(other.table, exp.Table) or holds_call(other.table):
        return False
    name = other.table.name.casefold()
    return not any(cte.alias.casefold() == name and holds_call(cte) for cte in block.root().find_all(exp.CTE))


def _is_unknown(block: exp.Select, source: FromTable, other: FromTable) -> bool:
    """Whether the source's body stands before the other table's WITH entry: there the name is another table's."""
    names = [cte.alias.casefold() for cte in block.root().find_all(exp.CTE)]
    entry, own = other.table.name.casefold(), source.table.name.casefold()
    if entry not in names or not isinstance(source.table, exp.Table):
        return False
    return names.count(entry) > 1 or names.index(entry) > names.index(own)

"""Blocks of SQL: which SELECT a call stands in, in which clause, and the query for the rows that it is asked for.

A call is replaced by a *lookup*, a function of its arguments' key that knows the answers. The input of a call is a
query over the same FROM, so it can be written only after the calls that this FROM and the clauses before need have
become lookups: callers go through a block in the order in which SQL evaluates its clauses.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

from sqlglot import exp

from vllm_relational.sql.parse import DIALECT, calls, holds_call, is_call
from vllm_relational.sql.parse import sql_of as sql_of
from vllm_relational.sql.row_functions import is_window

LOOKUP = "__llm_"
SOURCES = ("from_", "joins", "laterals")
ARGUMENT, GUARD, KEY = "__a{}", "__guard", "__key"
_KEY_FUNCTIONS = ("to_json", "list_value")
# Marks a CASE that holds a guard, so that a forecast can tell it from the user's.
GUARD_META = "guard"


@dataclass(frozen=True)
class Site:
    """Where a call stands.

    block:   its SELECT.
    clause:  'from', 'where', 'group', 'having' or 'select' (the list, QUALIFY, ORDER BY, DISTINCT ON).
    join:    the place of its join in the block, for the clause 'from'; -1 for the first table.
    within:  it is part of a table of the FROM, as in unnest([...]) or VALUES, and not of a join's condition.
    grouped: it is computed once a group, not once a row.
    """

    block: exp.Select
    clause: str
    join: int = -1
    grouped: bool = False
    within: bool = False


class Aggregates:
    """Which functions aggregate: those that sqlglot knows, and the others by ``names``, DuckDB's in lower case.

    names: asked for at a function that needs them, as DuckDB takes 15 ms to list its functions.
    """

    def __init__(self, names: Callable[[], Container[str]] = tuple) -> None:
        self._names = names

    def is_aggregate(self, node: exp.Expr) -> bool:
        """Whether the node aggregates the rows of a group; over a window it does not."""
        known = isinstance(node, exp.AggFunc | exp.Filter | exp.WithinGroup)
        foreign = isinstance(node, exp.Anonymous) and not _is_ours(node)
        return (known or (foreign and node.name.casefold() in self._names())) and not _windowed(node)

    def within(self, tree: exp.Expr) -> bool:
        """Whether an aggregate stands in ``tree``, outside of subqueries."""
        return any(self.is_aggregate(node) for node in own_nodes(tree))

    def groups(self, block: exp.Select) -> bool:
        """Whether the block makes groups of its rows."""
        clauses = (block.args.get("having"), block.args.get("order"), block.args.get("qualify"))
        return block.args.get("group") is not None or any(
            self.within(part) for part in (*block.expressions, *clauses) if part is not None
        )


def _is_ours(node: exp.Anonymous) -> bool:
    return is_call(node) or node.name.startswith(LOOKUP) or node.name in _KEY_FUNCTIONS


def _windowed(node: exp.Expr) -> bool:
    parent = node.parent
    while isinstance(parent, exp.Filter | exp.IgnoreNulls | exp.RespectNulls | exp.WithinGroup):
        node, parent = parent, parent.parent
    return isinstance(parent, exp.Window) and parent.this is node


def own_nodes(tree: exp.Expr) -> Iterator[exp.Expr]:
    """The nodes of ``tree`` without those of subqueries in it."""
    return tree.walk(prune=lambda node: isinstance(node, exp.Query) and node is not tree)


def site_of(call: exp.Expr, aggregates: Aggregates) -> Site:
    """Where a call stands; raises ``LookupError`` when it stands in no SELECT."""
    node, below, inside = call, call, False
    while node.parent is not None and not isinstance(node.parent, exp.Select):
        inside = inside or (node is not call and aggregates.is_aggregate(node))
        node, below = node.parent, node
    block = node.parent
    inside = inside or (node is not call and aggregates.is_aggregate(node))
    if block is None:
        raise LookupError
    clause = "from" if node.arg_key in SOURCES else str(node.arg_key)
    clause = clause if clause in ("from", "where", "group", "having") else "select"
    grouped = clause in ("having", "select") and not inside and aggregates.groups(block)
    join = block.args["joins"].index(node) if isinstance(node, exp.Join) else -1
    within = clause == "from" and not (isinstance(node, exp.Join) and below.arg_key == "on")
    return Site(block, clause, join, grouped, within)


# ------------------------------------------------------------------------------------------------------ conjunctions
def conjuncts(condition: exp.Expr | None) -> list[exp.Expr]:
    """``a AND (b AND c)`` -> a, b, c."""
    if condition is None:
        return []
    plain = condition.unnest()
    if isinstance(plain, exp.And):
        return [*conjuncts(plain.this), *conjuncts(plain.expression)]
    return [condition]


def conjunction(parts: Sequence[exp.Expr]) -> exp.Expr | None:
    """Copies of the parts, joined by AND; None for none."""
    return exp.and_(*(part.copy() for part in parts), copy=False) if parts else None


def condition_of(block: exp.Select, clause: str) -> list[exp.Expr]:
    """The conjuncts of WHERE, HAVING or QUALIFY."""
    held = block.args.get(clause)
    return conjuncts(held.this) if held is not None else []


def set_condition(block: exp.Select, clause: str, parts: Sequence[exp.Expr]) -> None:
    """Put conjuncts in place of those of WHERE or HAVING."""
    kinds = {"where": exp.Where, "having": exp.Having, "qualify": exp.Qualify}
    whole = conjunction(parts)
    block.set(clause, kinds[clause](this=whole) if whole is not None else None)


Instead = Callable[[exp.Expr, exp.Expr], exp.Expr]


def relaxed(
    condition: exp.Expr,
    waits: Callable[[exp.Expr], bool],
    holds: bool = True,
    instead: Instead = lambda _, value: value,
) -> exp.Expr:
    """A copy of a condition of WHERE that is TRUE wherever it may come out TRUE, whatever the parts that wait say.

    waits: whether a part depends on answers that nobody has. holds: False under a NOT: FALSE where it may be.
    instead: of a part that waits and the truth value that it is taken to have, what stands in its place.
    """
    match condition:
        case exp.And() | exp.Or():
            sides = (relaxed(side, waits, holds, instead) for side in (condition.this, condition.expression))
            return type(condition)(this=next(sides), expression=next(sides))
        case exp.Not() | exp.Paren():
            inner = relaxed(condition.this, waits, holds != isinstance(condition, exp.Not), instead)
            return type(condition)(this=inner)
    if waits(condition):
        return instead(condition, exp.true() if holds else exp.false())
    return condition.copy()


def keep_conditions(clause: exp.Expr, parts: Sequence[exp.Expr]) -> None:
    """Leave only these of the conjuncts of a WHERE, HAVING or QUALIFY, in place.

    QUALIFY needs a window somewhere in its block: without one it is a WHERE, or in a block with groups a HAVING.
    """
    block = clause.parent
    whole = conjunction(parts)
    if not isinstance(clause, exp.Qualify) or not isinstance(block, exp.Select):
        clause.set("this", whole or exp.true())
        return
    clause.set("this", whole)
    if whole is not None and any(is_window(node) for part in (*block.expressions, clause) for node in own_nodes(part)):
        return
    block.set("qualify", None)
    if whole is not None:
        other = "having" if block.args.get("group") is not None else "where"
        set_condition(block, other, [*condition_of(block, other), whole])


def group_keys(group: exp.Group) -> list[exp.Expr]:
    """What a GROUP BY groups by, one by one: also within ROLLUP, CUBE and GROUPING SETS."""
    held = [*group.expressions]
    for kind in ("rollup", "cube", "grouping_sets"):
        held += group.args.get(kind) or []
    found: list[exp.Expr] = []
    while held:
        part = held.pop(0)
        if isinstance(part, exp.Rollup | exp.Cube | exp.GroupingSets | exp.Tuple):
            held[:0] = part.expressions
        elif isinstance(part, exp.Paren):
            held.insert(0, part.this)
        else:
            found.append(part)
    return found


# ------------------------------------------------------------------------------------------------------------- keys
def key_of(arguments: Sequence[exp.Expr], keeps_nulls: bool) -> exp.Expr:
    """The expression whose value tells inputs apart: a text, the only argument's own where that is enough."""
    texts = [exp.cast(argument.copy(), "VARCHAR", dialect=DIALECT) for argument in arguments]
    if len(texts) == 1 and not keeps_nulls:
        return texts[0]
    to_json, list_value = _KEY_FUNCTIONS
    array = exp.Anonymous(this=to_json, expressions=[exp.Anonymous(this=list_value, expressions=texts)])
    return exp.cast(array, "VARCHAR", dialect=DIALECT)


def lookup(name: str, key: exp.Expr) -> exp.Anonymous:
    """The call of a lookup function."""
    return exp.Anonymous(this=name, expressions=[key])


def lookups(tree: exp.Expr) -> Iterator[exp.Anonymous]:
    """Every lookup in ``tree``."""
    return (node for node in tree.find_all(exp.Anonymous) if node.name.startswith(LOOKUP))


# ------------------------------------------------------------------------------------------------------ input queries
def visible_ctes(block: exp.Expr) -> exp.With | None:
    """Copies of the common table expressions that ``block`` can name, the outermost first."""
    seen: dict[str, exp.CTE] = {}
    node: exp.Expr | None = block
    recursive = False
    while node is not None:
        held = node.args.get("with_")
        if held is not None:
            recursive = recursive or bool(held.args.get("recursive"))
            nearer = seen
            seen = {cte.alias.casefold(): cte for cte in _before(held, block)}
            for name, cte in nearer.items():
                seen.pop(name, None)
                seen[name] = cte
        node = node.parent
    if not seen:
        return None
    return exp.With(expressions=[cte.copy() for cte in seen.values()], recursive=recursive or None)


def recursive_call(cte: exp.CTE) -> exp.Expr | None:
    """A call in a part of a common table expression that reads the expression itself; its first part may ask."""
    name, held = cte.alias.casefold(), cte.parent
    if not isinstance(held, exp.With) or not held.args.get("recursive"):
        return None
    for part in cte.this.find_all(exp.Select):
        reads = any(table.name.casefold() == name and not table.db for table in part.find_all(exp.Table))
        if reads and holds_call(part):
            return next(calls(part))
    return None


def _before(held: exp.With, block: exp.Expr) -> Iterator[exp.CTE]:
    """The expressions of a WITH that the block may name: all, or those before the one that it stands in."""
    for cte in held.expressions:
        if any(node is cte for node in _ancestors(block)):
            return
        yield cte


def _ancestors(node: exp.Expr | None) -> Iterator[exp.Expr]:
    while node is not None:
        yield node
        node = node.parent


def input_query(
    site: Site, arguments: Sequence[exp.Expr], guards: Sequence[exp.Expr], eager: bool, keeps_nulls: bool
) -> exp.Select:
    """One row for each row (or group) that needs an answer: the key and the arguments ``__a0``, ``__a1``, ...

    guards: conditions on the same rows that must hold for the answer to matter.
    eager:  take the rows before the other conditions of the clause, as a plan without optimiser does.
    """
    named = enumerate(_guarded(argument, guards) for argument in arguments)
    rows = exp.Select(expressions=[exp.alias_(argument, ARGUMENT.format(i)) for i, argument in named])
    if guards:
        rows.append("expressions", exp.alias_(_guarded(exp.true(), guards), GUARD))
    _take_rows(rows, site, eager)
    names = [exp.column(ARGUMENT.format(i)) for i in range(len(arguments))]
    query = exp.Select(expressions=[exp.alias_(key_of(names, keeps_nulls), KEY), *names]).from_(rows.subquery("__rows"))
    conditions: list[exp.Expr] = [] if keeps_nulls else [_not_null(name) for name in names]
    if guards:
        conditions.append(exp.column(GUARD))
    set_condition(query, "where", conditions)
    query.set("with_", visible_ctes(site.block))
    return query


def _guarded(value: exp.Expr, guards: Sequence[exp.Expr]) -> exp.Expr:
    """The value where all guards hold, else null; nothing is evaluated where a guard before it does not hold."""
    for guard in reversed(guards):
        value = exp.Case(ifs=[exp.If(this=guard.copy(), true=value.copy())])
        value.meta[GUARD_META] = True
    return value.copy()


def _take_rows(rows: exp.Select, site: Site, eager: bool) -> None:
    """FROM and what limits it, up to the clause of the call."""
    block = site.block
    for key in SOURCES:
        held = block.args.get(key)
        rows.set(key, [part.copy() for part in held] if isinstance(held, list) else held.copy() if held else None)
    if site.clause == "from":
        if site.within:
            _take_before(rows, site)
        else:
            _take_pairs(rows, site, eager)
        return
    if site.clause != "where" or not eager:
        set_condition(rows, "where", _possible(block, "where"))
    if site.grouped:
        rows.set("group", block.args["group"].copy() if block.args.get("group") else None)
        if site.clause != "having" or not eager:
            set_condition(rows, "having", _possible(block, "having"))
    if block.args.get("windows"):
        rows.set("windows", [window.copy() for window in block.args["windows"]])


def _possible(block: exp.Select, clause: str) -> list[exp.Expr]:
    """What rows meet that may pass a condition whatever its calls say."""
    parts = (relaxed(part, holds_call) for part in condition_of(block, clause))
    return [part for part in parts if part.unnest() != exp.true()]


def rows_before(block: exp.Select) -> exp.Select:
    """The rows of a block that pass the conditions of its WHERE without calls; the select list is left open."""
    rows = exp.Select()
    _take_rows(rows, Site(block, "where"), eager=False)
    rows.set("with_", visible_ctes(block))
    return rows


def rows_read(block: exp.Select, parts: Sequence[exp.Expr]) -> exp.Select:
    """The rows of a block before the conditions ``parts``, with all columns that these read, as one row of counts."""
    rows = rows_before(block)
    columns = {sql_of(column): column for part in parts for column in part.find_all(exp.Column)}
    read = [exp.Count(this=column.copy()) for column in columns.values() if not column.is_star]
    rows.set("expressions", [*read, exp.Count(this=exp.Star())])
    return rows


def _take_before(rows: exp.Select, site: Site) -> None:
    """The rows of the tables before the one that the call is part of; one row before the first."""
    if site.join < 0:
        rows.set("from_", None)
    rows.set("joins", rows.args["joins"][: site.join] if site.join > 0 else None)
    rows.set("laterals", None)


def _take_pairs(rows: exp.Select, site: Site, eager: bool) -> None:
    """The pairs of an outer join: all, or those that the rest of its condition admits."""
    joins = rows.args["joins"][: site.join + 1]
    join = joins[-1]
    kept = [] if eager else [part for part in conjuncts(join.args.get("on")) if not holds_call(part)]
    joins[-1] = exp.Join(this=join.this, on=conjunction(kept) or exp.true())
    rows.set("joins", joins)
    rows.set("laterals", None)


def _not_null(column: exp.Expr) -> exp.Expr:
    return exp.Not(this=exp.Is(this=column.copy(), expression=exp.Null()))


def per_outer_row(query: exp.Select, outer: exp.Select, block: exp.Select) -> exp.Select:
    """The input of a call in a subquery that reads the rows around it: the subquery's, for every row of ``outer``."""
    inner = query.copy()
    inner.set("with_", _only_inside(query, outer))
    columns = [exp.column(name, "__inner") for name in query.named_selects]
    around = exp.Select(expressions=columns)
    in_from = _take_tables_before(around, outer, block)
    if around.args.get("from_") is None:
        around.set("from_", exp.From(this=inner.subquery("__inner")))
    else:
        lateral = exp.Lateral(this=inner.subquery(), alias=exp.TableAlias(this=exp.to_identifier("__inner")))
        around.append("joins", exp.Join(this=lateral, kind="CROSS"))
    free = [part for part in condition_of(outer, "where") if not holds_call(part) and not part.find(exp.Query)]
    set_condition(around, "where", [] if in_from else free)
    around.set("with_", visible_ctes(outer))
    return around


def _only_inside(query: exp.Select, outer: exp.Select) -> exp.With | None:
    """The common table expressions of an input query that ``outer`` cannot name: they may read its rows."""
    held: exp.With | None = query.args.get("with_")
    around = visible_ctes(outer)
    known = {cte.alias.casefold() for cte in around.expressions} if around is not None else set()
    kept = [cte.copy() for cte in held.expressions if cte.alias.casefold() not in known] if held is not None else []
    return exp.With(expressions=kept, recursive=held.args.get("recursive")) if held is not None and kept else None


def _take_tables_before(around: exp.Select, outer: exp.Select, block: exp.Select) -> bool:
    """The tables of ``outer`` that ``block`` may read: those before it, where it stands in the FROM itself."""
    place = next((node for node in _ancestors(block) if node.parent is outer), None)
    for key in SOURCES:
        held = outer.args.get(key)
        if isinstance(held, list):
            stop = next((number for number, part in enumerate(held) if part is place), len(held))
            around.set(key, [part.copy() for part in held[:stop]])
        elif held is not None and held is not place:
            around.set(key, held.copy())
    return place is not None and place.arg_key in SOURCES

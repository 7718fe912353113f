"""SQL that means the same and says it in fewer ways: what the planner relies on.

Statements first (``normalise``), blocks when the planner comes to them (``normalise_block``), as telling an alias from
a column needs the block's FROM to be free of calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from sqlglot import exp

from vllm_relational.sql.blocks import Aggregates, condition_of, conjuncts, group_keys, own_nodes, set_condition
from vllm_relational.sql.functions import LLM_FUNCTIONS, Argument, asks_groups
from vllm_relational.sql.parse import calls, error_here, holds_call, is_call, is_retrieval, sql_of
from vllm_relational.sql.passes.guards import bounds_of
from vllm_relational.sql.retrieve import spell_tables

VOLATILE = {"random", "rand", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "nextval", "setseed"}
ARGUMENTS_META, WRITTEN_META = "arguments", "written"


def normalise(tree: exp.Expr, sql: str, name_of: Callable[[exp.Expr], str] = sql_of) -> None:
    """Change the tree in place; raises ``SQLError`` for what cannot be planned.

    name_of: what DuckDB calls a column without alias.
    """
    for query in tree.find_all(exp.Select):
        _join_behind_from(query)
    for call in calls(tree):
        _refuse_aggregation(call, sql)
        _refuse_expansion(call, sql)
        call.meta[WRITTEN_META] = _one_line(call)
        call.meta[ARGUMENTS_META] = [None if given.is_star else argument_of(given) for given in call.expressions]
    _rename_shadows(tree)
    for query in list(tree.find_all(exp.Select)):
        _name_items(query, name_of)
        _move_inner_conditions(query)
        _tell_bounds(query)
    for call in list(calls(tree)):
        if asks_groups(call.name.upper()):
            _aggregate_values(call, sql)
    spell_tables(tree, sql)


def _join_behind_from(query: exp.Select) -> None:
    """``FROM a, b SELECT ...``: the parser hangs b on a; as everywhere else, it is a join of the query."""
    held = query.args.get("from_")
    if held is not None and held.this.args.get("joins"):
        joins = [*held.this.args["joins"], *(query.args.get("joins") or [])]
        held.this.set("joins", None)
        query.set("joins", joins)


def argument_of(column: exp.Expr) -> Argument:
    """How the prompt may name an argument: columns and passages by their name, calls by their function's, else SQL."""
    if isinstance(column, exp.Order):
        return argument_of(column.this)
    if is_call(column):
        return Argument(column.name.lower())
    if isinstance(column, exp.Dot) and is_retrieval(column.this.unnest()):
        return Argument(_without_braces(column.expression.name))
    if isinstance(column, exp.Column) and not isinstance(column.this, exp.Star):
        return Argument(_without_braces(column.name), _without_braces(column.table))
    return Argument(_without_braces(_one_line(column)))


def _one_line(node: exp.Expr) -> str:
    return " ".join(sql_of(node).split())


def _without_braces(name: str) -> str:
    """The prompt has braces of its own."""
    return name.replace("{", "(").replace("}", ")")


def refuse_volatile(tree: exp.Expr, sql: str) -> None:
    """The parts of a plan read the same rows one after the other: what changes in between cannot be joined back."""
    for node in tree.walk():
        sampled = isinstance(node, exp.TableSample)
        name = node.name if isinstance(node, exp.Anonymous) else node.sql_name() if isinstance(node, exp.Func) else ""
        if sampled or name.casefold() in VOLATILE:
            what = "a sample" if sampled else "random()" if name == "RAND" else f"{name.lower()}()"
            fix = "CREATE TEMP TABLE picked AS SELECT ... first, then ask about it"
            raise error_here(sql, node, f"{what} gives other rows each time it runs: {fix}")


def _rename_shadows(tree: exp.Expr) -> None:
    """A name of its own for every common table expression of a name that several have: input queries hold them all."""
    ctes = list(tree.find_all(exp.CTE))
    counts = Counter(cte.alias.casefold() for cte in ctes)
    shadows = {id(cte): f"{cte.alias}__{place}" for place, cte in enumerate(ctes) if counts[cte.alias.casefold()] > 1}
    if not shadows:
        return
    for table in list(tree.find_all(exp.Table)):
        cte = _definition(table)
        if cte is not None and id(cte) in shadows:
            alias = table.args.get("alias") or exp.TableAlias(this=table.this.copy())
            if not alias.args.get("this"):
                alias.set("this", table.this.copy())
            table.set("alias", alias)
            table.set("this", exp.to_identifier(shadows[id(cte)], quoted=True))
    for cte in ctes:
        if id(cte) in shadows:
            cte.args["alias"].set("this", exp.to_identifier(shadows[id(cte)], quoted=True))


def _definition(table: exp.Table) -> exp.CTE | None:
    """The common table expression that a table's name stands for; None for a table of the database."""
    name = "" if table.db else table.name.casefold()
    below: exp.Expr = table
    node = table.parent
    while node is not None:
        held: exp.With | None = node if isinstance(node, exp.With) else node.args.get("with_")
        entries: list[exp.CTE] = held.expressions if held is not None else []
        inside = next((place for place, cte in enumerate(entries) if cte is below), None)
        if inside is not None:  # the table stands in an entry, which names those before it, and itself if recursive
            entries = entries[: inside + bool(held is not None and held.args.get("recursive"))]
        elif below is held:
            entries = []  # decided when the walk was at the WITH
        for cte in reversed(entries):
            if cte.alias.casefold() == name:
                return cte
        below, node = node, node.parent
    return None


def _refuse_aggregation(call: exp.Anonymous, sql: str) -> None:
    """What belongs to aggregates cannot stand with a call that is asked row by row."""
    name, held = call.name.upper(), call.parent
    if isinstance(held, exp.Window) and call.arg_key == "this":
        fix = "use GROUP BY" if asks_groups(name) else f"aggregate its answers: max({name}(...)) OVER (...)"
        raise error_here(sql, call, f"{name} cannot run over a window: {fix}")
    if isinstance(held, exp.Filter) and not asks_groups(name):
        raise error_here(sql, call, f"{name} takes no FILTER: write CASE WHEN condition THEN {name}(...) END")
    if any(isinstance(given, exp.Distinct) for given in call.expressions):
        fix = "SELECT DISTINCT in a subquery" if asks_groups(name) else "equal inputs are asked once anyway"
        raise error_here(sql, call, f"{name} takes no DISTINCT: {fix}")


def _refuse_expansion(call: exp.Anonymous, sql: str) -> None:
    """Arguments of which DuckDB makes several calls, or other columns than the star's own."""
    for given in call.expressions:
        if given.find(exp.Columns) is not None or is_reshaped(given):
            fix = "write the columns out, or t.* and t.* EXCLUDE (...) for all of them as arguments of one question"
            raise error_here(
                sql, call, f"{call.name.upper()} takes no COLUMNS(...) and no star that changes columns: {fix}"
            )


def is_reshaped(item: exp.Expr) -> bool:
    """Whether an item is a star that gives other than the columns under their names: REPLACE, RENAME, ``* LIKE``."""
    star = item.this if isinstance(item, exp.Column) else item
    if isinstance(star, exp.Star):
        return any(value for key, value in star.args.items() if key != "except_")
    pattern = item.this if isinstance(item, exp.Not) else item
    return isinstance(pattern, exp.Like | exp.ILike | exp.Glob | exp.SimilarTo) and pattern.this.is_star


def _name_items(query: exp.Select, name_of: Callable[[exp.Expr], str]) -> None:
    """Give calls in the select list the column names that a user expects: replaced calls would show lookups."""
    for item in list(query.expressions):
        if not isinstance(item, exp.Alias) and not item.is_star and holds_call(item):
            name = item.name.lower() if is_call(item) else name_of(item)
            item.replace(exp.Alias(this=item.copy(), alias=exp.to_identifier(name, quoted=True)))


def _move_inner_conditions(query: exp.Select) -> None:
    """``a JOIN b ON x AND LLM_FILTER(...)`` -> ``a JOIN b ON x WHERE LLM_FILTER(...)``, for inner joins.

    Not under a later RIGHT or FULL join, whose WHERE would drop rows that its ON keeps.
    """
    first = query.args.get("from_")
    moved: list[exp.Expr] = []
    for join in _inner_joins(first.this if first is not None else None, query.args.get("joins") or []):
        parts = conjuncts(join.args.get("on"))
        asking = [part for part in parts if holds_call(part)]
        if asking:
            moved += asking
            kept = [part for part in parts if not holds_call(part)]
            join.set("on", exp.and_(*kept) if kept else exp.true())
    if moved:
        where = query.args.get("where")
        set_condition(query, "where", [*(conjuncts(where.this) if where else []), *moved])


def _tell_bounds(query: exp.Select) -> None:
    """``x BETWEEN a AND LLM_SCORE(...)`` is ``x >= a`` as well: a condition that other calls of WHERE come after."""
    parts = condition_of(query, "where")
    told = [bound for part in parts for bound in bounds_of(part)]
    if told:
        set_condition(query, "where", [*told, *parts])


def _inner_joins(table: exp.Expr | None, joins: list[exp.Join]) -> Iterator[exp.Join]:
    """The joins of a FROM whose condition drops rows as WHERE does, those in parentheses too."""
    last = max((i for i, join in enumerate(joins) if join.side in ("RIGHT", "FULL")), default=-1)
    pairs = any(join.method in ("ASOF", "POSITIONAL") for join in joins)  # with other rows they find other partners
    if last < 0 and not pairs:
        yield from _joins_inside(table)
    for join in joins[last + 1 :]:
        if not join.side and join.kind in ("", "INNER", "CROSS"):
            yield from () if pairs else _joins_inside(join.this)
            yield join


def _joins_inside(table: exp.Expr | None) -> Iterator[exp.Join]:
    """Those of ``(a JOIN b ON ...)``, whose tables can be named outside unless the whole has a name."""
    if isinstance(table, exp.Subquery) and not table.alias:
        if isinstance(table.this, exp.Table):
            yield from _inner_joins(table.this, table.this.args.get("joins") or [])
        yield from _joins_inside(table.this)


def _aggregate_values(call: exp.Anonymous, sql: str) -> None:
    """``LLM_AGG(p, c) FILTER (WHERE x)`` -> a call over ``list(c ORDER BY c) FILTER (WHERE c IS NOT NULL AND x)``."""
    if len(call.expressions) != 2:
        return  # the planner says what is wrong
    given = call.expressions[1]
    if given.is_star:
        raise error_here(sql, call, f"LLM_AGG takes one column: write {LLM_FUNCTIONS['LLM_AGG'].usage}")
    order = given if isinstance(given, exp.Order) else None
    column = order.this if order is not None else given
    text = exp.cast(column.copy(), "VARCHAR")
    ordered = order.expressions if order is not None else [exp.Ordered(this=text.copy(), nulls_first=False)]
    values: exp.Expr = exp.ArrayAgg(this=exp.Order(this=text, expressions=[part.copy() for part in ordered]))
    condition: exp.Expr = exp.Not(this=exp.Is(this=column.copy(), expression=exp.Null()))
    held = call.parent
    if isinstance(held, exp.Filter):
        condition = exp.and_(condition, held.expression.this.copy())
        held.replace(call)
    call.set("expressions", [call.expressions[0], exp.Filter(this=values, expression=exp.Where(this=condition))])


def expand_stars(call: exp.Anonymous, expand: Callable[[exp.Expr], list[exp.Expr]]) -> None:
    """Write out ``*`` and ``t.*`` among the arguments of a call, in place."""
    given, names = call.expressions, call.meta[ARGUMENTS_META]
    if not any(argument.is_star for argument in given):
        return
    pairs = [
        (column, argument_of(column) if argument.is_star else name)
        for argument, name in zip(given, names, strict=True)
        for column in (expand(argument) if argument.is_star else [argument])
    ]
    call.set("expressions", [column for column, _ in pairs])
    call.meta[ARGUMENTS_META] = [name for _, name in pairs]


# ---------------------------------------------------------------------------------------------------------- blocks
def normalise_block(block: exp.Select, aggregates: Aggregates, is_column: Callable[[str], bool], sql: str) -> None:
    """Write out what GROUP BY and the other clauses take from the select list by number or alias.

    is_column: whether the block's FROM has a column of that name, which then wins over an alias; in HAVING only where
    the block groups by it or an aggregate reads it.
    """
    if not holds_call(block):
        return
    _spell_groups(block, aggregates, sql)
    # From the last to the first: an item may read those before it, and of two with one alias the nearest.
    for place, item in reversed([*enumerate(block.expressions)]):
        name = item.alias.casefold() if isinstance(item, exp.Alias) else ""
        for column in _uses(block, name, place) if name else ():
            if _goes_by_alias(column, block, aggregates):
                column.replace(_spelled(item.this, block, aggregates, is_column, sql))
            elif not is_column(name):
                column.replace(exp.paren(item.this.copy()))


def _uses(block: exp.Select, name: str, place: int) -> Iterator[exp.Column]:
    """Unqualified columns of that name where DuckDB admits the alias of the item there and calls or inputs may read it.

    ORDER BY finds aliases by itself, and so does the select list where it asks nothing.
    """
    parts = [block.args.get(clause) for clause in ("where", "group", "having", "qualify")]
    for part in [*parts, *(item for item in block.expressions[place + 1 :] if holds_call(item))]:
        for node in list(own_nodes(part)) if part is not None else []:
            if isinstance(node, exp.Column) and not node.table and node.name.casefold() == name:
                yield node


def _goes_by_alias(use: exp.Column, block: exp.Select, aggregates: Aggregates) -> bool:
    """Whether a name in HAVING is no column there: no aggregate reads it, and the block does not group by it."""
    node: exp.Expr | None = use
    while node is not None and not isinstance(node, exp.Having):
        if aggregates.is_aggregate(node):
            return False
        node = node.parent
    return node is not None and use.name.casefold() not in _grouped_columns(block)


def _grouped_columns(block: exp.Select) -> set[str]:
    group = block.args.get("group")
    keys = group_keys(group) if group is not None else []
    return {key.name.casefold() for key in keys if isinstance(key, exp.Column)}


def _spelled(
    expression: exp.Expr, block: exp.Select, aggregates: Aggregates, is_column: Callable[[str], bool], sql: str
) -> exp.Expr:
    """What an alias in HAVING stands for, with the tables of columns for which DuckDB would find an alias there."""
    spelled = exp.paren(expression.copy(), copy=False)
    hidden = {item.alias.casefold() for item in block.expressions if isinstance(item, exp.Alias)}
    hidden -= _grouped_columns(block)
    for node in list(spelled.walk(prune=aggregates.is_aggregate)):
        name = node.name.casefold()
        if isinstance(node, exp.Column) and not node.table and name in hidden and is_column(name):
            if block.args.get("joins") or not block.args["from_"].alias_or_name:
                raise error_here(sql, node, f"an alias of the select list has the name {name}: write table.{name} here")
            node.set("table", exp.to_identifier(block.args["from_"].alias_or_name, quoted=True))
    return spelled


def _spell_groups(block: exp.Select, aggregates: Aggregates, sql: str) -> None:
    """GROUP BY ALL, GROUP BY 1 and CUBE (1, 2) -> the expressions that they stand for."""
    group = block.args.get("group")
    if group is None:
        return
    items = [item.this if isinstance(item, exp.Alias) else item for item in block.expressions]
    if group.args.get("all") and not group.expressions:
        if any(item.is_star for item in items):
            raise error_here(sql, block, "GROUP BY ALL beside * and an LLM function: name the columns to group by")
        group.set("all", None)
        group.set("expressions", [item.copy() for item in items if not aggregates.within(item)])
        return
    for part in group_keys(group):
        numbers = isinstance(part, exp.Literal) and not part.is_string and part.this.isdigit()
        if numbers and 1 <= int(part.this) <= len(items):
            part.replace(items[int(part.this) - 1].copy())

"""Which inputs of a call DuckDB evaluates when it runs the whole statement: no others are asked.

The input query of a call knows the block that the call stands in. What the rest of the statement does with the block's
rows (conditions outside, columns that nobody reads, ``count(*)``, semi-joins) DuckDB's optimiser knows: it pushes
conditions down and drops columns before it evaluates functions. So the statement runs once with the call as a lookup
that notes its keys, and of the block's inputs those that were noted are asked. A call whose answer is unknown is NULL
in that run, and conditions on it are left out where they only drop rows. Where an unknown answer decides which inputs
of its own call are evaluated, some are missing: the run that computes the result notes keys as well, and the statement
is planned again until none is missing.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import duckdb
from sqlglot import exp

from vllm_relational.sql.blocks import (
    Site,
    conjuncts,
    keep_conditions,
    key_of,
    lookup,
    lookups,
    own_nodes,
    relaxed,
    sql_of,
)
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.interrupts import interruptible
from vllm_relational.sql.operator_table import OperatorTable
from vllm_relational.sql.parse import calls, holds_call
from vllm_relational.sql.passes.unknown import unknown as unknown_value
from vllm_relational.sql.planned_call import PlannedCall
from vllm_relational.sql.row_functions import unnests

HERE_META = "probed"
# Functions of the types of their arguments.
_OF_TYPES = ("pg_typeof", "can_cast_implicitly", "get_type", "alias", "stats", "vector_type")
_DROPS_ROWS = ("having", "distinct", "qualify", "limit", "offset")


def evaluated(context: StatementContext, planned: PlannedCall, unknown: Container[str] = ()) -> set[str] | None:
    """The keys that DuckDB evaluates a call for, and perhaps more; None where its block's inputs are these.

    unknown: lookups that do not have all of their answers.
    """
    if not context.settings.optimize or not _has_consumer(planned.call, planned.site):
        return None
    query = _probe(context, planned, unknown)
    if query is None:
        return None
    try:
        with noted([planned.operator.table]), interruptible(context.connection):
            _run(context, query)
            return planned.operator.table.noted
    except duckdb.Error:  # NULL in place of an answer may be what a function refuses
        return None


@contextmanager
def noted(tables: Sequence[OperatorTable]) -> Iterator[None]:
    """While inside, the tables note the keys that are looked up, in ``noted``."""
    for table in tables:
        table.noted = set()
    try:
        yield
    finally:
        for table in tables:
            table.noted = None


def is_free(context: StatementContext, rows: exp.Select) -> bool:
    """Whether DuckDB computes these rows without an answer that is unknown."""
    unknown = context.answers_database.unknown
    try:
        with noted([unknown]), interruptible(context.connection):
            _run(context, rows)
            return not unknown.noted
    except duckdb.Error:  # the rows read columns of a query around them
        return False


def _run(context: StatementContext, query: exp.Expr) -> None:
    relation = context.connection.relation(sql_of(query))
    context.connection.called(relation.materialize)


def may_probe(tree: exp.Expr) -> bool:
    """Whether the statement has more than one block with all of its rows and columns as its result."""
    blocks = list(tree.find_all(exp.Query))
    drops = any(block.args.get(key) for block in blocks for key in (*_DROPS_ROWS, "joins"))
    return len(blocks) > 1 or drops or any(_makes_rows(block) for block in blocks) or any(map(_may_fold, calls(tree)))


def _has_consumer(call: exp.Expr, site: Site) -> bool:
    """Whether the rows that a call is computed for may be dropped, or its answers not read, after it."""
    if site.clause == "from" or _makes_rows(site.block) or _may_fold(call):
        return True
    node: exp.Expr = site.block
    while isinstance(node, exp.Query) and not any(node.args.get(key) for key in _DROPS_ROWS):
        if node.parent is None or isinstance(node.parent, exp.Create | exp.Insert | exp.Copy):
            return False
        node = node.parent
    return True


def _makes_rows(block: exp.Query) -> bool:
    """Whether a row of the block's FROM may make none of its result."""
    return isinstance(block, exp.Select) and any(unnests(item) for item in block.expressions)


def _may_fold(call: exp.Expr) -> bool:
    """Whether something around a call may have its value before anything is computed: ``typeof(x)``, ``x = NULL``."""
    node = call
    while node.parent is not None and not isinstance(node.parent, exp.Query):
        node = node.parent
        named = isinstance(node, exp.Anonymous) and node.name.casefold() in _OF_TYPES
        if named or isinstance(node, exp.Typeof) or _takes_null(node):
            return True
    return False


def _takes_null(node: exp.Expr) -> bool:
    """Whether an operand of a function or operator may be NULL in every row."""
    operands = () if isinstance(node, exp.Is | exp.If | exp.Case) else node.iter_expressions()
    return any(operand.find(exp.Null) is not None and not holds_call(operand) for operand in operands)


def query_of(tree: exp.Expr) -> exp.Expr:
    """The query of a statement: of CREATE TABLE AS, INSERT and COPY what gives the rows."""
    if isinstance(tree, exp.Query):
        return tree
    held = tree.this if isinstance(tree, exp.Copy) else tree.args.get("expression")
    query = held.unnest() if held is not None else tree
    if tree.args.get("with_") is not None and query.args.get("with_") is None:
        query.set("with_", tree.args["with_"].copy())
    return query


def own_order(context: StatementContext, found: Sequence[Sequence[PlannedCall]]) -> list[int]:
    """The order in which DuckDB evaluates predicates of a block, given by their calls; as written where it hides that.

    It moves comparisons with constants behind other conditions, and some conditions below joins.
    """
    plan = _plan(context, [planned for row in found for planned in row])
    places = [min(plan.find(f"{planned.operator.table.lookups[1]}(") for planned in row) for row in found]
    return sorted(range(len(found)), key=places.__getitem__) if min(places) >= 0 else list(range(len(found)))


def _plan(context: StatementContext, found: Sequence[PlannedCall]) -> str:
    """What DuckDB computes for the statement with volatile lookups in place of calls, in order; '' if it cannot say."""
    query, here = _marked(found)
    for call, planned in zip(here, found, strict=False):
        call.replace(lookup(planned.operator.table.lookups[1], planned.key))
    query = _without_calls(context, query) if query is not None else None
    try:
        text = f"EXPLAIN (FORMAT json) {sql_of(query)}" if query is not None else "SELECT '', '[]'"
        return "".join(_conditions(json.loads(context.connection.execute(text).fetchall()[0][1])))
    except duckdb.Error:
        return ""


def _conditions(nodes: Sequence[Any]) -> Iterator[str]:
    """What the operators of a plan compute, in the order of execution."""
    for node in nodes:
        yield from _conditions(node["children"])
        yield json.dumps(node["extra_info"])


def _probe(context: StatementContext, planned: PlannedCall, unknown: Container[str]) -> exp.Expr | None:
    """The statement's query with a lookup in place of the call; None where another call has no type yet."""
    query, here = _marked([planned])
    if query is None:
        return None
    known = here[0].replace(lookup(planned.operator.table.lookup, planned.key))
    _relax(query, known, unknown, context.answers_database.unknown.lookup)
    return _without_calls(context, query)


def _marked(found: Sequence[PlannedCall]) -> tuple[exp.Expr | None, list[exp.Expr]]:
    """A copy of the statement's query and these calls in it; None where one does not stand in it."""
    for number, planned in enumerate(found):
        planned.call.meta[HERE_META] = number
    query = query_of(found[0].call.root().copy())
    for planned in found:
        planned.call.meta.pop(HERE_META)
    here = {call.meta[HERE_META]: call for call in calls(query) if HERE_META in call.meta}
    if len(here) < len(found) or not isinstance(query, exp.Query):
        return None, []
    return query, [here[number] for number in range(len(found))]


def _without_calls(context: StatementContext, query: exp.Expr) -> exp.Expr | None:
    """The query with its calls unknown; None where one has no type yet."""
    for call in reversed(list(calls(query))):  # the inner ones first
        value = unknown_value(context.answers_database.unknown.lookup, call)
        if value is None:
            return None
        call.replace(value)
    return query


def _relax(query: exp.Expr, here: exp.Expr, unknown: Container[str], name: str) -> None:
    """Let pass what conditions that wait for answers may let pass, unless the call stands in them."""

    def waits(part: exp.Expr) -> bool:
        return holds_call(part) or any(node.name in unknown for node in lookups(part))

    for clause in list(query.find_all(exp.Where, exp.Having, exp.Qualify)):
        parts = conjuncts(clause.this)
        if not any(waits(part) and not _holds(part, here) for part in parts):
            continue
        kept = [part if _holds(part, here) else relaxed(part, waits, instead=partial(_open, name)) for part in parts]
        block = clause.parent
        keep_conditions(clause, [part for part in kept if part.unnest() != exp.true()])
        _lift_limits(block, here)


def _open(name: str, part: exp.Expr, value: exp.Expr) -> exp.Expr:
    """The truth value in a way that reads what the part reads: these columns may hold the call's answers."""
    columns = [node for node in own_nodes(part) if isinstance(node, exp.Column) and not node.is_star]
    if not columns or part.find(exp.Query):
        return value
    read = lookup(name, key_of(columns, keeps_nulls=True))
    return exp.Coalesce(this=exp.cast(read, "BOOLEAN"), expressions=[value])


def _holds(part: exp.Expr, here: exp.Expr) -> bool:
    return any(node is here for node in part.walk())


def _lift_limits(block: exp.Expr | None, here: exp.Expr) -> None:
    """With rows that a condition would have dropped, those of a LIMIT or QUALIFY around it are others."""
    while block is not None:
        for key in ("limit", "offset", "qualify"):
            held = block.args.get(key)
            if isinstance(held, exp.Expr) and not _holds(held, here):
                block.set(key, None)
        block = block.parent

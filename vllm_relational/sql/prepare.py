"""A statement before its operators are planned: parsed, normalised, rewritten as a whole, and bound by DuckDB."""

from __future__ import annotations

from collections.abc import Iterable

import duckdb
from sqlglot import exp

from vllm_relational.records import RelationalError
from vllm_relational.sql.blocks import Aggregates, sql_of
from vllm_relational.sql.constants import constant_calls, questions, with_answers
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.evaluation import Evaluation
from vllm_relational.sql.faithful import check_meaning, name_of
from vllm_relational.sql.functions import CallQuestion
from vllm_relational.sql.normalise import normalise, refuse_volatile
from vllm_relational.sql.operator import Operator
from vllm_relational.sql.parameters import spell_literals
from vllm_relational.sql.parse import engine_error, misplaced
from vllm_relational.sql.passes.dead import bury, dead_calls
from vllm_relational.sql.passes.inner_limit import push_limits
from vllm_relational.sql.passes.prune import drop_unread
from vllm_relational.sql.passes.pushdown import push_conditions
from vllm_relational.sql.planner import CallPlanner
from vllm_relational.sql.probe import may_probe
from vllm_relational.sql.row_functions import mark_macros


def prepared(context: StatementContext) -> tuple[exp.Expr, list[str]]:
    """The normalised tree of a statement, rewritten where that saves questions, and what was rewritten.

    Rewrites go by names as written; where a name means something else in its new place, the statement stays as it is.
    """
    tree = context.tree.copy()
    if not is_query(tree):
        tree = _questions(context, tree)
    refuse_volatile(tree, context.sql)
    check_meaning(context.connection, tree, context.sql)
    spell_literals(tree, context.connection.values)
    normalise(tree, context.sql, lambda item: name_of(context.connection, item))
    mark_macros(tree, lambda: context.connection.macros)
    context.answers_database.volatile = False
    if not context.settings.optimize:
        return tree, []
    if may_probe(tree):
        context.answers_database.volatile = True
        context.answers_database.volatile = _binds(context, tree)
    aggregates = Aggregates(lambda: context.connection.macros.aggregates)
    buried = _bury_dead(context, tree, aggregates)
    rewritten = tree.copy()
    notes = drop_unread(rewritten) + push_conditions(rewritten, aggregates, lambda query: _is_whole(context, query))
    notes += push_limits(rewritten, aggregates)
    return (rewritten, [*buried, *notes]) if notes and _binds(context, rewritten) else (tree, buried)


def _bury_dead(context: StatementContext, tree: exp.Expr, aggregates: Aggregates) -> list[str]:
    """Take out calls that no row evaluates, once it is clear that they are right; returns what was done."""
    dead = dead_calls(tree, aggregates, lambda condition: _holds(context, condition))
    if dead:
        bind(context, rehearse(context.planner(), tree))
    return bury(dead)


def _holds(context: StatementContext, condition: str) -> bool:
    """Whether a condition of constants is TRUE, or DuckDB cannot compute it, which binding will say."""
    try:
        found = context.connection.execute(f"SELECT ({condition}) IS TRUE").fetchall()
    except duckdb.Error:
        return True
    return bool(found[0][0])


def _questions(context: StatementContext, tree: exp.Expr) -> exp.Select:
    """The query for the answers of a statement that is none itself; raises ``SQLError`` where that is not enough."""
    spell_literals(tree, context.connection.values)
    found = constant_calls(tree)
    if not found:
        raise misplaced(context.sql, tree)
    _check(context, with_answers(context.sql, found, {}))
    return questions(found)


def _is_whole(context: StatementContext, query: exp.Expr) -> bool:
    """Whether a query binds by itself."""
    try:
        context.connection.execute(f"DESCRIBE {sql_of(query.unnest())}").fetchall()
    except (duckdb.Error, RelationalError):
        return False
    return True


def _check(context: StatementContext, text: str) -> None:
    """Let DuckDB bind a statement that is no query, as far as it explains such statements; raises ``SQLError``."""
    try:
        context.connection.execute(f"EXPLAIN {text}").fetchall()
    except (duckdb.BinderException, duckdb.CatalogException) as error:
        raise engine_error(context.sql, error) from error
    except duckdb.Error:
        return  # there is no EXPLAIN for it: it fails when it runs


def is_query(tree: exp.Expr) -> bool:
    """Whether calls may be asked over the rows of a query in the statement; else over literals, see ``constants``."""
    if isinstance(tree, exp.Create):
        return tree.kind == "TABLE" and isinstance(tree.expression, exp.Query)
    return isinstance(tree, exp.Query | exp.Copy) or (
        isinstance(tree, exp.Insert) and isinstance(tree.expression, exp.Query)
    )


def unread(context: StatementContext, operators: Iterable[Operator]) -> list[str]:
    """Columns that the settings of deduplication name and no question of the statement reads: misspelt, most likely.

    No error: the settings are those of a session, and its other statements may read them.
    """
    asked = (operator.question for operator in operators if isinstance(operator.question, CallQuestion))
    return context.settings.merging.unread(name for question in asked for name in question.reads)


def rehearse(planner: CallPlanner, tree: exp.Expr) -> exp.Expr:
    """The statement with lookups in place of calls, nothing asked."""
    copy = tree.copy()
    Evaluation(planner).evaluate(planner.walk(copy))
    return copy


def bind(context: StatementContext, tree: exp.Expr) -> None:
    """Let DuckDB check a statement without running it; raises ``SQLError``."""
    try:
        context.connection.execute(f"EXPLAIN {sql_of(tree)}").fetchall()
    except duckdb.Error as error:
        raise engine_error(context.sql, error) from error


def _binds(context: StatementContext, tree: exp.Expr) -> bool:
    try:
        bind(context, rehearse(context.planner(), tree))
    except RelationalError:
        return False
    return True

"""Run a statement: ask every operator over its distinct inputs, then let DuckDB finish with the answers looked up."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import duckdb
from sqlglot import exp

from vllm_relational.sql.blocks import sql_of
from vllm_relational.sql.constants import constant_calls, with_answers
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.interrupts import interruptible
from vllm_relational.sql.operator import Operator
from vllm_relational.sql.parse import engine_error, quoted
from vllm_relational.sql.passes.layout import choose_layouts
from vllm_relational.sql.prepare import bind, is_query, prepared, rehearse, unread
from vllm_relational.sql.probe import query_of
from vllm_relational.sql.rounds import AnswersMissingError, Demand
from vllm_relational.sql.run_evaluation import RunEvaluation


@dataclass
class Execution:
    """What a statement asked and what came of it.

    rows:      the result, computed, with DuckDB's types; None for a statement without one.
    rewritten: the SQL that DuckDB finished with.
    notes:     what the optimiser did to the statement as a whole.
    unread:    columns that the settings of deduplication name and no question reads.
    """

    operators: list[Operator] = field(default_factory=list)
    rows: duckdb.DuckDBPyRelation | None = None
    rewritten: str = ""
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def asked(self) -> int:
        """Distinct prompts sent."""
        return sum(report.num_asked for operator in self.operators for report in operator.reports)


def execute(context: StatementContext) -> Execution:
    """Run one statement with LLM functions; raises ``SQLError`` before anything is asked when it is wrong."""
    tree = context.tree
    answered = _answered(context)
    if is_query(tree) or answered.rows is None:
        return answered
    (row,) = answered.rows.fetchall()
    text = with_answers(context.sql, constant_calls(tree), dict(zip(answered.rows.columns, row, strict=True)))
    try:
        return dataclasses.replace(answered, rows=_run(context, text), rewritten=text)
    except duckdb.Error as error:
        raise engine_error(context.sql, error) from error


def _answered(context: StatementContext) -> Execution:
    """A statement whose calls are asked over its rows, or the query for the answers of one that has none."""
    context.answers_database.drop_rows()
    tree, notes = prepared(context)
    rehearsal = context.planner()
    bind(context, rehearse(rehearsal, tree))
    if context.settings.merging.dedup != "exact":
        for operator in rehearsal.operators:
            operator.check(context.llm)
    context.answers_database.forget_failures(operator.table for operator in rehearsal.operators)
    chosen = choose_layouts(context, tree, rehearsal.operators, may_start=True)
    context, notes = chosen.context, [*notes, *chosen.notes]
    demand, operators = Demand(), list[Operator]()
    while True:
        planner, planned = context.planner(), tree.copy()
        planner.operators = demand.begin(operators)
        try:
            RunEvaluation(context, planner, demand).evaluate(planner.walk(planned))
            rows = _finished(context, planned, demand)
            return Execution(planner.operators, rows, sql_of(planned), notes, unread(context, planner.operators))
        except AnswersMissingError:
            operators = planner.operators
        except duckdb.Error as error:
            raise engine_error(context.sql, error) from error


def _finished(context: StatementContext, tree: exp.Expr, demand: Demand) -> duckdb.DuckDBPyRelation | None:
    """The rows of a statement whose calls are lookups; raises ``AnswersMissingError``."""
    if not demand.is_certain and not isinstance(tree, exp.Query):
        with demand.complete():  # before anything is written
            _run(context, sql_of(query_of(tree.copy())))
    with demand.complete():
        return _run(context, sql_of(tree))


def _run(context: StatementContext, text: str) -> duckdb.DuckDBPyRelation | None:
    with interruptible(context.connection):
        relation = context.connection.sql(text)
        return _computed(context, relation) if relation is not None else None


def _computed(context: StatementContext, relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The rows of a relation, which does not run again when they are read; several columns may have one name."""
    names = relation.columns
    rows: duckdb.DuckDBPyRelation = context.connection.called(relation.materialize)
    if rows.columns == names:
        return rows
    pairs = zip(rows.columns, names, strict=True)
    return rows.project(", ".join(f"{quoted(held)} AS {quoted(name)}" for held, name in pairs))

"""Run a statement: ask every operator over its distinct inputs, then let DuckDB finish with the answers looked up."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import duckdb
from sqlglot import exp

from vllm_relational.sql.ask import Asker
from vllm_relational.sql.blocks import sql_of
from vllm_relational.sql.constants import constant_calls, with_answers
from vllm_relational.sql.interrupts import interruptible
from vllm_relational.sql.job import Job
from vllm_relational.sql.operator import Operator
from vllm_relational.sql.parse import engine_error, parse, quoted
from vllm_relational.sql.passes.layout import choose_layouts
from vllm_relational.sql.prepare import bind, is_query, prepared, rehearse, unread
from vllm_relational.sql.probe import query_of
from vllm_relational.sql.rounds import AnswersMissingError, Demand


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


def execute(job: Job) -> Execution:
    """Run one statement with LLM functions; raises ``SQLError`` before anything is asked when it is wrong."""
    tree = parse(job.sql)
    answered = _answered(job)
    if is_query(tree) or answered.rows is None:
        return answered
    (row,) = answered.rows.fetchall()
    text = with_answers(job.sql, constant_calls(tree), dict(zip(answered.rows.columns, row, strict=True)))
    try:
        return dataclasses.replace(answered, rows=_run(job, text), rewritten=text)
    except duckdb.Error as error:
        raise engine_error(job.sql, error) from error


def _answered(job: Job) -> Execution:
    """A statement whose calls are asked over its rows, or the query for the answers of one that has none."""
    job.store.drop_rows()
    tree, notes = prepared(job)
    rehearsal = job.planner()
    bind(job, rehearse(rehearsal, tree))
    if job.settings.merging.dedup != "exact":
        for operator in rehearsal.operators:
            operator.check(job.llm)
    job.store.forget_failures(operator.table for operator in rehearsal.operators)
    chosen = choose_layouts(job, tree, rehearsal.operators, may_start=True)
    job, notes = chosen.job, [*notes, *chosen.notes]
    demand, operators = Demand(), list[Operator]()
    while True:
        planner, planned = job.planner(), tree.copy()
        planner.operators = demand.begin(operators)
        try:
            planner.plan(planned, Asker(job, demand))
            rows = _finished(job, planned, demand)
            return Execution(planner.operators, rows, sql_of(planned), notes, unread(job, planner.operators))
        except AnswersMissingError:
            operators = planner.operators
        except duckdb.Error as error:
            raise engine_error(job.sql, error) from error


def _finished(job: Job, tree: exp.Expr, demand: Demand) -> duckdb.DuckDBPyRelation | None:
    """The rows of a statement whose calls are lookups; raises ``AnswersMissingError``."""
    if not demand.is_certain and not isinstance(tree, exp.Query):
        with demand.complete():  # before anything is written
            _run(job, sql_of(query_of(tree.copy())))
    with demand.complete():
        return _run(job, sql_of(tree))


def _run(job: Job, text: str) -> duckdb.DuckDBPyRelation | None:
    with interruptible(job.connection):
        relation = job.connection.sql(text)
        return _computed(job, relation) if relation is not None else None


def _computed(job: Job, relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The rows of a relation, which does not run again when they are read; several columns may have one name."""
    names = relation.columns
    rows: duckdb.DuckDBPyRelation = job.connection.called(relation.materialize)
    if rows.columns == names:
        return rows
    pairs = zip(rows.columns, names, strict=True)
    return rows.project(", ".join(f"{quoted(held)} AS {quoted(name)}" for held, name in pairs))

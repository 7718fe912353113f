"""Run a statement: ask every operator over its distinct inputs, then let DuckDB finish with the answers looked up."""

from __future__ import annotations

from dataclasses import dataclass, field

import duckdb

from vllm_relational.sql.ask import Asker
from vllm_relational.sql.blocks import sql_of
from vllm_relational.sql.interrupts import interruptible
from vllm_relational.sql.job import Job
from vllm_relational.sql.operator import Operator
from vllm_relational.sql.parse import engine_error, quoted
from vllm_relational.sql.passes.layout import choose_layouts
from vllm_relational.sql.prepare import bind, prepared, rehearse, unread


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
    planner = job.planner()
    planner.plan(tree, Asker(job))
    text = sql_of(tree)
    try:
        with interruptible(job.connection):
            relation = job.connection.sql(text)
            rows = _computed(job, relation) if relation is not None else None
    except duckdb.Error as error:
        raise engine_error(job.sql, error) from error
    return Execution(planner.operators, rows, text, notes, unread(job, planner.operators))


def _computed(job: Job, relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The rows of a relation, which does not run again when they are read; several columns may have one name."""
    names = relation.columns
    rows: duckdb.DuckDBPyRelation = job.connection.called(relation.materialize)
    if rows.columns == names:
        return rows
    pairs = zip(rows.columns, names, strict=True)
    return rows.project(", ".join(f"{quoted(held)} AS {quoted(name)}" for held, name in pairs))

"""What became of the groups of a query so far, and the report of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vllm_relational.query.clock import Clock
from vllm_relational.query.planned import PlannedBatch
from vllm_relational.query.tokenised import TokenisedQuery
from vllm_relational.records import EncodedTable, EngineInfo, Origin, Plan, RunReport
from vllm_relational.results.outcome import Measured, kind


@dataclass
class Outcome:
    """What is known of a query beside its answers; grows while it runs.

    seconds:  by stage, what preparing took.
    failed:   group -> reason.
    known:    row asked -> how its answer came where this run did not ask it: resumed or cached.
    measured: the engine's counts.
    """

    seconds: Mapping[str, float]
    failed: dict[int, str] = field(default_factory=dict)
    known: dict[int, Origin] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(self.seconds)


def run_report(
    query: TokenisedQuery, batch: PlannedBatch, info: EngineInfo, outcome: Outcome, num_cut: int = 0
) -> RunReport:
    """The report of a query that was planned, and asked or not. num_cut: rows with a cut text."""
    failures = _failed_rows(query, outcome.failed)
    origins = Counter(outcome.known.values())
    return RunReport(
        question=query.question.template,
        model=info.identity,
        planner=batch.plan.planner,
        field_order=_field_order(batch.plan, query.table),
        num_rows=len(query.distinct.inverse),
        num_distinct=query.distinct.num_distinct,
        num_asked=len(batch.groups),
        num_resumed=sum(outcome.known.get(row) is Origin.RESUMED for row in query.distinct.first_rows.tolist()),
        num_failed=sum(failures.values()),
        failures=failures,
        predicted=batch.predicted,
        original=batch.original,
        ceiling=batch.ceiling,
        token_counts=query.prompts.counts,
        measured_prompt_tokens=outcome.measured.prompt_tokens or None,
        measured_cached_tokens=outcome.measured.cached_tokens,
        output_tokens=outcome.measured.output_tokens,
        measured_loaded_tokens=outcome.measured.loaded_tokens,
        stage_seconds=dict(outcome.clock.seconds),
        num_cached=origins[Origin.CACHED],
        dedup=query.merges,
        layout=query.config.layout,
        num_cut=num_cut,
    )


def _failed_rows(query: TokenisedQuery, failed: Mapping[int, str]) -> dict[str, int]:
    """Rows by the kind of their reason."""
    counts = Counter(kind(reason) for reason in query.row_errors.values())
    inverse = query.distinct.inverse
    sizes = np.bincount(inverse[inverse >= 0], minlength=query.distinct.num_distinct)
    for group, reason in failed.items():
        counts[kind(reason)] += int(sizes[group])
    return dict(counts)


def _field_order(plan: Plan, table: EncodedTable) -> tuple[str, ...]:
    """The field order of the first row asked; planners may vary it from row to row."""
    order = plan.fields[0].tolist() if len(plan.fields) else range(table.num_columns)
    return tuple(table.names[column] for column in order)

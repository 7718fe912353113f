"""What a query gives back: answers, forecasts, reports, and what tells jobs apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vllm_relational.records.plan import Plan, PlanInput, PromptBatch
from vllm_relational.records.table import DedupReport, EncodedTable


@dataclass(frozen=True)
class CacheForecast:
    """Prompt tokens of a planned batch and how many of them the KV cache is predicted to serve."""

    prompt_tokens: int
    hit_tokens: int

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.hit_tokens


@dataclass(frozen=True)
class Agreement:
    """Rows asked once more, in another way, and how many gave the same answer.

    sample:     what was asked again and how.
    population: rows that could have been drawn; num_asked of them were.
    num_failed: gave no usable answer the second time: neither agree nor disagree.
    low, high:  95% confidence interval of the share of equal answers (Wilson).
    changed:    a few that differ: row, answer of the run, answer now.
    """

    sample: str
    population: int
    num_asked: int
    num_agreed: int
    num_failed: int
    low: float
    high: float
    changed: tuple[tuple[int, Any, Any], ...] = ()

    @property
    def share(self) -> float | None:
        compared = self.num_asked - self.num_failed
        return self.num_agreed / compared if compared else None


@dataclass(frozen=True)
class AuditReport:
    """How far answers depend on the order of fields and on merging; ``note`` says why it is incomplete, if so."""

    seed: int
    samples: tuple[Agreement, ...]
    note: str = ""


@dataclass(frozen=True)
class RunReport:
    """What a run did and what it saved. Rates are fractions, times are seconds.

    num_asked counts the distinct rows sent to the engine in this run; num_resumed those that a checkpoint already
    held; num_cached those that the result cache held. num_failed and num_cut count rows of the table: without answer,
    and with a text that was cut off at ``max_tokens``. ``measured_*`` are the engine's own counts over the rows asked
    (None: the engine does not report them or nothing was sent); of the cached tokens, ``measured_loaded_tokens`` came
    from stored contexts. ``predicted`` and ``original`` are forecasts over the
    same rows, in the planned and in the original field and row order. ``ceiling`` is the share of prompt tokens that
    no order of rows and fields exceeds (``plan/bound.py``).
    """

    question: str
    model: str
    planner: str
    field_order: tuple[str, ...]
    num_rows: int
    num_distinct: int
    num_asked: int
    num_resumed: int
    num_failed: int
    failures: Mapping[str, int]
    predicted: CacheForecast
    original: CacheForecast
    ceiling: float
    token_counts: str
    measured_prompt_tokens: int | None = None
    measured_cached_tokens: int | None = None
    output_tokens: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    num_cached: int = 0
    dedup: DedupReport | None = None
    audit: AuditReport | None = None
    layout: str = "question-first"
    num_cut: int = 0
    measured_loaded_tokens: int = 0

    @property
    def measured_hit_rate(self) -> float | None:
        if not self.measured_prompt_tokens or self.measured_cached_tokens is None:
            return None
        return self.measured_cached_tokens / self.measured_prompt_tokens

    @property
    def rows_per_second(self) -> float | None:
        """Distinct rows asked in this run over the seconds the engine took to answer them."""
        seconds = self.stage_seconds.get("ask")
        return self.num_asked / seconds if seconds and self.num_asked else None


@dataclass(frozen=True)
class PlannedQuery:
    """One plan of a query and what it was made from; nothing was asked.

    report:        the forecast; the seconds of preparing are in it as if this plan had been the only one.
    table:         the used columns of all rows, encoded; ``batch.codes`` are its codes for the distinct rows to ask.
    batch, plan:   what the planner saw and what it said.
    header_tokens: of the prompt before its first cell, the same for all rows.
    asked:         the prompts, for forecasts of what is asked after them.
    bound:         the forecast with the best possible eviction (Belady); None for a cache without limit.
    """

    report: RunReport
    table: EncodedTable
    batch: PlanInput
    plan: Plan
    header_tokens: int
    asked: PromptBatch
    bound: CacheForecast | None = None


@dataclass(frozen=True, eq=False)
class JobRecord:
    """What tells a job from others.

    identify: gives ``job``, which takes a look at every value of the table: only where somebody asks.
    table:    the columns that the question uses.
    """

    identify: Callable[[], Mapping[str, Any]]
    table: EncodedTable

    @functools.cached_property
    def job(self) -> Mapping[str, Any]:
        """The question, model, table and settings, as JSON values by name."""
        return self.identify()


@dataclass(frozen=True)
class QueryResult:
    """Answers in input order, one an input row, and what was done.

    answers:     the parsed value of each row; None where ``errors`` holds a reason.
    errors:      one reason a failed row, None for the others.
    statuses:    'ok'; 'cut' for a text that was cut off at ``max_tokens`` and is an answer as far as it goes; 'failed'.
    source_rows: int64 ``[num_rows]``: the row whose answer this is, counted from 0; itself where it was asked, -1 where
                 the row failed.
    origins:     how each row came by its answer: 'asked', 'resumed' (from the checkpoint), 'cached' (from the result
                 cache), inherited by 'exact', 'normalized' or 'semantic' deduplication, or 'failed'.
    asked:       the prompts that were sent, for ``QueryConfig.after`` of the next query; None where none was.
    job:         what tells this job from others.
    """

    answers: list[Any]
    errors: list[str | None]
    report: RunReport
    source_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    origins: list[str] = field(default_factory=list)
    asked: PromptBatch | None = None
    statuses: list[str] = field(default_factory=list)
    job: JobRecord | None = None

    @property
    def num_failed(self) -> int:
        return self.report.num_failed

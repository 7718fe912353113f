"""What a query is made of once its table is encoded and grouped and its prompts are tokenised."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_relational.config import QueryConfig
from vllm_relational.plan import weighted
from vllm_relational.prompts import PromptBuilder
from vllm_relational.prompts.template import Question
from vllm_relational.query.forecast import Forecaster
from vllm_relational.records import AnswerFormat, DedupReport, Distinct, EncodedTable, EngineInfo, Grouping, PlanInput


@dataclass(frozen=True)
class FieldRules:
    """What the user asks of the order of the fields; columns by original position. See ``PlanInput``."""

    pinned: frozenset[int]
    before: tuple[tuple[int, int], ...]
    weights: Mapping[int, float]

    def applied(self, batch: PlanInput) -> PlanInput:
        """The batch as planners shall see it."""
        return weighted(dataclasses.replace(batch, pinned=self.pinned, before=self.before), self.weights)


@dataclass(frozen=True, eq=False)
class TokenisedQuery:
    """The parts of a query, read by what plans it and reports on it.

    table:      the columns that the question reads, of all rows.
    grouping:   which rows are asked for which; rows that cannot be asked (``row_errors``: row -> reason) have no group.
    merges:     what deduplication did; merging: its settings in words, part of the job's identity.
    seconds:    by stage, what preparing took.
    """

    question: Question
    answer_format: AnswerFormat
    config: QueryConfig
    table: EncodedTable
    grouping: Grouping
    merges: DedupReport
    merging: Mapping[str, str]
    prompts: PromptBuilder
    rules: FieldRules
    row_errors: Mapping[int, str]
    seconds: Mapping[str, float]

    @property
    def distinct(self) -> Distinct:
        """The groups that are asked."""
        return self.grouping.distinct

    def forecaster(self, info: EngineInfo) -> Forecaster:
        """Forecasts for that engine."""
        return Forecaster(self.table, self.prompts.segments, self.config, info)

"""A query before it is planned: its table encoded and grouped, its prompts tokenised. Frozen, and can be pickled.

``prepare`` does the work; everything here only reads. A part of a ``Prepared`` (``take``) is a ``Prepared``, so a query
can be cut into shards that other processes ask.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vllm_relational.answer_format.check import check_answer_format
from vllm_relational.config import KEEP_NULLS, QueryConfig, current_order
from vllm_relational.dedup.grouper import RowGrouper, embedder_name, rows_of
from vllm_relational.engine.base import Engine
from vllm_relational.plan import planner
from vllm_relational.prompts import PromptBuilder, Tokenizer, parse_template
from vllm_relational.prompts.build import MakePrompts
from vllm_relational.prompts.columns import QuestionColumns
from vllm_relational.prompts.template import Question
from vllm_relational.query import embedders
from vllm_relational.query.clock import Clock
from vllm_relational.query.job_record import answer_form, job_identity
from vllm_relational.query.planned import plan_batch
from vllm_relational.query.report import Outcome, run_report
from vllm_relational.query.tokenised import FieldRules, TokenisedQuery
from vllm_relational.records import (
    NULL_CODE,
    AnswerFormat,
    EncodedTable,
    EngineInfo,
    JobRecord,
    Origin,
    PlanInput,
    PlannedQuery,
    RowFailedError,
)
from vllm_relational.results.cache import AnswerCache, QueryCache, opened_cache
from vllm_relational.results.outcome import NULL_CELL, admitted
from vllm_relational.results.parse import parser
from vllm_relational.table import encode_columns, nulls_as_values


@dataclass(frozen=True, eq=False)
class Prepared(TokenisedQuery):
    """One query over one table, ready to be planned; plans do not affect each other."""

    # --------------------------------------------------------------------------------------------------- its like
    def ordered(self, order: str | None) -> Prepared:
        """The same query planned in that order (None: in its own)."""
        if order is None:
            return self
        return dataclasses.replace(self, config=self.config.model_copy(update={"order": current_order(order)}))

    def take(self, rows: np.ndarray) -> Prepared:
        """The same query over some of its rows, int64 ascending; rows that were merged stay so.

        A group whose row is not among them is asked by the first of its rows that is.
        """
        grouping, merges = rows_of(self.grouping, self.merges, rows)
        place = {row: number for number, row in enumerate(rows.tolist())}
        errors = {place[row]: reason for row, reason in self.row_errors.items() if row in place}
        table = dataclasses.replace(self.table, codes=self.table.codes[:, rows])
        return dataclasses.replace(self, table=table, grouping=grouping, merges=merges, row_errors=errors)

    def first(self, num_rows: int) -> Prepared:
        """The same query over the first rows of the table only."""
        return self.take(np.arange(min(num_rows, self.table.num_rows), dtype=np.int64))

    # ----------------------------------------------------------------------------------------------------- plans
    def plan(
        self,
        info: EngineInfo,
        order: str | None = None,
        budget_seconds: float | None = None,
        quick: bool = False,
        engine: Engine | None = None,
    ) -> PlannedQuery:
        """Plan for that engine, by default in the order that the query was prepared with.

        budget_seconds: for planners that search, see ``plan.planner``; None for the planner's default.
        quick:          without search, to compare queries with each other.
        engine:         the one that will be asked, started: what the result cache holds of its answers is left out, as
                        in a run. None looks into no cache.
        """
        query = self.ordered(order)
        if quick and planner(query.config.order).takes_budget:
            budget_seconds = 0.0
        outcome = Outcome(query.seconds)
        answered = query._cached_texts(engine, outcome) if engine is not None else {}
        batch = plan_batch(query, info, answered, outcome.clock, budget_seconds)
        outcome.failed.update(batch.too_long)
        report = run_report(query, batch, info, outcome)
        forecaster = query.forecaster(info)
        bound = forecaster.forecast(batch.plan, batch.codes, "belady") if info.kv_cache_tokens else None
        header_tokens = len(query.prompts.segments.header)
        return PlannedQuery(report, query.table, batch.input, batch.plan, header_tokens, batch.prompt_batch, bound)

    def constrain(self, batch: PlanInput) -> PlanInput:
        """Another batch over the same columns, such as one in characters, as this query's planner shall see it."""
        return self.rules.applied(batch)

    def prompts_for(self, engine: Engine) -> MakePrompts:
        """Makes the prompts in the form that the engine reads."""
        return self.prompts.maker(engine.prompt_form)

    # --------------------------------------------------------------------------------------- what is known of it
    def record(self, model: str) -> JobRecord:
        """What makes two jobs the same: a checkpoint serves only its own. model: see ``EngineInfo.identity``."""
        named = (self.question.template, self.answer_format, model, self.table, self.config, self.merging)
        return JobRecord(functools.partial(job_identity, *named), self.table)

    def recalled(
        self, cache: AnswerCache, info: EngineInfo, engine: Engine, rows: np.ndarray
    ) -> tuple[QueryCache, dict[int, str]]:
        """What the result cache holds of the answers of these rows, and the cache of this query to add to."""
        codes, parse = self.table.codes[:, rows], parser(self.answer_format)
        own = QueryCache(cache, self._cache_settings(info, engine), info.identity)
        original = planner("original")(PlanInput(codes, ()))
        found = own.find(self.prompts_for(engine)(original, codes, rows), lambda text: admitted(text, parse))
        return own, found

    def _cached_texts(self, engine: Engine, outcome: Outcome) -> dict[int, str]:
        """What a run would take from the result cache; a file that is not there is not made."""
        path = self.config.cache
        if path is None or not path.exists():
            return {}
        with opened_cache(path) as cache, outcome.clock("look up"):
            if cache is None:
                return {}
            _, found = self.recalled(cache, engine.start(), engine, self.distinct.first_rows)
        outcome.known.update(dict.fromkeys(found, Origin.CACHED))
        return found

    def _cache_settings(self, info: EngineInfo, engine: Engine) -> dict[str, Any]:
        """What an answer depends on beside its prompt: an answer serves only under the same."""
        free = {"pinned": sorted(self.rules.pinned), "before": self.rules.before}
        return {
            "model": info.identity,
            "fingerprint": info.fingerprint,
            "answer form": answer_form(self.answer_format),
            "decoding": "greedy",  # engines ask at temperature 0
            # the name that this order had when caches were first written
            "fields": "published" if self.config.order == "original" else free,
            "prompt form": engine.prompt_form,
        }


# ---------------------------------------------------------------------------------------------------- making one
def prepare(
    table: pa.Table, template: str, answer_format: AnswerFormat, config: QueryConfig, tokenizer: Tokenizer
) -> Prepared:
    """Encode, deduplicate and tokenise once what is then planned several times.

    Raises ``RelationalError`` when the question or an option does not fit the table, ``RowFailedError`` for a null if
    ``config.on_error`` is 'raise'.
    """
    check_answer_format(answer_format)
    planner(config.order)
    question = parse_template(template, table.column_names)
    rules, clock = _field_rules(question, table, config), Clock({})
    with clock("read columns"):
        encoded = encode_columns(table, question.columns)
        encoded = nulls_as_values(encoded) if config.nulls == "keep" else encoded
    with clock("deduplicate"):
        grouper = RowGrouper(encoded, config, embedders.open_embedder)
        row_errors = _null_cells(encoded, config)
        grouping, merges = grouper.group(~(encoded.codes == NULL_CODE).any(axis=0))
    with clock("tokenise"):
        prompts = PromptBuilder(question, encoded, answer_format, config.system_prompt, tokenizer, config.layout)
    return Prepared(
        question,
        answer_format,
        _with_embedders_name(config),
        encoded,
        grouping,
        merges,
        grouper.settings,
        prompts,
        rules,
        row_errors,
        clock.seconds,
    )


def _field_rules(question: Question, table: pa.Table, config: QueryConfig) -> FieldRules:
    columns = QuestionColumns(question, table.column_names)
    return FieldRules(
        frozenset(columns.number(name, "pin") for name in config.pin),
        columns.kept_pairs(config.keep_order),
        {columns.number(name, "weight"): weight for name, weight in config.column_weights.items()},
    )


def _with_embedders_name(config: QueryConfig) -> QueryConfig:
    """A function of the user's has done its work, and may be none that can be pickled."""
    if isinstance(config.embedder, str):
        return config
    return config.model_copy(update={"embedder": embedder_name(config.embedder)})


def _null_cells(table: EncodedTable, config: QueryConfig) -> dict[int, str]:
    """Of the rows with a null, which fail, the reason."""
    nulls, errors = table.codes == NULL_CODE, {}
    for row in np.flatnonzero(nulls.any(axis=0)).tolist():
        column = table.names[int(np.argmax(nulls[:, row]))]
        errors[row] = f"{NULL_CELL}: column {column!r} is null{KEEP_NULLS}"
        if config.on_error == "raise":
            raise RowFailedError(f"row {row} (counted from 0): {errors[row]}")
    return errors

"""The only module that knows the order of the stages: table -> dedup -> plan -> prompts -> engine -> results."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from vllm_relational.config import KEEP_NULLS, QueryConfig, check_answer_format
from vllm_relational.dedup import scatter
from vllm_relational.dedup.grouper import EXACT, RowGrouper, answer_origins, first_rows, name_sources
from vllm_relational.engine.base import Engine, closing
from vllm_relational.plan import PLANNERS, planner, value_overlaps, weighted
from vllm_relational.prompts import PromptBuilder, Tokenizer, parse_template
from vllm_relational.prompts.columns import QuestionColumns
from vllm_relational.prompts.template import answer_room
from vllm_relational.query import embedders
from vllm_relational.query.audit import Answered, audit
from vllm_relational.query.forecast import Forecaster
from vllm_relational.query.job_record import EarlierOutput, answer_form, job_identity, retire_checkpoint, take_over
from vllm_relational.query.unasked import Keep, keeping_answers, nothing_asked
from vllm_relational.records import (
    NULL_CODE,
    AnswerFormat,
    CacheForecast,
    Completion,
    Distinct,
    EncodedTable,
    EngineDiedError,
    EngineInfo,
    JobRecord,
    Plan,
    PlanInput,
    PlannedQuery,
    Prompt,
    PromptBatch,
    QueryResult,
    RowFailedError,
    RunReport,
)
from vllm_relational.results import outcome
from vllm_relational.results.cache import AnswerCache, QueryCache, opened_cache
from vllm_relational.results.checkpoint import Checkpoint, MemoryAnswers
from vllm_relational.results.outcome import NULL_CELL, REFUSED, TOO_LONG, Measured, admitted, checked, kind
from vllm_relational.results.parse import parser
from vllm_relational.results.progress import make_progress
from vllm_relational.table import encode_columns, nulls_as_values

RESUMED, CACHED = "resumed", "cached"


def run_query(
    table: pa.Table,
    template: str,
    answer_format: AnswerFormat,
    config: QueryConfig,
    engine: Engine,
    tokenizer: Tokenizer,
    keep: Keep = lambda result: None,
    earlier: EarlierOutput | None = None,
) -> QueryResult:
    """Ask one question a row and return the answers in input order. keep: gets the result also when the run is cut off.

    earlier: the output that this one takes the place of; it must be of the same job, see ``EarlierOutput.check``.
    Raises ``RelationalError`` before anything is sent when the query is wrong, ``EngineDiedError`` when the engine
    died on the way (the checkpoint then holds what was answered), ``RowFailedError`` if ``config.on_error`` is
    'raise' and a row failed.
    """
    job = _Job(table, template, answer_format, config, tokenizer)
    job.check_store(earlier)
    if not job.distinct.num_distinct:
        return nothing_asked(job, engine)
    with opened_cache(config.cache) as cache:
        with job.clock("start engine"):
            info = engine.start()
        store = job.open_store(info.model)
        try:
            if earlier is not None:
                take_over(earlier, job.record(info.model), job.distinct.first_rows.tolist(), store)
            job.forget_unusable(store)
            job.recall(cache, info, engine, store)
            batch = job.plan(info, store.answers)
            with keeping_answers(job, batch, info, store, keep):
                job.ask(batch, engine, store)
                result = job.result(batch, info, store)
        finally:
            store.close()
    keep(result)
    return job.audited(result, batch, engine)


def plan_query(
    table: pa.Table,
    template: str,
    answer_format: AnswerFormat,
    config: QueryConfig,
    info: EngineInfo,
    tokenizer: Tokenizer,
) -> RunReport:
    """Plan the query and forecast the cache without an engine (``--dry-run``)."""
    return prepare(table, template, answer_format, config, tokenizer).plan(info).report


def prepare(
    table: pa.Table, template: str, answer_format: AnswerFormat, config: QueryConfig, tokenizer: Tokenizer
) -> PreparedQuery:
    """Encode, deduplicate and tokenise once what is then planned several times. Raises as ``run_query`` does."""
    return PreparedQuery(_Job(table, template, answer_format, config, tokenizer))


class PreparedQuery:
    """A query that was encoded, deduplicated and tokenised; plans do not affect each other."""

    def __init__(self, job: _Job) -> None:
        self._job = job

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
        job = self._job.again(order)
        if quick and planner(job.config.order).takes_budget:
            budget_seconds = 0.0
        batch = job.plan(info, job.recalled(engine) if engine is not None else {}, budget_seconds)
        report = job.report(batch, info, Measured())
        forecaster = job.forecaster(info)
        bound = forecaster.forecast(batch.plan, batch.codes, "belady") if info.kv_cache_tokens else None
        header_tokens = len(job.prompts.segments.header)
        return PlannedQuery(report, job.table, batch.input, batch.plan, header_tokens, batch.asked, bound)

    def record(self, model: str) -> JobRecord:
        """What tells this job, asked of that model, from others."""
        return self._job.record(model)

    def constrain(self, batch: PlanInput) -> PlanInput:
        """Another batch over the same columns, such as one in characters, as this query's planner shall see it."""
        pinned, before = self._job.pinned, self._job.before
        return weighted(dataclasses.replace(batch, pinned=pinned, before=before), self._job.weights)

    def first(self, num_rows: int) -> PreparedQuery:
        """The same query over the first rows of the table only."""
        return PreparedQuery(self._job.first(num_rows))


@dataclasses.dataclass(frozen=True)
class Batch:
    """The distinct rows of this run, planned.

    groups: int64 ``[n]``, their numbers in ``Distinct``; codes: int32 ``[num_columns, n]``; keys: int64 ``[n]``.
    input:  what the planner saw; asked: the prompts, for forecasts of what is asked after them.
    """

    groups: np.ndarray
    codes: np.ndarray
    keys: np.ndarray
    input: PlanInput
    plan: Plan
    asked: PromptBatch
    predicted: CacheForecast
    original: CacheForecast
    ceiling: float
    num_resumed: int


class _Job:
    """One query on its way through the stages."""

    def __init__(
        self, table: pa.Table, template: str, answer_format: AnswerFormat, config: QueryConfig, tokenizer: Tokenizer
    ) -> None:
        self.config, self.answer_format = config, answer_format
        self.seconds: dict[str, float] = {}
        self.row_errors: dict[int, str] = {}
        self.group_errors: dict[int, str] = {}
        self.measured = Measured()
        self.known: dict[int, str] = {}  # rows answered before this run -> 'resumed' or 'cached'
        self.cache: QueryCache | None = None
        check_answer_format(answer_format)
        planner(config.order)
        self.question = parse_template(template, table.column_names)
        columns = QuestionColumns(self.question, table.column_names)
        self.pinned = frozenset(columns.number(name, "pin") for name in config.pin)
        self.before = columns.kept_pairs(config.keep_order)
        self.weights = {columns.number(name, "weight"): weight for name, weight in config.column_weights.items()}
        with self.clock("read columns"):
            self.table = self._encode(table)
        with self.clock("deduplicate"):
            self.grouper = RowGrouper(self.table, config.dedup, config.seed, embedders.open_embedder)
            self.grouping, self.merges = self.grouper.group(self._complete_rows())
        with self.clock("tokenise"):
            self.prompts = PromptBuilder(
                self.question, self.table, answer_format, config.system_prompt, tokenizer, config.layout
            )

    def again(self, order: str | None) -> _Job:
        """This job as it was before planning, in that order (None: its own)."""
        job = copy.copy(self)
        job.config = dataclasses.replace(self.config, order=order or self.config.order)
        job.seconds, job.group_errors, job.measured, job.known = dict(self.seconds), {}, Measured(), {}
        return job

    @property
    def distinct(self) -> Distinct:
        return self.grouping.distinct

    def first(self, num_rows: int) -> _Job:
        """This job as it was before planning, over the first rows; rows that were merged stay so."""
        job = self.again(None)
        job.table = dataclasses.replace(self.table, codes=self.table.codes[:, :num_rows])
        job.grouping, job.merges = first_rows(self.grouping, self.merges, num_rows)
        job.row_errors = {row: reason for row, reason in self.row_errors.items() if row < num_rows}
        return job

    # ------------------------------------------------------------------------------------------- table, dedup
    def _encode(self, table: pa.Table) -> EncodedTable:
        encoded = encode_columns(table, self.question.columns)
        return nulls_as_values(encoded) if self.config.nulls == "keep" else encoded

    def _complete_rows(self) -> np.ndarray:
        """Rows without nulls: bool ``[num_rows]``; the others fail."""
        nulls = self.table.codes == NULL_CODE
        for row in np.flatnonzero(nulls.any(axis=0)).tolist():
            column = self.table.names[int(np.argmax(nulls[:, row]))]
            self._fail_row(row, f"{NULL_CELL}: column {column!r} is null{KEEP_NULLS}")
        complete: np.ndarray = ~nulls.any(axis=0)
        return complete

    # ------------------------------------------------------------------------------------------- plan, prompts
    def plan(self, info: EngineInfo, answered: dict[int, str], budget_seconds: float | None = None) -> Batch:
        """Plan the groups that still need an answer and fit into the engine's context."""
        chosen = planner(self.config.order, budget_seconds)
        with self.clock("plan"):
            self._drop_too_long(info, answered)
            first = self.distinct.first_rows.tolist()
            todo = [g for g, row in enumerate(first) if row not in answered and g not in self.group_errors]
            groups = np.asarray(todo, dtype=np.int64)
            keys = self.distinct.first_rows[groups]
            codes = np.ascontiguousarray(self.table.codes[:, keys])
            cells = self.prompts.segments.cells
            overlaps = value_overlaps(cells) if chosen.reads_overlaps else ()
            batch = PlanInput(
                codes,
                tuple(column.lengths for column in cells),
                self.pinned,
                overlaps,
                self.before,
                header_tokens=len(self.prompts.segments.header),
                block_size=info.block_size,
            )
            plan = chosen(weighted(batch, self.weights))
        with self.clock("forecast"):
            forecaster = self.forecaster(info)
            plan, predicted = forecaster.cheapest(batch, plan)
            original = forecaster.forecast(PLANNERS["original"](batch), codes)
            ceiling, asked = forecaster.ceiling(batch), forecaster.asked(plan, codes)
        num_resumed = sum(row in answered and self.known.get(row) != CACHED for row in first)
        return Batch(groups, codes, keys, batch, plan, asked, predicted, original, ceiling, num_resumed)

    def forecaster(self, info: EngineInfo) -> Forecaster:
        """Forecasts for that engine."""
        return Forecaster(self.table, self.prompts.segments, self.config, info)

    def _drop_too_long(self, info: EngineInfo, answered: dict[int, str]) -> None:
        if info.max_model_len is None or self.prompts.counts != "exact":
            return  # the engine counts for itself, and refuses exactly the rows that are too long
        codes = self.table.codes[:, self.distinct.first_rows]
        lengths = self.prompts.lengths(codes)
        room = info.max_model_len - answer_room(self.answer_format)
        for group in np.flatnonzero(lengths > room).tolist():
            if int(self.distinct.first_rows[group]) in answered:
                continue
            name, tokens = self.prompts.longest_field(codes[:, group])
            self._fail_group(
                group,
                f"{TOO_LONG}: {lengths[group]} tokens and the answer exceed the model's {info.max_model_len}; column "
                f"{name!r} has {tokens}: shorten it",
            )

    # ---------------------------------------------------------------------------------------- engine, results
    def check_store(self, earlier: EarlierOutput | None) -> None:
        """Refuse a checkpoint or an output that this job must not touch, before an engine is started for it."""
        if earlier is None and self.config.checkpoint is None:
            return
        identity = dict(self.record("").job)
        del identity["model"]  # not known yet
        if earlier is not None:
            earlier.check(identity)
        if self.config.checkpoint is not None:
            retire_checkpoint(self.config.checkpoint, earlier, identity)
            Checkpoint.check(self.config.checkpoint, identity, self.config.resume)

    def open_store(self, model: str) -> Checkpoint | MemoryAnswers:
        if self.config.checkpoint is None:
            return MemoryAnswers()
        return Checkpoint.open(self.config.checkpoint, self.record(model).job, self.config.resume)

    def forget_unusable(self, store: Checkpoint | MemoryAnswers) -> None:
        """Drop answers that the format does not admit (a checkpoint edited by hand): their rows are asked again."""
        parse = parser(self.answer_format)
        unusable = [key for key, text in store.answers.items() if not admitted(text, parse, key in store.cut)]
        for key in unusable:
            del store.answers[key]
        self.known = dict.fromkeys(store.answers, RESUMED)

    def recall(
        self, cache: AnswerCache | None, info: EngineInfo, engine: Engine, store: Checkpoint | MemoryAnswers
    ) -> None:
        """Take from the result cache what it knows of the rows without an answer."""
        if cache is None:
            return
        with self.clock("look up"):
            rows = self.distinct.first_rows
            rows = rows[np.array([row not in store.answers for row in rows.tolist()], bool)]
            codes, parse = self.table.codes[:, rows], parser(self.answer_format)
            self.cache = QueryCache(cache, self._cache_settings(info, engine), info.model)
            original = PLANNERS["original"](PlanInput(codes, ()))
            found = self.cache.find(self._form(engine)(original, codes, rows), lambda text: admitted(text, parse))
            for row, text in found.items():
                store.add(row, text, row in self.cache.cut)
                self.known[row] = CACHED

    def recalled(self, engine: Engine) -> dict[int, str]:
        """What a run would take from the result cache; a file that is not there is not made."""
        store, path = MemoryAnswers(), self.config.cache
        if path is not None and path.exists():
            with opened_cache(path) as cache:
                self.recall(cache, engine.start(), engine, store)
        return store.answers

    def ask(self, batch: Batch, engine: Engine, store: Checkpoint | MemoryAnswers) -> None:
        """Send the batch in planned order and store answers as they come."""
        group_of = dict(zip(batch.keys.tolist(), batch.groups.tolist(), strict=True))
        progress = make_progress(self.config.progress and len(batch.keys) > 0)
        parse = parser(self.answer_format)
        progress.start(len(batch.keys))
        try:
            prompts = self._form(engine)(batch.plan, batch.codes, batch.keys)
            with self.clock("ask"), closing(engine.ask(prompts, self.answer_format)) as completions:
                for reply in completions:
                    completion = checked(reply, parse)
                    self.measured.add(completion)
                    progress.add(completion)
                    self._settle(completion, group_of.pop(completion.key), store)
        except EngineDiedError as error:
            raise EngineDiedError(f"{error}; {self._saved(store)}") from error
        finally:
            progress.stop()
        for group in group_of.values():  # must not happen; if it does, no row may pass for answered
            self._fail_group(group, f"{REFUSED}: the engine gave no answer")

    def _saved(self, store: Checkpoint | MemoryAnswers) -> str:
        if self.config.checkpoint is None:
            return "name a checkpoint to keep the answers of such a run"
        if not store.answers:
            return "no row was answered"
        return f"{len(store.answers)} answers are in {self.config.checkpoint}: continue with --resume (resume=True)"

    def _settle(self, completion: Completion, group: int, store: Checkpoint | MemoryAnswers) -> None:
        if completion.text is None:
            self._fail_group(group, completion.error or f"{REFUSED}: the engine gave no answer")
        else:
            store.add(completion.key, completion.text, completion.cut)
            if self.cache is not None:
                self.cache.add(completion.key, completion.text, completion.cut)

    def result(self, batch: Batch, info: EngineInfo, store: Checkpoint | MemoryAnswers) -> QueryResult:
        """Answers and reasons in input order."""
        with self.clock("assemble"):
            parse = parser(self.answer_format)
            inverse = self.distinct.inverse
            texts = scatter([store.answers.get(row) for row in self.distinct.first_rows.tolist()], inverse)
            errors = scatter([self.group_errors.get(g) for g in range(self.distinct.num_distinct)], inverse)
            failed = np.array([error is not None for error in errors], bool)
            for row, reason in self.row_errors.items():
                errors[row] = reason
            name_sources(errors, self.grouping)
            answers = [None if text is None else parse(text) for text in texts]
            sources, origins = answer_origins(self.grouping, self.known, failed)
            statuses = outcome.row_statuses(errors, sources.tolist(), store.cut)
        report, asked = self.report(batch, info, self.measured), batch.asked if len(batch.groups) else None
        report = dataclasses.replace(report, num_cut=statuses.count(outcome.CUT))
        return QueryResult(answers, errors, report, sources, origins, asked, statuses, self.record(info.model))

    def audited(self, result: QueryResult, batch: Batch, engine: Engine) -> QueryResult:
        """The result, with an audit in its report if one is wanted."""
        if not self.config.audit:
            return result
        with self.clock("audit"):
            found = audit(
                self._answered(result, batch),
                self.prompts,
                self.answer_format,
                engine,
                self.config.audit,
                self.config.seed,
            )
        report = dataclasses.replace(result.report, audit=found, stage_seconds=dict(self.seconds))
        return dataclasses.replace(result, report=report)

    def _answered(self, result: QueryResult, batch: Batch) -> Answered:
        """What there is to audit. Rows merged as exactly equal have one prompt: to ask it twice says nothing."""
        origins = np.array(result.origins, dtype=object)
        rows = np.arange(len(origins))
        asked = rows[result.source_rows == rows]
        merged = rows[(result.source_rows >= 0) & (result.source_rows != rows) & (origins != EXACT)]
        fields = dict(zip(batch.keys[batch.plan.rows].tolist(), batch.plan.fields, strict=True))
        return Answered(self.table.codes, result.answers, asked, merged, result.source_rows, fields)

    def report(self, batch: Batch, info: EngineInfo, measured: Measured) -> RunReport:
        failed = self._failed_rows()
        return RunReport(
            question=self.question.template,
            model=info.model,
            planner=batch.plan.planner,
            field_order=self._field_order(batch.plan),
            num_rows=len(self.distinct.inverse),
            num_distinct=self.distinct.num_distinct,
            num_asked=len(batch.groups),
            num_resumed=batch.num_resumed,
            num_failed=sum(failed.values()),
            failures=failed,
            predicted=batch.predicted,
            original=batch.original,
            ceiling=batch.ceiling,
            token_counts=self.prompts.counts,
            measured_prompt_tokens=measured.prompt_tokens or None,
            measured_cached_tokens=measured.cached_tokens,
            output_tokens=measured.output_tokens,
            stage_seconds=dict(self.seconds),
            num_cached=sum(origin == CACHED for origin in self.known.values()),
            dedup=self.merges,
            layout=self.config.layout,
        )

    # ------------------------------------------------------------------------------------------------ helpers
    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def _fail_row(self, row: int, reason: str) -> None:
        self.row_errors[row] = reason
        if self.config.on_error == "raise":
            raise RowFailedError(f"row {row} (counted from 0): {reason}")

    def _fail_group(self, group: int, reason: str) -> None:
        self.group_errors[group] = reason
        if self.config.on_error == "raise":
            raise RowFailedError(f"row {self.distinct.first_rows[group]} (counted from 0): {reason}")

    def _failed_rows(self) -> dict[str, int]:
        counts = Counter(kind(reason) for reason in self.row_errors.values())
        sizes = np.bincount(self.distinct.inverse[self.distinct.inverse >= 0], minlength=self.distinct.num_distinct)
        for group, reason in self.group_errors.items():
            counts[kind(reason)] += int(sizes[group])
        return dict(counts)

    def _field_order(self, plan: Plan) -> tuple[str, ...]:
        """The field order of the first row asked; planners may vary it from row to row."""
        order = plan.fields[0].tolist() if len(plan.fields) else range(self.table.num_columns)
        return tuple(self.table.names[column] for column in order)

    def _form(self, engine: Engine) -> Callable[[Plan, np.ndarray, np.ndarray], Iterator[Prompt]]:
        return self.prompts.token_prompts if engine.prompt_form == "token_ids" else self.prompts.message_prompts

    def record(self, model: str) -> JobRecord:
        """What makes two jobs the same: a checkpoint serves only its own."""
        named = (self.question.template, self.answer_format, model, self.table, self.config, self.grouper.settings)
        return JobRecord(functools.partial(job_identity, *named), self.table)

    def _cache_settings(self, info: EngineInfo, engine: Engine) -> dict[str, Any]:
        """What an answer depends on beside its prompt: an answer serves only under the same."""
        free = {"pinned": sorted(self.pinned), "before": self.before}
        return {
            "model": info.model,
            "fingerprint": info.fingerprint,
            "answer form": answer_form(self.answer_format),
            "decoding": "greedy",  # engines ask at temperature 0
            # the name that this order had when caches were first written
            "fields": "published" if self.config.order == "original" else free,
            "prompt form": engine.prompt_form,
        }

"""The only module that knows the order of the stages: table -> dedup -> plan -> prompts -> engine -> results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from vllm_relational.config import QueryConfig
from vllm_relational.dedup.grouper import EXACT
from vllm_relational.engine.base import Engine, closing
from vllm_relational.prompts import Tokenizer
from vllm_relational.query.answers import NO_ANSWER, Answers, Store
from vllm_relational.query.audit import Answered, audit
from vllm_relational.query.job_record import EarlierOutput, retire_checkpoint, take_over
from vllm_relational.query.planned import PlannedBatch, plan_batch
from vllm_relational.query.prepared import Prepared, prepare
from vllm_relational.records import AnswerFormat, EngineDiedError, EngineInfo, QueryResult
from vllm_relational.results.cache import opened_cache
from vllm_relational.results.checkpoint import Checkpoint, MemoryAnswers
from vllm_relational.results.outcome import checked
from vllm_relational.results.parse import parser
from vllm_relational.results.progress import make_progress

# What the reason of a row begins with that was not answered because its query ended before.
INTERRUPTED = "interrupted"

Keep = Callable[[QueryResult], None]


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
    return run_prepared(prepare(table, template, answer_format, config, tokenizer), engine, keep, earlier)


def run_prepared(
    query: Prepared, engine: Engine, keep: Keep = lambda result: None, earlier: EarlierOutput | None = None
) -> QueryResult:
    """``run_query`` for what was prepared before, which may be a part of a larger query."""
    _check_store(query, earlier)
    if not query.distinct.num_distinct:
        return _nothing_asked(query, engine)
    run = Run(query, engine)
    result = run.answered(keep, earlier)
    keep(result)
    return run.audited(result)


def _check_store(query: Prepared, earlier: EarlierOutput | None) -> None:
    """Refuse a checkpoint or an output that this job must not touch, before an engine is started for it."""
    config = query.config
    if earlier is None and config.checkpoint is None:
        return
    identity = dict(query.record("").job)
    del identity["model"]  # not known yet
    if earlier is not None:
        earlier.check(identity)
    if config.checkpoint is not None:
        retire_checkpoint(config.checkpoint, earlier, identity)
        Checkpoint.check(config.checkpoint, identity, config.resume)


def _nothing_asked(query: Prepared, engine: Engine) -> QueryResult:
    """The result of a query without a question: a table without rows, or with a null in each. Starts no engine."""
    info = EngineInfo(str(getattr(engine, "model", None) or "not started"))
    answers = Answers(query, MemoryAnswers())
    batch = plan_batch(query, info, {}, answers.outcome.clock)
    answers.outcome.clock.seconds["ask"] = 0.0  # comparisons read how long it took
    return answers.result(batch, info)


class Run:
    """One prepared query, asked of one engine; used once."""

    def __init__(self, query: Prepared, engine: Engine) -> None:
        self._query, self._engine = query, engine
        self._answers: Answers
        self._batch: PlannedBatch

    def answered(self, keep: Keep, earlier: EarlierOutput | None) -> QueryResult:
        """Start the engine, take what is known, ask the rest."""
        query, engine = self._query, self._engine
        with opened_cache(query.config.cache) as cache:
            answers = Answers(query, MemoryAnswers())
            with answers.outcome.clock("start engine"):
                info = engine.start()
            answers.store = self._open_store(info)
            self._answers = answers
            try:
                if earlier is not None:
                    rows = query.distinct.first_rows.tolist()
                    take_over(earlier, query.record(info.identity), rows, answers.store)
                answers.forget_unusable()
                answers.recall(cache, info, engine)
                self._batch = plan_batch(query, info, answers.store.answers, answers.outcome.clock)
                answers.outcome.failed.update(self._batch.too_long)
                with self._keeping(info, keep):
                    self._ask()
                    return answers.result(self._batch, info)
            finally:
                answers.store.close()

    def _open_store(self, info: EngineInfo) -> Store:
        config = self._query.config
        if config.checkpoint is None:
            return MemoryAnswers()
        return Checkpoint.open(config.checkpoint, self._query.record(info.identity).job, config.resume)

    def _ask(self) -> None:
        """Send the batch in planned order and keep answers as they come."""
        query, batch, answers = self._query, self._batch, self._answers
        group_of = dict(zip(batch.keys.tolist(), batch.groups.tolist(), strict=True))
        progress = make_progress(query.config.progress if len(batch.keys) else False)
        parse = parser(query.answer_format)
        progress.start(len(batch.keys))
        try:
            prompts = query.prompts_for(self._engine)(batch.plan, batch.codes, batch.keys)
            with (
                answers.outcome.clock("ask"),
                closing(self._engine.ask(prompts, query.answer_format)) as completions,
            ):
                for reply in completions:
                    completion = checked(reply, parse)
                    progress.add(completion)
                    answers.settle(completion, group_of.pop(completion.key))
        except EngineDiedError as error:
            raise EngineDiedError(f"{error}; {self._saved()}") from error
        finally:
            progress.stop()
        for group in group_of.values():  # must not happen; if it does, no row may pass for answered
            answers.fail(group, NO_ANSWER)

    def _saved(self) -> str:
        checkpoint = self._query.config.checkpoint
        if checkpoint is None:
            return "name a checkpoint to keep the answers of such a run"
        if not self._answers.store.answers:
            return "no row was answered"
        return f"{len(self._answers.store.answers)} answers are in {checkpoint}: continue with --resume (resume=True)"

    @contextmanager
    def _keeping(self, info: EngineInfo, keep: Keep) -> Iterator[None]:
        """If the query ends inside by an exception, Ctrl-C too, ``keep`` gets what was answered; then it is raised on.

        Rows without an answer are null, and their reason begins with 'interrupted'.
        """
        try:
            yield
        except BaseException as error:
            batch, answers = self._batch, self._answers
            keys = zip(batch.keys.tolist(), batch.groups.tolist(), strict=True)
            answers.leave((group for key, group in keys if key not in answers.store.answers), _interruption(error))
            keep(answers.result(batch, info))
            raise

    # ------------------------------------------------------------------------------------------------- afterwards
    def audited(self, result: QueryResult) -> QueryResult:
        """The result, with an audit in its report if one is wanted."""
        query, config = self._query, self._query.config
        if not config.audit:
            return result
        clock = self._answers.outcome.clock
        with clock("audit"):
            answered = self._to_audit(result)
            found = audit(answered, query.prompts, query.answer_format, self._engine, config.audit, config.seed)
        report = dataclasses.replace(result.report, audit=found, stage_seconds=dict(clock.seconds))
        return dataclasses.replace(result, report=report)

    def _to_audit(self, result: QueryResult) -> Answered:
        """What there is to audit. Rows merged as exactly equal have one prompt: to ask it twice says nothing."""
        batch, origins = self._batch, np.array(result.origins, dtype=object)
        rows = np.arange(len(origins))
        asked = rows[result.source_rows == rows]
        merged = rows[(result.source_rows >= 0) & (result.source_rows != rows) & (origins != EXACT)]
        fields = dict(zip(batch.keys[batch.plan.rows].tolist(), batch.plan.fields, strict=True))
        return Answered(self._query.table.codes, result.answers, asked, merged, result.source_rows, fields)


def _interruption(error: BaseException) -> str:
    why = "the query was stopped" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
    return f"{INTERRUPTED}: not answered before the query ended: {why}"

"""The answers of one run: taken from earlier outputs, a checkpoint and the result cache, then from the engine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vllm_relational.dedup import scatter
from vllm_relational.dedup.grouper import answer_origins, name_sources
from vllm_relational.engine.base import Engine
from vllm_relational.query.planned import PlannedBatch
from vllm_relational.query.prepared import Prepared
from vllm_relational.query.report import Outcome, run_report
from vllm_relational.records import Completion, EngineInfo, Origin, QueryResult, RowFailedError
from vllm_relational.results import outcome as statuses
from vllm_relational.results.cache import AnswerCache, QueryCache
from vllm_relational.results.checkpoint import Checkpoint, MemoryAnswers
from vllm_relational.results.outcome import REFUSED, admitted
from vllm_relational.results.parse import parser

Store = Checkpoint | MemoryAnswers
NO_ANSWER = f"{REFUSED}: the engine gave no answer"


class Answers:
    """Answers of the groups of a query, by the row asked, and the reasons of those that have none.

    store:   holds the answers, each as soon as it is there.
    outcome: see ``report.Outcome``.
    """

    def __init__(self, query: Prepared, store: Store) -> None:
        self._query, self.store = query, store
        self.outcome = Outcome(query.seconds)
        self._parse = parser(query.answer_format)
        self._cache: QueryCache | None = None

    def forget_unusable(self) -> None:
        """Drop answers that the format does not admit (a checkpoint edited by hand): their rows are asked again."""
        store = self.store
        unusable = [key for key, text in store.answers.items() if not admitted(text, self._parse, key in store.cut)]
        for key in unusable:
            del store.answers[key]
        self.outcome.known = dict.fromkeys(store.answers, Origin.RESUMED)

    def recall(self, cache: AnswerCache | None, info: EngineInfo, engine: Engine) -> None:
        """Take from the result cache what it knows of the rows without an answer; later answers are added to it."""
        if cache is None:
            return
        with self.outcome.clock("look up"):
            rows = self._query.distinct.first_rows
            rows = rows[np.array([row not in self.store.answers for row in rows.tolist()], bool)]
            self._cache, found = self._query.recalled(cache, info, engine, rows)
            for row, text in found.items():
                self.store.add(row, text, row in self._cache.cut)
                self.outcome.known[row] = Origin.CACHED

    def settle(self, completion: Completion, group: int) -> None:
        """Keep a completion, which was checked, or the reason why it is no answer."""
        self.outcome.measured.add(completion)
        if completion.text is None:
            self.fail(group, completion.error or NO_ANSWER)
            return
        self.store.add(completion.key, completion.text, completion.cut)
        if self._cache is not None:
            self._cache.add(completion.key, completion.text, completion.cut)

    def fail(self, group: int, reason: str) -> None:
        """The group gets no answer. Raises ``RowFailedError`` if ``on_error`` is 'raise'."""
        self.outcome.failed[group] = reason
        if self._query.config.on_error == "raise":
            row = self._query.distinct.first_rows[group]
            raise RowFailedError(f"row {row} (counted from 0): {reason}")

    def leave(self, groups: Iterable[int], reason: str) -> None:
        """The query ends before these groups were answered."""
        for group in groups:
            self.outcome.failed.setdefault(group, reason)

    def result(self, batch: PlannedBatch, info: EngineInfo) -> QueryResult:
        """Answers and reasons in input order."""
        query = self._query
        with self.outcome.clock("assemble"):
            rows, inverse = query.distinct.first_rows.tolist(), query.distinct.inverse
            texts = scatter([self.store.answers.get(row) for row in rows], inverse)
            answers = [None if text is None else self._parse(text) for text in texts]
            errors = self._errors()
            failed = np.array([error is not None for error in errors], bool)
            name_sources(errors, query.grouping)
            sources, origins = answer_origins(query.grouping, self.outcome.known, failed)
            row_statuses = statuses.row_statuses(errors, sources.tolist(), self.store.cut)
        report = run_report(query, batch, info, self.outcome, row_statuses.count(statuses.CUT))
        prompt_batch = batch.prompt_batch if len(batch.groups) else None
        record = query.record(info.identity)
        return QueryResult(answers, errors, report, sources, origins, prompt_batch, row_statuses, record)

    def _errors(self) -> list[str | None]:
        """One reason a failed row, in input order."""
        distinct = self._query.distinct
        reasons = [self.outcome.failed.get(group) for group in range(distinct.num_distinct)]
        errors = scatter(reasons, distinct.inverse)
        for row, reason in self._query.row_errors.items():
            errors[row] = reason
        return errors

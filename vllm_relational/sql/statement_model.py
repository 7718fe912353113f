"""The model as one statement asks it: each batch comes after those before, whose prefixes may still be cached."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from vllm_relational.records import EngineInfo, PromptBatch, QueryResult, RunReport
from vllm_relational.sql.operator import LanguageModel


class Model(LanguageModel, Protocol):
    """What a statement needs of ``RelationalLLM``."""

    @property
    def engine(self) -> Any:
        """The engine behind it, started or not."""

    def start(self) -> EngineInfo:
        """The engine, started; what it says of itself."""


class StatementModel:
    """``RelationalLLM`` that remembers what a statement asked, and plans and forecasts what comes next from there.

    info:   the engine to forecast for; None for the one that is expected.
    engine: the engine that runs, whose answers in the result cache a forecast leaves out; None looks into no cache.
    """

    def __init__(self, llm: Model, info: EngineInfo | None = None, engine: Any = None) -> None:
        self._llm, self._info, self._engine = llm, info, engine
        self._asked: list[PromptBatch] = []

    def from_start(self) -> StatementModel:
        """The same before anything was asked."""
        return StatementModel(self._llm, self._info, self._engine)

    def started(self) -> StatementModel:
        """For the engine as it is, which is started if need be. Named as expected: answers are filed under that."""
        info = dataclasses.replace(self._llm.start(), model=self.expected_engine().model)
        return StatementModel(self._llm, info, self._llm.engine)

    def start(self) -> EngineInfo:
        """The engine, started if need be; what it says of itself, and what is expected where it does not say."""
        info, expected = self._llm.start(), self.expected_engine()
        return dataclasses.replace(info, max_model_len=info.max_model_len or expected.max_model_len)

    def with_cache_share(self, share: float) -> StatementModel:
        """For that share of the engine's KV cache."""
        info = self.expected_engine()
        if info.kv_cache_tokens is None or share == 1:
            return self.from_start()
        smaller = max(int(info.kv_cache_tokens * share), info.block_size)
        return StatementModel(self._llm, dataclasses.replace(info, kv_cache_tokens=smaller), self._engine)

    def run(self, table: Any, prompt: str, **options: Any) -> QueryResult:
        """Ask the prompt of every row."""
        result = self._llm.run(table, prompt, after=self._asked, **options)
        if result.asked is not None:
            self._asked.append(result.asked)
        return result

    def prepare(self, table: Any, prompt: str, **options: Any) -> Any:
        """Deduplicate and tokenise, ask nothing."""
        return self._llm.prepare(table, prompt, **options)

    def forecast(self, table: Any, prompt: str, quick: bool = False, **options: Any) -> RunReport:
        """Plan as ``run`` would, or in less time, and go on as if that had been asked."""
        prepared = self._llm.prepare(table, prompt, after=self._asked, **options)
        planned = prepared.plan(self.expected_engine(), quick=quick, engine=self._engine)
        report: RunReport = planned.report
        if report.num_asked:
            self._asked.append(planned.asked)
        return report

    def expected_engine(self) -> EngineInfo:
        """The engine to plan for."""
        return self._info or self._llm.expected_engine()

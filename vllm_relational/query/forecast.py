"""What the KV cache will serve of a planned batch, after what the engine was asked just before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_relational.config import ROW_FIRST, QueryConfig
from vllm_relational.kv.replay import replay, replay_last
from vllm_relational.plan.bound import Earlier, max_served
from vllm_relational.plan.follow import backwards, follow, track
from vllm_relational.records import (
    CacheForecast,
    EncodedTable,
    EngineInfo,
    Plan,
    PlanInput,
    PromptBatch,
    PromptSegments,
)


@dataclass(frozen=True)
class Forecaster:
    """Forecasts for one query on one engine; ``table`` and ``segments`` are the query's."""

    table: EncodedTable
    segments: PromptSegments
    config: QueryConfig
    info: EngineInfo

    def prompt_batch(self, plan: Plan, codes: np.ndarray) -> PromptBatch:
        """The prompts of a plan as later ones find them in the cache."""
        return PromptBatch(self.table, self.segments, codes, plan, self.config.layout == ROW_FIRST)

    def forecast(self, plan: Plan, codes: np.ndarray, policy: str | None = None) -> CacheForecast:
        """What the engine's prefix cache will serve; policy: what it evicts first, by default what the engine does.

        Whole blocks are counted. What token-exact reuse adds depends on which rows run in the same step.
        """
        info, policy = self.info, policy or self.info.eviction
        capacity = (info.kv_cache_tokens or 0) // info.block_size
        if self.config.after:
            served = replay_last(
                [*self.config.after, self.prompt_batch(plan, codes)], info.block_size, capacity, policy
            )
        else:
            served = replay(self.segments, codes, plan, info.block_size, capacity, [policy])[policy]
        less_than_a_block = info.kv_cache_tokens is not None and not capacity  # 0 means without limit above
        return served if info.prefix_caching and not less_than_a_block else CacheForecast(served.prompt_tokens, 0)

    def cheapest(self, batch: PlanInput, own: Plan) -> tuple[Plan, CacheForecast]:
        """The plan of which most is served: the planner's own, or one that follows rows that were asked before."""
        plans = [own, *self._following(batch, own)]
        forecasts = [self.forecast(plan, batch.codes) for plan in plans]
        best = max(range(len(plans)), key=lambda place: forecasts[place].hit_tokens)
        return plans[best], forecasts[best]

    def _following(self, batch: PlanInput, own: Plan) -> list[Plan]:
        free = self.config.order != "original" and not batch.pinned and not batch.before
        earlier = [asked for asked in self.config.after if asked.row_first]
        if not free or not earlier or self.config.layout != ROW_FIRST:
            return []
        found = follow(batch, own, [track(asked, self.table) for asked in earlier])
        if found is None:
            return []
        return [found] if self.info.kv_cache_tokens is None else [found, backwards(found)]

    def ceiling(self, batch: PlanInput) -> float:
        """Share of prompt tokens that a cache can serve at most, whatever the order (``plan/bound.py``)."""
        before = [Earlier(asked.segments, self._known(asked)) for asked in self.config.after]
        served, total = max_served(self.segments, batch.codes, batch.overlaps, before)
        return served / max(total, 1)

    def _known(self, asked: PromptBatch) -> tuple[np.ndarray, ...]:
        return tuple(np.unique(codes[codes >= 0]) for codes in track(asked, self.table).codes)

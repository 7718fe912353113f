"""What a plan is worth with a cache of limited size: the objective that ``plan/objective.py`` leaves the limit out of.

How far the policy at work is from ``belady`` tells what a better eviction could still win; how far ``belady`` is from a
cache without limit tells what only more memory, or another plan, can.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vllm_relational import native
from vllm_relational.records import CacheForecast, Plan, PromptSegments


def replay(
    segments: PromptSegments,
    codes: np.ndarray,
    plan: Plan,
    block_size: int,
    capacity_blocks: int,
    policies: Iterable[str] = ("lru", "belady"),
) -> dict[str, CacheForecast]:
    """Prompt tokens, and how many of them the cache serves, under each policy (``kv/policy.py``) by name.

    ``lru`` is stock vLLM, ``belady`` the bound of all policies. Arguments, errors and rules are those of
    ``native.simulate_prefix_cache``.
    """
    forecasts = {}
    for policy in policies:
        hits, lengths = native.simulate_prefix_cache(segments, codes, plan, block_size, capacity_blocks, policy)
        forecasts[policy] = CacheForecast(int(lengths.sum(dtype=np.int64)), int(hits.sum(dtype=np.int64)))
    return forecasts

"""How many answers stay the same when rows are asked again, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from vllm_relational.records import Agreement

CONFIDENCE = 0.95
SHOWN_CHANGES = 3


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927); (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, widening = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / widening
    half = z / widening * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At the ends the formula gives 0 and 1 up to rounding.
    low = 0.0 if not successes else max(0.0, centre - half)
    return low, 1.0 if successes == trials else min(1.0, centre + half)


def agreement(sample: str, population: int, before: Mapping[int, Any], again: Mapping[int, Any]) -> Agreement:
    """Compare answers by row.

    before: of each row asked again the answer of the run; again: the answers it got now, without the rows that failed.
    """
    changed = [(row, before[row], answer) for row, answer in sorted(again.items()) if answer != before[row]]
    agreed = len(again) - len(changed)
    low, high = wilson_interval(agreed, len(again))
    failed = len(before) - len(again)
    return Agreement(sample, population, len(before), agreed, failed, low, high, tuple(changed[:SHOWN_CHANGES]))

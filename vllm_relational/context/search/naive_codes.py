"""The reference of csrc/context/codes.cc in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_relational.context.search import naive
from vllm_relational.context.search.hits import Hits

ARRAYS = ("zeros", "scales", "words")
GROUP = 16
CODES = 15
MIN_SCALE = 2.0**-12
"""Beside the size of the zero point: so that rounding of products does not show beside half a scale."""
MAX_KEY = 2.0**100


def _bf16_below(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    away = (bits & 0xFFFF != 0) & (values < 0)
    below: np.ndarray = ((bits >> 16) + away).astype(np.uint16)
    return below


def _bf16_above(values: np.ndarray) -> np.ndarray:
    return _bf16_below(-values) ^ np.uint16(0x8000)


def _in_groups(keys: np.ndarray) -> np.ndarray:
    """Float32 ``[num_groups, GROUP, head_size]``; the last group is filled up with its own last key."""
    count = -(-len(keys) // GROUP) * GROUP
    places = np.minimum(np.arange(count), max(len(keys) - 1, 0))
    groups: np.ndarray = naive.numbers(keys)[places].astype(np.float32).reshape(-1, GROUP, keys.shape[1])
    return groups


def encode(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """zeros and scales, bfloat16 ``[num_groups, head_size]``, and words, uint32 ``[num_groups, ceil(head_size / 8),
    16]``, of which each holds eight channels of a key, the first in its lowest bits."""
    groups = _in_groups(keys)
    with np.errstate(all="ignore"):
        fits = (np.abs(groups) <= MAX_KEY).all(1)
        low, high = groups.min(1), groups.max(1)
        zeros = _bf16_below(low)
        at = naive.numbers(zeros).astype(np.float32)
        steps = (high - at) * np.float32(1 + 2.0**-20) / np.float32(CODES)
        scale = np.maximum.reduce([steps, np.abs(at) * np.float32(MIN_SCALE), np.full_like(at, 2.0**-100)])
        scales = _bf16_above(scale)
        size = naive.numbers(scales).astype(np.float32)
        codes = np.floor((groups - at[:, None]) / size[:, None] + np.float32(0.5)).clip(0, CODES)
    codes = np.where(fits[:, None], codes, 0).astype(np.uint32)
    codes[len(codes) - 1 :, (len(keys) - 1) % GROUP + 1 :] = 0
    padded = np.zeros((len(codes), GROUP, -(-keys.shape[1] // 8) * 8), np.uint32)
    padded[..., : keys.shape[1]] = codes
    words = (padded.reshape(*padded.shape[:2], padded.shape[2] // 8, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(
        -1, dtype=np.uint32
    )
    unusable = np.uint16(0x7FC0)
    return np.where(fits, zeros, unusable), np.where(fits, scales, 0).astype(np.uint16), words.transpose(0, 2, 1).copy()


class Codes:
    """Bounds in float64 from the codes, and searches among what they leave."""

    def __init__(self, keys: np.ndarray, zeros: np.ndarray, scales: np.ndarray, words: np.ndarray) -> None:
        self.keys = keys
        shifts = 4 * np.arange(8, dtype=np.uint32)
        codes = (words[..., None] >> shifts & 15).transpose(0, 2, 1, 3).reshape(len(words), GROUP, words.shape[1] * 8)
        zero, self.scale = naive.numbers(zeros), naive.numbers(scales)
        decoded = zero[:, None] + self.scale[:, None] * codes[..., : keys.shape[1]]
        self.decoded = decoded.reshape(-1, keys.shape[1])[: len(keys)]

    def bounds(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest that scores can be, float64 ``[num_heads, num_keys]``; NaN where any."""
        with np.errstate(invalid="ignore"):
            middle = queries.astype(np.float64) @ self.decoded.T
            reach = np.abs(queries).astype(np.float64) @ self.scale.T / 2 * (1 + 2.0**-20)
        reach = np.repeat(reach, GROUP, -1)[:, : len(self.keys)]
        return middle - reach, middle + reach

    def dipr(
        self, queries: np.ndarray, beta: float, lower: np.ndarray | None, start: int, stop: int, **_: Any
    ) -> tuple[Any, ...]:
        """See ``codes_dipr``."""
        least, most = (bound[:, start:stop] for bound in self.bounds(queries))
        with np.errstate(invalid="ignore"):
            candidates = np.logical_not(most < (naive.greatest(least, lower) - beta)[:, None])
        return self._among(
            np.any(candidates, 0), start, lambda keys: naive.dipr(keys, queries, beta, 0, len(keys), lower)
        )

    def topk(self, queries: np.ndarray, k: int, start: int, stop: int, **_: Any) -> tuple[Any, ...]:
        """See ``codes_topk``."""
        least, most = (bound[:, start:stop] for bound in self.bounds(queries))
        place = min(k, stop - start)
        last = -np.sort(-np.where(np.isnan(least), -np.inf, least), -1)[:, place - 1 : place] if place else np.inf
        candidates = np.logical_not(most < last)
        return self._among(np.any(candidates, 0), start, lambda keys: naive.topk(keys, queries, place, 0, len(keys)))

    def _among(self, candidates: np.ndarray, start: int, search: Any) -> tuple[Any, ...]:
        tokens = np.flatnonzero(candidates) + start
        hits: Hits = search(self.keys[tokens])
        return hits.offsets, tokens[hits.tokens].astype(np.int32), hits.scores, len(tokens)

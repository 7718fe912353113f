"""The reference of csrc/context/clusters.cc and clusters_build.cc in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vllm_relational.context.search import naive
from vllm_relational.context.search.hits import hits_of

ARRAYS = ("starts", "tokens", "means", "variances", "covariance", "odd")
MAX_KEY = 2.0**60
Threshold = Callable[[np.ndarray], np.ndarray]
"""Scores ``[num_heads, num_seen]`` -> the least score that each head can still want."""


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, as uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded: np.ndarray = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return rounded


def _rounded(values: np.ndarray) -> np.ndarray:
    return naive.numbers(to_bf16(values))


def _nearest(keys: np.ndarray, centres: np.ndarray) -> np.ndarray:
    nearest: np.ndarray = np.argmax(_rounded(keys) @ centres.T - (centres**2).sum(-1) / 2, axis=-1)
    return nearest


def _k_means(keys: np.ndarray, cluster_size: int, rounds: int) -> np.ndarray:
    """Which centre each key belongs to."""
    num_centres = -(-len(keys) // cluster_size)
    centres = _rounded(keys[np.arange(num_centres) * len(keys) // num_centres])
    for _ in range(rounds - 1):
        nearest = _nearest(keys, centres)
        for centre in np.unique(nearest):
            centres[centre] = _rounded(keys[nearest == centre].mean(0))
    return _nearest(keys, centres)


def _members(values: np.ndarray, usable: np.ndarray, size: int, segment: int, rounds: int) -> Iterator[np.ndarray]:
    for first in range(0, len(values), segment):
        own = np.flatnonzero(usable[first : first + segment]) + first
        if len(own):
            nearest = _k_means(values[own], size, rounds)
            yield from (own[nearest == centre] for centre in np.unique(nearest))


def build(keys: np.ndarray, cluster_size: int, segment: int, rounds: int) -> tuple[np.ndarray, ...]:
    """The arrays of ``ARRAYS``: see ``ClusterParts``."""
    values, head_size = naive.numbers(keys), keys.shape[1]
    usable = (np.abs(values) < MAX_KEY).all(-1)
    clusters = list(_members(values, usable, cluster_size, segment, rounds))
    means = np.array([to_bf16(values[own].mean(0)) for own in clusters], np.uint16).reshape(-1, head_size)
    away = [values[own] - naive.numbers(mean) for own, mean in zip(clusters, means, strict=True)]
    variances = np.array([to_bf16((each**2).mean(0)) for each in away], np.uint16).reshape(-1, head_size)
    starts = np.cumsum([0, *map(len, clusters)]).astype(np.int32)
    tokens = np.concatenate([*clusters, np.zeros(0)]).astype(np.int32)
    covariance = sum((each.T @ each for each in away), np.zeros((head_size, head_size))) / max(len(tokens), 1)
    return starts, tokens, means, variances, covariance.astype(np.float32), np.flatnonzero(~usable).astype(np.int32)


class Parts:
    """Clusters and the searches in them."""

    def __init__(self, keys: np.ndarray, **arrays: np.ndarray) -> None:
        for name in ("tokens", "odd"):
            naive.check_tokens(arrays[name], len(keys))
        self.keys, self.arrays = keys, arrays

    def products(self, queries: np.ndarray, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        """See ``Clusters.products``."""
        means, variances = naive.numbers(self.arrays["means"]), naive.numbers(self.arrays["variances"])
        covariance, asked = self.arrays["covariance"].astype(np.float64), queries.astype(np.float64)
        trace = np.trace(covariance)
        shared = np.einsum("ha,ab,hb->h", asked, covariance, asked) / trace if trace > 0 else np.zeros(len(asked))
        variance = (_rounded(queries**2) @ variances.T + shared[:, None] * variances.sum(-1)) / 2
        return (asked @ means.T).astype(np.float32), np.sqrt(np.maximum(variance, 0)).astype(np.float32)

    def dipr(
        self, queries: np.ndarray, beta: float, lower: np.ndarray | None, start: int, stop: int, **rule: Any
    ) -> tuple[Any, ...]:
        """See ``clusters_dipr``; thresholds rise after every cluster."""

        def threshold(scores: np.ndarray) -> np.ndarray:
            return naive.greatest(scores, lower) - beta

        opened, scores = self._open(queries, start, stop, threshold, **rule)
        return self._found(opened, scores, naive.keep(scores, beta, lower))

    def topk(self, queries: np.ndarray, k: int, start: int, stop: int, **rule: Any) -> tuple[Any, ...]:
        """See ``clusters_topk``; thresholds rise after every cluster."""
        place = min(k, stop - start)

        def threshold(scores: np.ndarray) -> np.ndarray:
            if place == 0 or scores.shape[1] < place:
                return np.full(len(scores), np.inf if place == 0 else -np.inf)
            last: np.ndarray = -np.sort(-np.nan_to_num(scores, nan=np.inf), -1)[:, place - 1]
            return last

        opened = self._open(queries, start, stop, threshold, **rule)[0]
        hits = naive.topk(self.keys[opened], queries, place, 0, len(opened))
        return hits.offsets, opened[hits.tokens].astype(np.int32), hits.scores, len(opened)

    def _open(
        self, queries: np.ndarray, start: int, stop: int, threshold: Threshold, **rule: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of opened clusters, ascending, and their scores."""
        return _Opening(self, queries, start, stop, threshold).run(rule["sure"], rule["most"], rule["share"])

    def _found(self, opened: np.ndarray, scores: np.ndarray, kept: np.ndarray) -> tuple[Any, ...]:
        rows = [np.flatnonzero(row) for row in kept]
        hits = hits_of([opened[row] for row in rows], [s[row] for s, row in zip(scores, rows, strict=True)])
        return hits.offsets, hits.tokens, hits.scores, len(opened)


class _Opening:
    """The clusters that one search opens."""

    def __init__(self, parts: Parts, queries: np.ndarray, start: int, stop: int, threshold: Threshold) -> None:
        self.keys, self.queries, self.size, self.threshold = parts.keys, queries, stop - start, threshold
        self.means, self.deviations = parts.products(queries)
        members = np.split(parts.arrays["tokens"], parts.arrays["starts"][1:-1])
        self.own = [tokens[(tokens >= start) & (tokens < stop)] for tokens in members[: self.means.shape[1]]]
        self.counts = np.array([len(tokens) for tokens in self.own], np.int64)
        self.is_open = np.zeros(len(self.own), bool)
        odd = parts.arrays["odd"]
        self.tokens = odd[(odd >= start) & (odd < stop)]
        self.scores = naive.exact_scores(self.keys[self.tokens], queries)

    def run(self, sure: float, most: float, share: float) -> tuple[np.ndarray, np.ndarray]:
        """See ``OpenRule``."""
        guesses = self.means + sure * self.deviations
        for cluster in np.argsort(-np.nan_to_num(guesses, nan=np.inf).max(0, initial=-np.inf), kind="stable"):
            if not (guesses[:, cluster] < self.threshold(self.scores)).all():
                self._look(cluster)
        for head in range(len(self.queries)):
            self._open_more(head, guesses[head], most, int(share * self.size))
        order = np.argsort(self.tokens)
        return self.tokens[order], self.scores[:, order]

    def _open_more(self, head: int, guesses: np.ndarray, most: float, enough: int) -> None:
        least = self.threshold(self.scores)[head]
        means, deviations = self.means[head], self.deviations[head]
        is_sure = np.logical_not(guesses < least)
        wanted = np.flatnonzero(~is_sure & (self.counts > 0) & (means + most * deviations >= least))
        needed = (least - means[wanted]) / deviations[wanted]
        count = self.counts[is_sure].sum()
        for cluster in wanted[np.argsort(needed, kind="stable")]:
            if count >= enough:
                return
            count += self.counts[cluster]
            self._look(cluster)

    def _look(self, cluster: int) -> None:
        if not self.is_open[cluster] and self.counts[cluster]:
            self.is_open[cluster] = True
            self.tokens = np.concatenate([self.tokens, self.own[cluster]])
            self.scores = np.concatenate(
                [self.scores, naive.exact_scores(self.keys[self.own[cluster]], self.queries)], 1
            )

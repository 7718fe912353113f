"""The reference of csrc/context/graph.cc and graph_build.cc in numpy and Python."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from vllm_relational.context.search import naive
from vllm_relational.context.search.hits import hits_of

ARRAYS = ("links", "entries")
MAX_LISTS = 64
MAX_ENTRIES = 16


def build(
    keys: np.ndarray, lists: np.ndarray, num_links: int, starts: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """links int32 ``[num_keys, num_links]``, -1 behind the last, and entries: see ``build_graph``."""
    links = np.full((len(keys), num_links), -1, np.int32)
    beside = _companions(lists)
    for key, mates in _mates(keys, starts, tokens):
        links[key, : num_links // 4] = [*mates, *[-1] * num_links][: num_links // 4]
    for key in range(len(keys)):
        own = [int(link) for link in links[key] if link >= 0]
        own += [other for other in beside.get(key, []) if other not in own]
        links[key] = [*own, *[-1] * num_links][:num_links]
    firsts = Counter(int(row[0]) for row in lists if row[0] >= 0)
    entries = sorted(range(len(keys)), key=lambda key: (-firsts[key], key))[:MAX_ENTRIES]
    return links, np.array(entries, np.int32)


def _companions(lists: np.ndarray) -> dict[int, list[int]]:
    """Of each key those that stand in its lists, those in the most first."""
    where: dict[int, list[int]] = {}
    for number, row in enumerate(lists):
        for key in row[row >= 0]:
            where.setdefault(int(key), []).append(number)
    found = {}
    for key, numbers in where.items():
        count = min(len(numbers), MAX_LISTS)
        seen = lists[[numbers[place * len(numbers) // count] for place in range(count)]].reshape(-1)
        counted = Counter(int(other) for other in seen if other >= 0 and other != key)
        found[key] = sorted(counted, key=lambda other: (-counted[other], other))
    return found


def _mates(keys: np.ndarray, starts: np.ndarray, tokens: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Of each key in a cluster the others there, by distance."""
    for begin, end in pairwise(starts.tolist()):
        own = tokens[begin:end]
        values = naive.numbers(keys[own])
        distances = (values**2).sum(-1) - 2 * values @ values.T
        for place, key in enumerate(own):
            order = np.lexsort((own, distances[place]))
            yield int(key), [int(own[other]) for other in order if other != place]


class Links:
    """A graph and the searches in it, one query head after the other."""

    def __init__(self, keys: np.ndarray, links: np.ndarray, entries: np.ndarray) -> None:
        naive.check_tokens(links, len(keys), least=-1)
        naive.check_tokens(entries, len(keys))
        self.keys, self.links, self.entries = keys, links, entries

    def dipr(
        self,
        queries: np.ndarray,
        beta: float,
        lower: np.ndarray | None,
        start: int,
        stop: int,
        expansions: int,
        **_: Any,
    ) -> tuple[Any, ...]:
        """See ``graph_dipr``."""

        def threshold(scores: np.ndarray, head: int) -> float:
            return float(naive.greatest(scores[None], _of(lower, head))[0] - beta)

        seen = [self._best_first(queries, head, start, stop, expansions, threshold) for head in range(len(queries))]
        return self._within(queries, seen, beta, lower)

    def topk(self, queries: np.ndarray, k: int, start: int, stop: int, expansions: int, **_: Any) -> tuple[Any, ...]:
        """See ``graph_topk``."""
        place = min(k, stop - start)

        def threshold(scores: np.ndarray, _: int) -> float:
            if place == 0 or len(scores) < place:
                return -np.inf if place else np.inf
            return float(-np.sort(-np.nan_to_num(scores, nan=np.inf))[place - 1])

        most = max(expansions, k)
        seen = [self._best_first(queries, head, start, stop, most, threshold) for head in range(len(queries))]
        found = []
        for head, tokens in enumerate(seen):
            hits = naive.topk(self.keys[tokens], queries[head : head + 1], place, 0, len(tokens))
            found.append((tokens[hits.tokens], hits.scores))
        return self._result(found, seen)

    def diprs(
        self,
        queries: np.ndarray,
        beta: float,
        lower: np.ndarray | None,
        start: int,
        stop: int,
        list_size: int,
        **_: Any,
    ) -> tuple[Any, ...]:
        """See ``diprs``."""
        seen = [self._as_published(queries, head, beta, lower, start, stop, list_size) for head in range(len(queries))]
        return self._within(queries, seen, beta, lower)

    def _neighbours(self, key: int, seen: set[int], start: int, stop: int) -> list[int]:
        """What expanding a key looks at first; keys outside the range stand for their own neighbours."""
        fresh: list[int] = []
        for other in map(int, self.links[key][self.links[key] >= 0]):
            self._add(other, seen, start, stop, fresh, may_hop=True)
        return fresh

    def _add(self, key: int, seen: set[int], start: int, stop: int, fresh: list[int], may_hop: bool) -> None:
        if key in seen:
            return
        if start <= key < stop:
            seen.add(key)
            fresh.append(key)
        elif may_hop:
            seen.add(key)
            for other in map(int, self.links[key][self.links[key] >= 0]):
                self._add(other, seen, start, stop, fresh, may_hop=False)

    def _enter(self, seen: set[int], start: int, stop: int) -> list[int]:
        fresh: list[int] = []
        for entry in map(int, self.entries):
            self._add(entry, seen, start, stop, fresh, may_hop=True)
        if not fresh and start < stop:
            self._add(start, seen, start, stop, fresh, may_hop=True)
        return fresh

    def _best_first(
        self, queries: np.ndarray, head: int, start: int, stop: int, expansions: int, threshold: Any
    ) -> np.ndarray:
        seen: set[int] = set()
        looked: list[int] = []
        scores = np.zeros(0)
        ahead: list[tuple[float, int]] = []
        fresh, done = self._enter(seen, start, stop), 0
        while True:
            new = naive.exact_scores(self.keys[fresh], queries[head : head + 1])[0]
            looked, scores = looked + fresh, np.concatenate([scores, new])
            for key, score in zip(fresh, new, strict=True):
                heapq.heappush(ahead, (-np.inf if np.isnan(score) else -score, -key))
            if not ahead or (done >= expansions and -ahead[0][0] < threshold(scores, head)):
                return np.array(sorted(looked), np.int64)
            fresh, done = self._neighbours(-heapq.heappop(ahead)[1], seen, start, stop), done + 1

    def _as_published(
        self,
        queries: np.ndarray,
        head: int,
        beta: float,
        lower: np.ndarray | None,
        start: int,
        stop: int,
        list_size: int,
    ) -> np.ndarray:
        seen: set[int] = set()
        looked: list[int] = []
        listed: list[int] = []
        best = -np.inf if lower is None else float(lower[head])
        fresh, done = self._enter(seen, start, stop), 0
        while True:
            for key, score in zip(
                fresh, naive.exact_scores(self.keys[fresh], queries[head : head + 1])[0], strict=True
            ):
                if len(listed) < list_size or not score < best - beta:
                    listed.append(key)
                best = max(best, score) if score == score else best
            looked += fresh
            if done == len(listed):
                return np.array(sorted(looked), np.int64)
            fresh, done = self._neighbours(listed[done], seen, start, stop), done + 1

    def _within(
        self, queries: np.ndarray, seen: list[np.ndarray], beta: float, lower: np.ndarray | None
    ) -> tuple[Any, ...]:
        found = []
        for head, tokens in enumerate(seen):
            scores = naive.exact_scores(self.keys[tokens], queries[head : head + 1])
            kept = naive.keep(scores, beta, _of(lower, head))[0]
            found.append((tokens[kept], scores[0][kept]))
        return self._result(found, seen)

    def _result(self, found: list[tuple[np.ndarray, np.ndarray]], seen: list[np.ndarray]) -> tuple[Any, ...]:
        hits = hits_of([tokens for tokens, _ in found], [scores for _, scores in found])
        return hits.offsets, hits.tokens, hits.scores, sum(map(len, seen))


def _of(lower: np.ndarray | None, head: int) -> np.ndarray | None:
    return None if lower is None else lower[head : head + 1]

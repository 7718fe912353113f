"""A graph over the keys, experimental: the fine index.

Its links join keys that the same sampled queries want, so that a walk meets what a query wants, where a graph of near
keys does not: queries are no keys (arXiv 2504.10326, section 7.2; RoarGraph, arXiv 2408.08933). A key that is visited
costs some fifty times what a scanned one costs a head: the optimizer takes a graph only where it measured it faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_relational import native
from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import loops, naive_graph
from vllm_relational.context.search.base import NativeIndex
from vllm_relational.context.search.clusters import Clusters
from vllm_relational.context.search.hits import Hits

LINKS, LISTED = 32, 32
"""Links of a key (int32: as many bytes as a key of head size 64), and keys that each sampled query lists."""
EXPANSIONS = 256
"""Keys whose links are followed at least."""
WINDOW = (128, 512)
"""AlayaDB's (arXiv 2504.10326, section 7.1)."""
PUBLISHED_LIST = 32
"""The length up to which ``diprs`` keeps every neighbour; the paper names none."""


class Graph(NativeIndex):
    """A fine index. Each query head searches for itself; ``Hits.visited`` is the sum over the heads.

    settings["expansions"]: more finds more and visits more. Neighbours outside ``[start, stop)`` are passed over to
    their own neighbours.
    """

    kind = "graph"
    heads_together = False

    @classmethod
    def build(
        cls,
        keys: np.ndarray,
        queries: np.ndarray,
        *,
        links: int = LINKS,
        expansions: int = EXPANSIONS,
        window: tuple[int, int] = WINDOW,
    ) -> Graph:
        """From queries float32 ``[num_queries, head_size]`` that were asked of these keys, of all query heads of the KV
        head: some thousands. Without any, only keys of one cluster are linked.

        window: tokens at the start and at the end that are attended to anyway. No query's list names them: they are
        what nearly all queries want most, and a walk would not get away from them.
        """
        keys = loops.stored_rows(keys, "keys")
        queries = loops.query_heads(queries, int(keys.shape[1]))
        if links < 1 or expansions < 0 or min(window) < 0:
            raise ContextError(
                f"a graph of {links} links a key, {expansions} expansions, window {window}: there is none"
            )
        clusters = Clusters.build(keys)
        start, stop = window[0], len(keys) - window[1]
        lists = _lists(keys, queries, *((start, stop) if start < stop else (0, len(keys))))
        if native.context_search() is None:
            parts = naive_graph.build(keys, lists, links, clusters.arrays["starts"], clusters.arrays["tokens"])
        else:
            parts = loops.built("build_graph", keys=keys, lists=lists, clusters=clusters.loops, num_links=links)
        return cls(keys, dict(zip(naive_graph.ARRAYS, parts, strict=True)), {"expansions": expansions})

    def _made(self) -> Any:
        return loops.made("Graph", naive_graph.Links, keys=self.keys, **self.arrays)

    def _how(self) -> dict[str, Any]:
        return {"expansions": int(self.settings["expansions"])}

    def diprs(
        self,
        queries: np.ndarray,
        beta: float,
        start: int = 0,
        stop: int | None = None,
        lower: np.ndarray | None = None,
        *,
        list_size: int = PUBLISHED_LIST,
    ) -> Hits:
        """DIPRS as published (arXiv 2504.10326, algorithm 1), for comparison: an unordered list of candidates. How much
        of the set it finds: scripts/bench/context_search.csv."""
        queries = loops.query_heads(queries, self.head_size)
        start, stop = loops.token_range(start, stop, self.num_keys)
        lower = loops.checked_lower(lower, len(queries))
        asked = {"queries": queries, "beta": loops.checked_beta(beta), "lower": lower, "start": start, "stop": stop}
        return Hits(*loops.asked_of(self.loops, "diprs", **asked, list_size=list_size))


def _lists(keys: np.ndarray, queries: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The keys of a range that each query wants most, the first first: int32 ``[num_queries, LISTED]``, -1 behind the
    last."""
    lists = np.full((len(queries), LISTED), -1, np.int32)
    for begin in range(0, len(queries), 64):
        hits = loops.scan_topk(keys, queries[begin : begin + 64], LISTED, start, stop)
        for head in range(hits.num_heads):
            order = np.argsort(-hits.scores_of(head), kind="stable")
            lists[begin + head, : len(order)] = hits.of(head)[order]
    return lists

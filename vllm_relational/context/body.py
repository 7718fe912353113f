"""The body of a session: stored tokens that are searched instead of read, where they lie. numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_relational.context.errors import DamagedContextError
from vllm_relational.context.files import STORED_AS, LayerFile
from vllm_relational.context.search import (
    Hits,
    KeyIndex,
    Optimizer,
    SearchPlan,
    SearchRules,
    Situation,
    attend,
    build,
    load,
    save,
)
from vllm_relational.context.search.calibrate import costs
from vllm_relational.context.settings import INDEXES, SessionSettings

MIN_QUERIES = 256
"""Queries that a graph is built from at least: one of a few is kept for good, and misses half of what others ask."""


@dataclass
class SearchCounts:
    """What searches read, summed over query heads: ``tokens`` of the body, ``visited`` of them whose scores were
    computed, ``attended`` that were found; ``searches``: layers times tokens."""

    searches: int = 0
    tokens: int = 0
    visited: int = 0
    attended: int = 0


@dataclass(frozen=True)
class _Layer:
    keys: list[np.ndarray]
    values: list[np.ndarray]
    indexes: list[KeyIndex]


class SearchedBody:
    """Tokens ``[start, stop)`` of a stored context, of all its layers, and the indexes that find some of them.

    queries: float32 ``[queries, head_size]`` that were asked of the keys of a layer and KV head, for a graph.
    """

    def __init__(
        self,
        stored: Any,
        settings: SessionSettings,
        span: tuple[int, int],
        queries: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self.stored, self.settings, self.span, self.counts = stored, settings, span, SearchCounts()
        self._queries = queries
        self._layers: dict[int, _Layer] = {}
        self._plans: dict[int, SearchPlan] = {}

    def attend(self, layer: int, queries: np.ndarray, lower: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Attention of queries float32 ``[num_heads, head_size]`` to the tokens that are found: float32 like them, and
        the log-sum-exp ``[num_heads]``. lower: float32 ``[num_heads]``, the greatest score outside the body."""
        if layer not in self._layers:
            self._layers[layer] = self._open(layer)
        opened = self._layers[layer]
        parts = []
        grouped = zip(np.split(queries, len(opened.keys)), np.split(lower, len(opened.keys)), strict=True)
        for head, (asked, bound) in enumerate(grouped):
            hits = self._search(opened.indexes[head], asked, bound, scale)
            parts.append(attend(opened.keys[head], opened.values[head], hits, asked, scale))
        self.counts.searches += 1
        return np.concatenate([out for out, _ in parts]), np.concatenate([lse for _, lse in parts])

    def _search(self, index: KeyIndex, queries: np.ndarray, lower: np.ndarray, scale: float) -> Hits:
        start, stop = self.span
        if self.settings.method == "topk":
            hits = index.topk(queries, self.settings.top_tokens, start, stop)
        else:
            hits = index.dipr(queries, self.settings.beta(scale), start, stop, lower)
        self.counts.tokens += len(queries) * (stop - start)
        self.counts.visited += hits.visited * (len(queries) if index.heads_together else 1)
        self.counts.attended += len(hits.tokens)
        return hits

    def _open(self, layer: int) -> _Layer:
        file: LayerFile = self.stored.layer(layer)
        heads = range(file.shape.num_kv_heads)
        keys = [file.array("keys", head) for head in heads]
        return _Layer(keys, [file.array("values", head) for head in heads], self._indexes(layer, keys))

    def plan(self, layer: int, scale: float) -> SearchPlan:
        """What the optimizer chooses for a layer, once for all tokens of the session."""
        if layer not in self._plans:
            shape = self.stored.layer(layer).shape
            there = {kind for kind in INDEXES if kind == "flat" or self.stored.index_path(kind, layer) is not None}
            asked = Situation(
                num_tokens=shape.num_tokens,
                layer=layer,
                start=self.span[0],
                stop=self.span[1],
                token_bytes=shape.head_size * STORED_AS[shape.dtype].itemsize,
                built=frozenset(there),
            )
            rules = SearchRules(beta=self.settings.beta(scale), dense_layers=self.settings.dense_layers)
            self._plans[layer] = Optimizer(costs(), rules).choose(asked)
        return self._plans[layer]

    def searches(self, layer: int, scale: float) -> bool:
        """Whether a search costs less than to attend to everything, or is asked for anyway."""
        return self.settings.method != "auto" or self.plan(layer, scale).kind != "full"

    def _kind(self, layer: int) -> str:
        return self._plans[layer].kind if layer in self._plans else self.settings.index

    def _indexes(self, layer: int, keys: list[np.ndarray]) -> list[KeyIndex]:
        """Of all KV heads: those that are kept with the context, else built, and kept for the next session. Where too
        little was asked for a graph, the session looks at all keys instead."""
        kind = self._kind(layer)
        if kind != "flat" and (kept := self._kept(kind, layer, keys)):
            return kept
        asked = [self._asked(layer, head) for head in range(len(keys))]
        if kind == "graph" and min(len(queries) for queries in asked) < MIN_QUERIES:
            kind = "flat"
        built = [build(kind, *pair) for pair in zip(keys, asked, strict=True)]
        if kind != "flat":

            def write(place: Path) -> None:
                save(place, built)

            self.stored.add_index(kind, layer, write)
        return list(built)

    def _kept(self, kind: str, layer: int, keys: list[np.ndarray]) -> list[KeyIndex]:
        """Those of the context's file; nothing where there is none, or one that is of other keys."""
        path = self.stored.index_path(kind, layer)
        try:
            return [] if path is None else list(load(path, keys, kind))
        except (DamagedContextError, FileNotFoundError):  # copied from another context, or just taken away
            return []

    def _asked(self, layer: int, head: int) -> np.ndarray:
        if self._queries is None or self._kind(layer) != "graph":
            return np.empty((0, self.stored.layer(layer).shape.head_size), np.float32)
        return self._queries(layer, head)

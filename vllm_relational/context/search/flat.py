"""The flat index: every key is looked at, for all query heads of the KV head together. Exact; it takes no memory."""

from __future__ import annotations

import numpy as np

from vllm_relational.context.search import loops
from vllm_relational.context.search.base import SearchedKeys
from vllm_relational.context.search.hits import Hits


class Flat(SearchedKeys):
    """All keys. Scores are float32; products of bfloat16 pairs are used where the processor has them, and keys and
    queries are of bfloat16."""

    kind = "flat"
    is_exact = True

    def __init__(self, keys: np.ndarray) -> None:
        super().__init__(keys, {}, {})

    def _dipr(self, queries: np.ndarray, beta: float, start: int, stop: int, lower: np.ndarray | None) -> Hits:
        return loops.scan_dipr(self.keys, queries, beta, start, stop, lower)

    def _topk(self, queries: np.ndarray, k: int, start: int, stop: int) -> Hits:
        return loops.scan_topk(self.keys, queries, k, start, stop)

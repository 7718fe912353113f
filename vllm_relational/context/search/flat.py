"""The flat index: every key is looked at, for all query heads of the KV head together. Exact; it takes no memory."""

from __future__ import annotations

import numpy as np

from vllm_relational.context.search import loops
from vllm_relational.context.search.hits import Hits


class Flat:
    """A ``KeyIndex`` over keys where they lie, a memory-mapped file too: ``[num_keys, head_size]``.

    Products are float32; products of bfloat16 pairs are used where the processor has them and the queries are of
    bfloat16.
    """

    kind = "flat"
    nbytes = 0

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = loops.stored_rows(keys, "keys")

    @property
    def num_keys(self) -> int:
        """Of this KV head."""
        return len(self.keys)

    @property
    def head_size(self) -> int:
        """Channels of a key."""
        return int(self.keys.shape[1])

    def dipr(
        self, queries: np.ndarray, beta: float, start: int = 0, stop: int | None = None, lower: np.ndarray | None = None
    ) -> Hits:
        """See ``KeyIndex.dipr``."""
        queries = loops.query_heads(queries, self.head_size)
        start, stop = loops.token_range(start, stop, self.num_keys)
        lower = loops.checked_lower(lower, len(queries))
        return loops.scan_dipr(self.keys, queries, loops.checked_beta(beta), start, stop, lower)

    def topk(self, queries: np.ndarray, k: int, start: int = 0, stop: int | None = None) -> Hits:
        """See ``KeyIndex.topk``."""
        queries = loops.query_heads(queries, self.head_size)
        start, stop = loops.token_range(start, stop, self.num_keys)
        return loops.scan_topk(self.keys, queries, loops.checked_k(k), start, stop)

"""Which requests of a batch are attended to sparsely: two lists of lengths, made on the device.

A request is *sparse* if it has one query token and a context of at least ``dense_below`` tokens. Every kernel gets the
whole batch: the dense one with the lengths of the dense requests and 0 for the others, the sparse one the other way
round. So prefill mixed with decode, verification of drafted tokens and rows that only pad a CUDA graph need no slicing,
and a captured graph serves every mix of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Rows:
    """What a sparse layer needs to know of a batch, beside vLLM's metadata.

    dense:        vLLM's metadata with the lengths of dense requests only.
    sparse_lens:  int32 ``[num_reqs]``, tokens of the context of sparse requests, 0 for others.
    some, all:    what the host knows: whether any request can be sparse, and whether none can be dense. What it does
                  not know is True for ``some`` and False for ``all``.
    """

    dense: Any
    sparse_lens: torch.Tensor
    some: bool
    all: bool


class RowSplitter:
    """Splits lengths into those of dense and those of sparse requests.

    It owns both lists: CUDA graphs read them where they were when the graph was captured.
    """

    def __init__(self, dense_below: int, max_reqs: int, device: torch.device) -> None:
        # A context of no tokens is a row that only pads.
        self.dense_below = max(dense_below, 1)
        self._dense = torch.zeros(max_reqs, dtype=torch.int32, device=device)
        self._sparse = torch.zeros(max_reqs, dtype=torch.int32, device=device)

    def split(self, query_start_loc: torch.Tensor, seq_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lengths of dense and of sparse requests, int32 ``[num_reqs]`` each, views of the same memory every time.

        query_start_loc: int32 ``[num_reqs + 1]`` or longer; seq_lens: int32 ``[num_reqs]``. Reads nothing on the host.
        """
        num_reqs = seq_lens.shape[0]
        dense, sparse = self._dense[:num_reqs], self._sparse[:num_reqs]
        chosen = (query_start_loc[1 : num_reqs + 1] - query_start_loc[:num_reqs]) == 1
        chosen &= seq_lens >= self.dense_below
        torch.mul(seq_lens, chosen, out=sparse)
        torch.sub(seq_lens, sparse, out=dense)
        return dense, sparse

    def some(self, query_start_loc_cpu: torch.Tensor, max_query_len: int, max_seq_len: int) -> bool:
        """Whether a request may be sparse, as far as the host can tell."""
        if max_seq_len < self.dense_below:
            return False
        return max_query_len == 1 or bool((query_start_loc_cpu[1:] - query_start_loc_cpu[:-1] == 1).any())

    def all(self, max_query_len: int) -> bool:
        """Whether every request that is not padding is sparse, whatever its length."""
        return max_query_len == 1 and self.dense_below == 1

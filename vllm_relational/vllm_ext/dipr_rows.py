"""Which requests of a batch are attended to sparsely: two lists of lengths, made on the device.

A request is *sparse* if it decodes one token and its context is long enough. A prompt is attended
to densely to its last token, also where a cached prefix or a chunk leaves only one to compute: so its first answer does
not depend on what was cached. Every kernel gets the whole batch: the dense one with the lengths of the dense requests
and 0 for the others, the sparse one the other way round. So prefill mixed with decode, verification of drafted tokens
and rows that only pad a CUDA graph need no slicing, and a captured graph serves every mix of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Rows:
    """What a sparse layer needs to know of a batch, beside vLLM's metadata.

    dense:        vLLM's metadata with the lengths of dense requests only.
    sparse_lens:  int32 ``[num_reqs]``, tokens of the context of sparse requests, 0 for others.
    some:         False if the host knows that no request is sparse.
    """

    dense: Any
    sparse_lens: torch.Tensor
    some: bool


class RowSplitter:
    """Splits lengths into those of dense and those of sparse requests.

    dense_below: requests of a batch -> the length from which on they are sparse.
    It owns both lists: CUDA graphs read them where they were when the graph was captured.
    """

    def __init__(self, dense_below: Callable[[int], int], max_reqs: int, device: torch.device) -> None:
        self.dense_below = dense_below
        self._dense = torch.zeros(max_reqs, dtype=torch.int32, device=device)
        self._sparse = torch.zeros(max_reqs, dtype=torch.int32, device=device)

    def split(
        self, query_start_loc: torch.Tensor, seq_lens: torch.Tensor, prompts: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lengths of dense and of sparse requests, int32 ``[num_reqs]`` each, views of the same memory every time.

        query_start_loc: int32 ``[num_reqs + 1]`` or longer; seq_lens: int32 ``[num_reqs]``; prompts: bool, on the host,
        which of the first requests compute the last token of a prompt. Reads nothing from the device.
        """
        num_reqs = seq_lens.shape[0]
        dense, sparse = self._dense[:num_reqs], self._sparse[:num_reqs]
        chosen = (query_start_loc[1 : num_reqs + 1] - query_start_loc[:num_reqs]) == 1
        chosen &= seq_lens >= self.dense_below(num_reqs)
        if prompts is not None:
            chosen[: len(prompts)] &= ~prompts.to(chosen.device)
        torch.mul(seq_lens, chosen, out=sparse)
        torch.sub(seq_lens, sparse, out=dense)
        return dense, sparse


def single_token_prompts(query_start_loc: torch.Tensor, is_prefilling: torch.Tensor | None) -> torch.Tensor | None:
    """Requests that compute one token of their prompt, bool on the host; ``None``, as nearly always, for none.

    Both arguments are on the host: int32 ``[num_reqs + 1]`` and bool, for some of the first requests or unknown.
    """
    if is_prefilling is None or not bool(is_prefilling.any()):
        return None
    num_reqs = min(len(is_prefilling), len(query_start_loc) - 1)
    lengths = query_start_loc[1 : num_reqs + 1] - query_start_loc[:num_reqs]
    found = is_prefilling[:num_reqs] & (lengths == 1)
    return found if bool(found.any()) else None


def may_decode(query_start_loc: torch.Tensor, max_query_len: int) -> bool:
    """Whether any request has one query token, as far as the host can tell."""
    return max_query_len == 1 or bool((query_start_loc[1:] - query_start_loc[:-1] == 1).any())

"""Which requests of a batch are attended to sparsely: two lists of lengths, made on the device.

A request is *sparse* if it decodes one token and its context is long enough. A prompt is attended
to densely to its last token, also where a cached prefix or a chunk leaves only one to compute: so its first answer does
not depend on what was cached. Every kernel gets the whole batch: the dense one with the lengths of the dense requests
and 0 for the others, the sparse one the other way round. So prefill mixed with decode, verification of drafted tokens
and rows that only pad a CUDA graph need no slicing, and a captured graph serves every mix of them.

A request that was preempted computes its own answer again, many tokens per step. So that the rest of the answer does
not depend on that, these tokens are attended to as when they were decoded: each as a request of its own
(``Recompute``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import torch


class Kind(Enum):
    """What the requests of a batch are, all of them."""

    DENSE = "dense"
    SPARSE = "sparse"


@dataclass
class Rows:
    """What a sparse layer needs to know of a batch, beside vLLM's metadata.

    dense:        vLLM's metadata with the lengths of dense requests only.
    sparse_lens:  int32 ``[num_reqs]``, tokens of the context of sparse requests, 0 for others.
    some:         False if the host knows that no request is sparse.
    every:        True if the host knows that all are, not counting rows that only pad a CUDA graph.
    recompute:       tokens of answers that are computed again, beside them.
    """

    dense: Any
    sparse_lens: torch.Tensor
    some: bool
    every: bool = False
    recompute: Recompute | None = None

    @property
    def kind(self) -> Kind | None:
        """Of the batch, None unless known for certain."""
        if self.every:
            return Kind.SPARSE
        return None if self.some or self.recompute is not None else Kind.DENSE


@dataclass(frozen=True)
class Recompute:
    """Query tokens of answers that are computed again: ``[num_tokens]`` each.

    requests: int64, whose they are; lens: int32, tokens up to and with each; rows: int32, where they are in the query;
    longest:  of ``lens``.
    """

    requests: torch.Tensor
    lens: torch.Tensor
    rows: torch.Tensor
    longest: int

    def pieces(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Requests, lengths and rows, ``size`` tokens at a time."""
        for start in range(0, len(self.requests), size):
            piece = slice(start, start + size)
            yield self.requests[piece], self.lens[piece], self.rows[piece]


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


@dataclass(frozen=True)
class HostBatch:
    """What the host knows of a batch; where something is shorter, it is of the first requests.

    query_start_loc: int32 ``[num_reqs + 1]``. is_prefilling: bool, None for unknown; answers that are computed again
    count as prompts or not. seq_lens: int32, tokens of the context with those of this step, exact for all but drafts.
    prompts: int32, tokens of the prompt, 0 or None for unknown.
    """

    query_start_loc: torch.Tensor
    is_prefilling: torch.Tensor | None = None
    seq_lens: torch.Tensor | None = None
    prompts: torch.Tensor | None = None

    @cached_property
    def single_token_prompts(self) -> torch.Tensor | None:
        """Requests that compute one token of their prompt, bool; ``None``, as nearly always, for none."""
        if self.is_prefilling is None or not bool(self.is_prefilling.any()):
            return None
        lengths = self._query_lens(len(self.is_prefilling))
        found = self.is_prefilling[: len(lengths)] & (lengths == 1)
        again = self._beyond_prompts(0)
        found[: len(again)] &= ~again
        return found if bool(found.any()) else None

    def is_sparse(self, dense_below: int) -> bool:
        """Whether every request computes one token, not of a prompt, and has a context of ``dense_below`` or more."""
        if self.seq_lens is None or self.single_token_prompts is not None:
            return False
        lengths = self._query_lens(len(self.query_start_loc))
        if len(lengths) > len(self.seq_lens):
            return False
        long = self.seq_lens[: len(lengths)] >= dense_below
        return bool(((lengths == 1) & long | (lengths == 0)).all()) and bool((lengths == 1).any())

    def recompute(self, dense_below: int, device: torch.device) -> Recompute | None:
        """Tokens of answers in steps of several tokens, whose context has ``dense_below`` tokens or more."""
        requests = self._beyond_prompts(1).nonzero()[:, 0].tolist()
        if not requests:
            return None
        assert self.seq_lens is not None and self.prompts is not None
        found = []
        for request in requests:
            start, end = self.query_start_loc[request : request + 2].tolist()
            seq_len = int(self.seq_lens[request])
            before = seq_len - (end - start)
            first = max(before, int(self.prompts[request]), dense_below - 1)
            lens = torch.arange(min(first, seq_len), seq_len) + 1
            found.append(torch.stack([torch.full_like(lens, request), lens, start + lens - 1 - before]))
        owners, lens, rows = torch.cat(found, dim=1)
        if not len(lens):
            return None
        longest = int(lens.max())
        return Recompute(owners.to(device), lens.int().to(device), rows.int().to(device), longest)

    def _beyond_prompts(self, more_than: int) -> torch.Tensor:
        """Which of the first requests compute more query tokens than that, the last one beyond their prompt."""
        if self.seq_lens is None or self.prompts is None:
            return torch.zeros(0, dtype=torch.bool)
        lengths = self._query_lens(min(len(self.seq_lens), len(self.prompts)))
        seq_lens, prompts = self.seq_lens[: len(lengths)], self.prompts[: len(lengths)]
        return (lengths > more_than) & (prompts > 0) & (seq_lens > prompts)

    def _query_lens(self, most: int) -> torch.Tensor:
        num_reqs = min(most, len(self.query_start_loc) - 1)
        return self.query_start_loc[1 : num_reqs + 1] - self.query_start_loc[:num_reqs]


def may_decode(query_start_loc: torch.Tensor, max_query_len: int) -> bool:
    """Whether any request has one query token, as far as the host can tell."""
    return max_query_len == 1 or bool((query_start_loc[1:] - query_start_loc[:-1] == 1).any())

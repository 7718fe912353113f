"""Sparse decode attention over a batch of requests: the reference on the CPU, the Triton kernels on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vllm_relational.sparse import naive
from vllm_relational.sparse.pages import Pages
from vllm_relational.sparse.settings import DiprSettings


@dataclass(frozen=True)
class DecodeShape:
    """Sizes that do not change while an engine lives: heads of queries and of keys, channels of a head, the softmax
    scale, the largest batch and context, and tokens of a group of the index (``PageLayout.group``)."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    max_reqs: int
    max_seq_len: int
    group: int


class SparseDecoder:
    """Attention of one query token per request, for all layers of an engine: it owns the scratch memory.

    ``decode`` may be captured in a CUDA graph: grids depend on shapes only, lengths are read on the device.
    device: 'cpu' computes with ``naive``, anything else with the Triton kernels.
    """

    def __init__(self, settings: DiprSettings, shape: DecodeShape, device: torch.device | str = "cpu") -> None:
        self.settings, self.shape = settings, shape
        self._kernels = None
        if torch.device(device).type != "cpu":
            from vllm_relational.sparse.kernels.launch import Kernels

            self._kernels = Kernels(
                settings,
                num_heads=shape.num_heads,
                num_kv_heads=shape.num_kv_heads,
                head_size=shape.head_size,
                scale=shape.scale,
                max_reqs=shape.max_reqs,
                max_seq_len=shape.max_seq_len,
                group=shape.group,
                device=device,
            )

    @property
    def statistics(self) -> torch.Tensor | None:
        """What the kernels counted so far, on the device (``sparse/statistics.py``); None on the CPU."""
        return self._kernels.statistics if self._kernels is not None else None

    def max_requests(self, longest: int) -> int:
        """Requests that ``decode`` takes at once where the longest context has so many tokens."""
        return self._kernels.max_requests(longest) if self._kernels is not None else self.shape.max_reqs

    def decode(
        self,
        query: torch.Tensor,
        pages: Pages,
        block_table: torch.Tensor,
        lens: torch.Tensor,
        rows: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Write the attention of every request that is to be attended to sparsely.

        query, output: ``[num_tokens, num_heads, head_size]``; block_table: int32 ``[num_reqs, max_blocks]``;
        lens: int32 ``[num_reqs]``, tokens of the context, 0 for a request that is not to be touched;
        rows: int32 ``[num_reqs]`` or longer, the row of each request in ``query`` and ``output``.
        """
        if self._kernels is None:
            reference(self.settings, self.shape.scale, query, pages, block_table, lens, rows, output)
            return
        from vllm_relational.sparse.kernels.launch import Batch

        batch = Batch(query, pages, block_table, lens, rows, output)
        if self.settings.method == "v_skip" or self.settings.attends_to_all:
            self._kernels.v_skip(batch)
        elif self.settings.method == "topk_pages":
            self._kernels.topk_pages(batch)
        else:
            self._kernels.scan(batch)


def rule_of(settings: DiprSettings, scale: float, seq_len: int) -> naive.Rule | naive.TopPages:
    """Which tokens the settings attend to beside the window."""
    beta = settings.beta(scale, seq_len)
    if math.isinf(beta):
        return naive.Dense()
    return naive.TopPages(settings.top_tokens) if settings.method == "topk_pages" else naive.Dipr(beta)


def reference(
    settings: DiprSettings,
    scale: float,
    query: torch.Tensor,
    pages: Pages,
    block_table: torch.Tensor,
    lens: torch.Tensor,
    rows: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """What ``SparseDecoder.decode`` computes, by ``naive``; it reads lengths on the host."""
    window = naive.Window(settings.sinks, settings.recent, pages.layout.group)
    for request, seq_len in enumerate(lens.tolist()):
        if seq_len == 0:
            continue
        key = naive.gather(pages.key, block_table[request], seq_len)
        value = naive.gather(pages.value, block_table[request], seq_len)
        rule = rule_of(settings, scale, seq_len)
        row = int(rows[request])
        found = naive.decode(query[row], key, value, scale, rule, window, tail=settings.counts_the_rest)
        output[row] = found.output.to(output.dtype)

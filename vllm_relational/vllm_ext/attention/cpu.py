"""DIPR attention on the CPU, in plain torch: to try it and to test it without a GPU, not to be fast.

vLLM's CPU kernels want keys and values in an order of their own, so dense attention is computed here as well.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from vllm_relational.sparse import codec, naive
from vllm_relational.sparse.pages import Pages
from vllm_relational.vllm_ext.attention.backend import DiprBackend, DiprBuilder, DiprImpl


class DiprCpuBuilder(DiprBuilder, CPUAttentionMetadataBuilder):
    """The metadata of vLLM's CPU backend, and the rows."""


class DiprCpuImpl(DiprImpl, CPUAttentionBackendImpl):
    """Everything in plain torch."""

    def write(self, pages: Pages, key: torch.Tensor, value: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        """``codec.write``."""
        codec.write(pages, key, value, slot_mapping)

    def dense(self, layer: Any, query: Any, key: Any, value: Any, pages: Pages, *others: Any) -> torch.Tensor:
        """Causal attention to all tokens, a request at a time."""
        metadata, output = others[0], others[1]
        assert isinstance(output, torch.Tensor)
        starts = metadata.query_start_loc.tolist()
        for request, seq_len in enumerate(metadata.seq_lens.tolist()):
            start, end = starts[request], starts[request + 1]
            if seq_len and end > start:
                blocks = metadata.block_table[request]
                keys, values = naive.gather(pages.key, blocks, seq_len), naive.gather(pages.value, blocks, seq_len)
                output[start:end] = causal_attention(query[start:end], keys, values, self.scale).to(output.dtype)
        return output


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """The last tokens of a context attend to those up to themselves.

    query: ``[num_tokens, num_heads, head_size]``; key, value: ``[num_kv_heads, seq_len, head_size]``; the result is
    float32, shaped as query.
    """
    repeats = query.shape[1] // key.shape[0]
    key, value = (part.float().repeat_interleave(repeats, dim=0) for part in (key, value))
    scores = query.float().transpose(0, 1) @ key.transpose(1, 2) * scale
    num_tokens, seq_len = scores.shape[1:]
    later = torch.ones(num_tokens, seq_len, dtype=torch.bool).triu(seq_len - num_tokens + 1)
    weights = torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1)
    return (weights @ value).transpose(0, 1)


class DiprCpuBackend(DiprBackend, CPUAttentionBackend):
    """In the place of ``CPU_ATTN``."""

    below = CPUAttentionBackend

    @staticmethod
    def get_impl_cls() -> type[DiprCpuImpl]:
        return DiprCpuImpl

    @staticmethod
    def get_builder_cls() -> type[DiprCpuBuilder]:
        return DiprCpuBuilder

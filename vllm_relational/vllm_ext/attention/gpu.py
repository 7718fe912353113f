"""DIPR attention on a GPU: over vLLM's FlashAttention, or over its Triton kernels where FlashAttention is absent."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.fa_utils import get_flash_attn_version, is_flash_attn_varlen_func_available
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from vllm_relational.vllm_ext.attention.backend import DiprBackend, DiprBuilder, DiprImpl

NAME = "CUSTOM"
"""vLLM looks its enumeration up by this name."""


def flash_attention_runs(dtype: torch.dtype) -> bool:
    """Whether FlashAttention is there for this GPU and the model's numbers."""
    if not is_flash_attn_varlen_func_available() or not current_platform.has_device_capability(80):
        return False
    return dtype in FlashAttentionBackend.supported_dtypes and get_flash_attn_version() is not None


class DiprFlashBuilder(DiprBuilder, FlashAttentionMetadataBuilder):
    """FlashAttention's metadata twice: for all requests, and for the dense ones."""

    # A graph is captured for batches of one query length; the lengths on the device tell which rows are sparse.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        # The builder has one buffer for the schedule that a captured graph reads; ours is the second.
        schedule = getattr(self, "scheduler_metadata", None)
        self._dense_schedule = torch.zeros_like(schedule) if schedule is not None else None

    def reschedule(self, metadata: Any) -> None:
        """FlashAttention 3 plans its work ahead, from the lengths."""
        if metadata.scheduler_metadata is None:
            return
        plan = self._get_scheduler_metadata(
            aot_schedule=True,
            batch_size=metadata.seq_lens.shape[0],
            cu_query_lens=metadata.query_start_loc,
            max_query_len=metadata.max_query_len,
            seqlens=metadata.seq_lens,
            max_seq_len=metadata.max_seq_len,
            causal=metadata.causal,
            max_num_splits=metadata.max_num_splits,
        )
        metadata.scheduler_metadata = self._keep(plan)

    def _keep(self, plan: torch.Tensor | None) -> torch.Tensor | None:
        """The plan where captured graphs look for it, followed by zeros, as FlashAttention's own."""
        if self._dense_schedule is None or plan is None:
            return plan
        length = plan.shape[0]
        self._dense_schedule[:length] = plan
        self._dense_schedule[length:] = 0
        return self._dense_schedule[:length]


class DiprFlashImpl(DiprImpl, FlashAttentionImpl):
    """Prefill and short contexts by FlashAttention."""


class DiprFlashBackend(DiprBackend, FlashAttentionBackend):
    """For ``--attention-backend CUSTOM``."""

    below = FlashAttentionBackend

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type[DiprFlashImpl]:
        return DiprFlashImpl

    @staticmethod
    def get_builder_cls() -> type[DiprFlashBuilder]:
        return DiprFlashBuilder


class DiprTritonBuilder(DiprBuilder, TritonAttentionMetadataBuilder):
    """The metadata of vLLM's Triton kernels twice: for all requests, and for the dense ones."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH


class DiprTritonImpl(DiprImpl, TritonAttentionImpl):
    """Prefill and short contexts by vLLM's Triton kernels."""


class DiprTritonBackend(DiprBackend, TritonAttentionBackend):
    """For ``--attention-backend CUSTOM`` without FlashAttention."""

    below = TritonAttentionBackend

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type[DiprTritonImpl]:
        return DiprTritonImpl

    @staticmethod
    def get_builder_cls() -> type[DiprTritonBuilder]:
        return DiprTritonBuilder

"""Tells vLLM where the attention backend is: two names and paths, nothing is loaded."""

from __future__ import annotations

ATTENTION = "vllm_relational.vllm_ext.attention"


def register_attention() -> None:
    """Register ``vllm_ext/attention``: inert until an engine asks for ``CUSTOM``. Names that another plugin took
    stay its own."""
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    except ImportError:  # another vLLM: an engine that asks for the backend says so
        return
    for member, path in ((AttentionBackendEnum.CUSTOM, "for_gpu"), (AttentionBackendEnum.CPU_ATTN, "for_cpu")):
        if not member.is_overridden():
            register_backend(member, f"{ATTENTION}.{path}")

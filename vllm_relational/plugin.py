"""The ``vllm.general_plugins`` entry point: vLLM calls ``register`` in every process it starts, perhaps twice."""

from __future__ import annotations

import os

ATTENTION = "vllm_relational.vllm_ext.attention"

_registered = False


def register() -> None:
    """Set up what this package adds to a vLLM process: names, and nothing that works unless an engine asks for it."""
    global _registered
    if _registered:
        return
    _registered = True
    register_attention()
    if "VLLM_RELATIONAL_OWNER" in os.environ:
        from vllm_relational.vllm_ext.orphans import follow_owner

        follow_owner()


def register_attention() -> None:
    """Tell vLLM where the DIPR attention backend is (``vllm_ext/attention.py``); loads none of it."""
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    except ImportError:  # another vLLM: an engine that asks for the backend says so
        return
    for member, path in ((AttentionBackendEnum.CUSTOM, "for_gpu"), (AttentionBackendEnum.CPU_ATTN, "for_cpu")):
        if not member.is_overridden():
            register_backend(member, f"{ATTENTION}.{path}")

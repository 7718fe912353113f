"""The DIPR attention backend. vLLM resolves ``for_gpu`` and ``for_cpu`` by this path, see ``selector``."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("for_gpu", "for_cpu"):
        from vllm_relational.vllm_ext.attention import selector

        return getattr(selector, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")

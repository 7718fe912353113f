"""Embedders by name, in this process or in vLLM: made here and handed to deduplication, retrieval and SQL."""

from __future__ import annotations

from pathlib import Path

from vllm_relational import embed
from vllm_relational.embed import Embedder

VLLM_PREFIX = "vllm:"


def open_embedder(name: str) -> Embedder:
    """An embedder by the name that an index keeps: a folder or hub name, or ``vllm:NAME`` for one in vLLM.

    Its model is loaded with the first text. Raises ``RelationalError`` where the library is missing.
    """
    if name.startswith(VLLM_PREFIX):
        from vllm_relational.engine.vllm_embedder import VllmEmbedder

        return VllmEmbedder(_whole_path(name.removeprefix(VLLM_PREFIX)))
    return embed.load_embedder(_whole_path(name))


def _whole_path(name: str) -> str:
    """The index keeps the name of its model: a folder must be found again from anywhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name

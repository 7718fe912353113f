"""Texts -> vectors, for semantic deduplication and retrieval; both take any ``Embedder``, tests bring their own."""

from vllm_relational.embed.base import Embedder, embed_texts, reads_whole, release
from vllm_relational.embed.local import LocalEmbedder, load_embedder

__all__ = ["Embedder", "LocalEmbedder", "embed_texts", "load_embedder", "reads_whole", "release"]

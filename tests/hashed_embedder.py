"""An embedder without a model: hashed character trigrams. Texts that share words are near each other."""

from __future__ import annotations

import zlib

import numpy as np


class HashedTrigrams:
    """Implements ``embed.Embedder``; remembers what it was asked."""

    def __init__(self, dimension: int = 64, seed: int = 0, name: str = "hashed trigrams") -> None:
        self.dimension, self.seed, self.name = dimension, seed, name
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            padded = f"  {text.casefold()} "
            for start in range(len(padded) - 2):
                trigram = padded[start : start + 3].encode("utf-8", "replace")
                vector[zlib.crc32(trigram, self.seed) % self.dimension] += 1
        return vectors

"""Likely pairs of two lists of texts: what a semantic join asks about."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vllm_relational.embed import Embedder, embed_texts
from vllm_relational.extras import import_faiss


def nearest_pairs(embedder: Embedder) -> Callable[[list[str], list[str], int], np.ndarray]:
    """A function for ``sql.connect(candidates=...)``: the texts whose embeddings have the greatest cosine similarity.

    It takes (lefts, rights, k) and returns int64 ``[len(lefts), k]``, positions in ``rights``, the nearest first; k is
    at most ``len(rights)``. The search is exact: ``len(lefts) * len(rights)`` products. An embedder with a method
    ``release`` gives its memory back after each call, so that an engine has it.
    """

    def candidates(lefts: list[str], rights: list[str], k: int) -> np.ndarray:
        if not lefts or not rights:
            return np.empty((len(lefts), 0), np.int64)
        vectors = embed_texts(embedder, [*lefts, *rights])
        getattr(embedder, "release", lambda: None)()
        index = import_faiss("choosing the pairs of a semantic join").IndexFlatIP(vectors.shape[1])
        index.add(vectors[len(lefts) :])
        found: np.ndarray = index.search(vectors[: len(lefts)], min(k, len(rights)))[1]
        return found

    return candidates

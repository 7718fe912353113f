"""The interface of embedders and the check of what they return."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from vllm_relational.records import RelationalError


class Embedder(Protocol):
    """One vector a text: float32 ``[len(texts), dimension]``, in the order of the texts, of any length.

    Equal texts get equal vectors. A plain function with this signature is an embedder. One that cuts long texts says so
    with a method ``reads_whole(texts)``: bool ``[len(texts)]``, False where it does not read a text to its end.
    """

    def __call__(self, texts: list[str], /) -> np.ndarray: ...


def reads_whole(embedder: Embedder, texts: list[str]) -> np.ndarray:
    """Which texts the embedder reads to their end: bool ``[len(texts)]``; all, where it does not say."""
    ask = getattr(embedder, "reads_whole", None)
    return np.ones(len(texts), bool) if ask is None else np.asarray(ask(texts), bool)


def release(embedder: object) -> None:
    """Give back the memory of the model, as an engine for answers may need it; the next text loads it again."""
    getattr(embedder, "release", lambda: None)()


def embed_texts(embedder: Embedder, texts: list[str]) -> np.ndarray:
    """Unit vectors of the texts: float32 ``[len(texts), dimension]``, so that a dot product is the cosine.

    A vector of length 0 stays 0 and is similar to nothing. Raises ``RelationalError`` when the embedder returns
    another number of vectors, or numbers that are not finite.
    """
    if not texts:
        return np.empty((0, 0), np.float32)
    returned = embedder(texts)
    try:
        vectors = np.ascontiguousarray(returned, dtype=np.float32)
    except (ValueError, TypeError) as error:  # text, or rows of several lengths
        raise RelationalError(f"the embedder returned no table of numbers: {error}") from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1]:
        raise RelationalError(
            f"the embedder returned an array of shape {vectors.shape} for {len(texts)} texts: it must return one row a "
            "text, [number of texts, dimension]"
        )
    if not np.isfinite(vectors).all():
        raise RelationalError("the embedder returned numbers that are not finite: check the embedding model")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return unit

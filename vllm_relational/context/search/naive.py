"""The searches in numpy and float64: what they mean, and what tests hold the fast loops against.

Without native code they run in its place (``loops.py``).
"""

from __future__ import annotations

import numpy as np

from vllm_relational.context.search.hits import Hits, hits_of


def numbers(stored: np.ndarray) -> np.ndarray:
    """Keys or values as they are stored -> float64; uint16 is bfloat16."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return stored.astype(np.float64)


def exact_scores(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """``q . k``: float64 ``[num_heads, num_keys]``."""
    with np.errstate(invalid="ignore", over="ignore"):
        found: np.ndarray = queries.astype(np.float64) @ numbers(keys).T
    return found


def greatest(scores: np.ndarray, lower: np.ndarray | None) -> np.ndarray:
    """The greatest score of each head, at least ``lower``; NaN counts for none: ``[num_heads]``."""
    best: np.ndarray = np.where(np.isnan(scores), -np.inf, scores).max(-1, initial=-np.inf)
    return best if lower is None else np.fmax(best, lower)


def keep(scores: np.ndarray, beta: float, lower: np.ndarray | None = None) -> np.ndarray:
    """Which scores DIPR keeps (arXiv 2504.10326, definition 2): bool of their shape."""
    with np.errstate(invalid="ignore"):
        kept: np.ndarray = np.logical_not(scores < (greatest(scores, lower) - beta)[:, None])
    return kept


def dipr(
    keys: np.ndarray, queries: np.ndarray, beta: float, start: int, stop: int, lower: np.ndarray | None = None
) -> Hits:
    """See ``KeyIndex.dipr``."""
    scores = exact_scores(keys[start:stop], queries)
    found = [np.flatnonzero(row) for row in keep(scores, beta, lower)]
    return hits_of([row + start for row in found], [s[row] for s, row in zip(scores, found, strict=True)], stop - start)


def topk(keys: np.ndarray, queries: np.ndarray, k: int, start: int, stop: int) -> Hits:
    """See ``KeyIndex.topk``."""
    scores = exact_scores(keys[start:stop], queries)
    order = np.argsort(-np.where(np.isnan(scores), np.inf, scores), axis=-1, kind="stable")[:, :k]
    first_nan = np.argsort(~np.take_along_axis(np.isnan(scores), order, -1), axis=-1, kind="stable")
    found = [np.sort(row) for row in np.take_along_axis(order, first_nan, -1)]
    return hits_of([row + start for row in found], [s[row] for s, row in zip(scores, found, strict=True)], stop - start)


def score_rows(keys: np.ndarray, tokens: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Scores with listed keys: float32 ``[num_heads, num_tokens]``."""
    return exact_scores(keys[tokens], queries).astype(np.float32)


def check_tokens(tokens: np.ndarray, num_keys: int, least: int = 0) -> None:
    """``ValueError`` where one is not among the keys."""
    if ((tokens < least) | (tokens >= num_keys)).any():
        raise ValueError(f"a token is not among the {num_keys} keys")


def attend(
    values: np.ndarray, offsets: np.ndarray, tokens: np.ndarray, scores: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """See ``merge.attend``."""
    num_heads = len(offsets) - 1
    out, lse = np.zeros((num_heads, values.shape[1])), np.full(num_heads, -np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        for head in range(num_heads):
            own = slice(offsets[head], offsets[head + 1])
            if own.stop > own.start:
                logits = scores[own].astype(np.float64) * scale
                weights = np.exp(logits - logits.max())
                out[head] = weights @ numbers(values[tokens[own]]) / weights.sum()
                lse[head] = logits.max() + np.log(weights.sum())
    return out.astype(np.float32), lse.astype(np.float32)

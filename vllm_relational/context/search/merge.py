"""Exact attention over listed tokens, and the merge of parts that were computed where their data lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import loops
from vllm_relational.context.search.hits import Hits


def attend(
    keys: np.ndarray, values: np.ndarray, hits: Hits, queries: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax of ``scale * q . k`` over each query head's own tokens of ``hits``, times their values.

    keys, values: ``[num_keys, head_size]`` as stored; queries: float32 ``[num_heads, head_size]``, of which the
    scores in ``hits`` are. Returns ``out`` float32 ``[num_heads, head_size]`` and ``lse`` float32 ``[num_heads]``,
    the log of the denominator. A head without tokens gets zeros and ``-inf``, which ``merge`` takes no notice of.
    """
    values = loops.stored_rows(values, "values")
    queries = loops.query_heads(queries, int(keys.shape[1]))
    if len(queries) != hits.num_heads or len(values) != len(keys):
        raise ContextError(
            f"{len(queries)} queries, {len(keys)} keys and {len(values)} values do not belong to hits of "
            f"{hits.num_heads} queries"
        )
    return loops.attend(values, hits.offsets, hits.tokens, hits.scores, float(scale))


def tokens_between(keys: np.ndarray, queries: np.ndarray, start: int, stop: int) -> Hits:
    """All tokens of ``[start, stop)`` for every query head, such as a window's, with their scores."""
    keys = loops.stored_rows(keys, "keys")
    queries = loops.query_heads(queries, int(keys.shape[1]))
    start, stop = loops.token_range(start, stop, len(keys))
    tokens = np.arange(start, stop, dtype=np.int32)
    scores = loops.score_rows(keys, tokens, queries)
    offsets = np.arange(len(queries) + 1, dtype=np.int64) * len(tokens)
    return Hits(offsets, np.tile(tokens, len(queries)), scores.reshape(-1), len(tokens))


def merge(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Attention over the union of disjoint sets of tokens from that over each: a list of ``(out, lse)`` of equal shapes
    ``[num_heads, head_size]`` and ``[num_heads]``. Computed in float64; no tokens at all give zeros and ``-inf``."""
    if not parts:
        raise ContextError("there is nothing to merge: give at least one part (out, lse)")
    lses = np.stack([np.asarray(lse, np.float64) for _, lse in parts])
    outs = np.stack([np.asarray(out, np.float64) for out, _ in parts])
    best = lses.max(0)
    with np.errstate(invalid="ignore"):
        weights = np.exp(lses - np.where(np.isneginf(best), 0.0, best))
        total = weights.sum(0)
        share = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
        used = np.where(share[..., None] == 0, 0.0, outs)  # a part without tokens may hold anything
        out = (used * share[..., None]).sum(0)
    with np.errstate(divide="ignore"):
        return out.astype(np.float32), (np.log(total) + np.where(np.isneginf(best), 0.0, best)).astype(np.float32)

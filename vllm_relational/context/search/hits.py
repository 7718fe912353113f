"""What a search finds, and what every index of a KV head's keys can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Hits:
    """The tokens that each query head keeps: of head ``h`` those in ``[offsets[h], offsets[h + 1])``, ascending.

    offsets: int64 ``[num_heads + 1]``; tokens: int32; scores: float32, ``q . k``, both ``[num_hits]``.
    visited: keys whose scores with queries were computed, where heads search apart the sum over the heads; what it
             took to find out which those are, scores with centroids or codes, is not among them.
    """

    offsets: np.ndarray
    tokens: np.ndarray
    scores: np.ndarray
    visited: int = 0

    @property
    def num_heads(self) -> int:
        """Query heads that were asked for."""
        return len(self.offsets) - 1

    def of(self, head: int) -> np.ndarray:
        """Tokens of one head."""
        return self.tokens[self.offsets[head] : self.offsets[head + 1]]

    def scores_of(self, head: int) -> np.ndarray:
        """Scores of one head, in the order of its tokens."""
        return self.scores[self.offsets[head] : self.offsets[head + 1]]


def hits_of(tokens: Sequence[np.ndarray], scores: Sequence[np.ndarray], visited: int = 0) -> Hits:
    """From each head's tokens and scores."""
    offsets = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum([len(each) for each in tokens], out=offsets[1:])
    joined = [np.concatenate([*parts, []]) for parts in (tokens, scores)]
    return Hits(offsets, joined[0].astype(np.int32), joined[1].astype(np.float32), visited)


class KeyIndex(Protocol):
    """An index of the keys of one KV head of one layer.

    kind: its name; num_keys; head_size; nbytes: of the index, without the keys; heads_together: whether all query heads
    look at each key that one of them looks at, which ``Hits.visited`` then counts once.
    An exact index (``flat``, ``int4``) finds all tokens that the definition names, others most of them; no index names
    a token that the definition does not name given what it found. ``ContextError`` for arguments that make no sense:
    another head size, a range that is not among the keys, a negative beta.
    """

    @property
    def kind(self) -> str: ...

    @property
    def num_keys(self) -> int: ...

    @property
    def head_size(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def heads_together(self) -> bool: ...

    def dipr(
        self, queries: np.ndarray, beta: float, start: int = 0, stop: int | None = None, lower: np.ndarray | None = None
    ) -> Hits:
        """Tokens of ``[start, stop)`` with ``q . k >= max(lower, greatest q . k in the range) - beta``, for each query.

        lower: float32 ``[num_heads]``: a score known to be there, such as the greatest of the window. A NaN score
        is kept, and counts for no maximum.
        """
        ...

    def topk(self, queries: np.ndarray, k: int, start: int = 0, stop: int | None = None) -> Hits:
        """The ``k`` tokens of ``[start, stop)`` with the greatest scores, of equal ones the first; all where there
        are fewer. NaN is greater than all."""
        ...

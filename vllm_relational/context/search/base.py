"""What the indexes of a KV head's keys have in common: checks of what they are asked, and the arrays that they keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vllm_relational.context.search import loops
from vllm_relational.context.search.hits import Hits


class SearchedKeys(ABC):
    """A ``KeyIndex`` of keys ``[num_keys, head_size]``, used where they lie, a memory-mapped file too.

    arrays: what the index keeps beside the keys, by name; with ``settings`` and the keys all that it is made of, so
    that ``indexes.save`` and ``load`` need nothing else.
    """

    kind: ClassVar[str]
    is_exact: ClassVar[bool] = False
    heads_together: ClassVar[bool] = True
    """Whether all query heads look at each key that one of them looks at; ``Hits.visited`` then counts it once."""

    def __init__(self, keys: np.ndarray, arrays: Mapping[str, np.ndarray], settings: Mapping[str, float]) -> None:
        self.keys = loops.stored_rows(keys, "keys")
        self.arrays, self.settings = dict(arrays), dict(settings)

    @property
    def num_keys(self) -> int:
        """Of this KV head."""
        return len(self.keys)

    @property
    def head_size(self) -> int:
        """Channels of a key."""
        return int(self.keys.shape[1])

    @property
    def nbytes(self) -> int:
        """Of the index, without the keys."""
        return sum(array.nbytes for array in self.arrays.values())

    def dipr(
        self, queries: np.ndarray, beta: float, start: int = 0, stop: int | None = None, lower: np.ndarray | None = None
    ) -> Hits:
        """See ``KeyIndex.dipr``."""
        queries = loops.query_heads(queries, self.head_size)
        start, stop = loops.token_range(start, stop, self.num_keys)
        return self._dipr(queries, loops.checked_beta(beta), start, stop, loops.checked_lower(lower, len(queries)))

    def topk(self, queries: np.ndarray, k: int, start: int = 0, stop: int | None = None) -> Hits:
        """See ``KeyIndex.topk``."""
        queries = loops.query_heads(queries, self.head_size)
        start, stop = loops.token_range(start, stop, self.num_keys)
        return self._topk(queries, loops.checked_k(k), start, stop)

    @abstractmethod
    def _dipr(self, queries: np.ndarray, beta: float, start: int, stop: int, lower: np.ndarray | None) -> Hits: ...

    @abstractmethod
    def _topk(self, queries: np.ndarray, k: int, start: int, stop: int) -> Hits: ...


class NativeIndex(SearchedKeys):
    """One whose searches are loops of csrc/context over its arrays, or, without native code, a reference.

    loops: the object that has them.
    """

    def __init__(self, keys: np.ndarray, arrays: Mapping[str, np.ndarray], settings: Mapping[str, float]) -> None:
        super().__init__(keys, arrays, settings)
        self.loops = self._made()
        self._how()  # settings that are missing show here, not in a search

    @abstractmethod
    def _made(self) -> Any:
        """The object whose ``dipr`` and ``topk`` are called with the checked arguments and ``_how``."""

    def _how(self) -> dict[str, Any]:
        """Further arguments of the loops."""
        return {}

    def _dipr(self, queries: np.ndarray, beta: float, start: int, stop: int, lower: np.ndarray | None) -> Hits:
        asked = {"queries": queries, "beta": beta, "lower": lower, "start": start, "stop": stop}
        return Hits(*loops.asked_of(self.loops, "dipr", **asked, **self._how()))

    def _topk(self, queries: np.ndarray, k: int, start: int, stop: int) -> Hits:
        asked = {"queries": queries, "k": k, "start": start, "stop": stop}
        return Hits(*loops.asked_of(self.loops, "topk", **asked, **self._how()))

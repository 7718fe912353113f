"""Which cached block starts with the longest run of given tokens, among the blocks that continue one prefix.

vLLM's prefix cache finds whole blocks by the hash of everything up to their end. A request that leaves a cached prompt
in the middle of a block finds nothing there, and computes up to ``block_size - 1`` tokens again. This index answers the
missing question: of the cached blocks after the same prefix, which one agrees with the request longest?

The blocks after one prefix are held sorted by their tokens, written as big-endian integers so that bytes compare as
tokens do. The longest agreement with a query is then with one of its two neighbours: a lookup is one bisection.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence

TOKEN_BYTES = 4


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Tokens as big-endian integers of ``TOKEN_BYTES`` each. Many blocks at once are cheaper than one by one."""
    numbers = array("i", tokens)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


class PartialIndex:
    """Cached blocks by the prefix they continue and by their tokens. Blocks are numbers; each is held at most once.

    Tokens are given as ``token_bytes``. Lookups take O(log n) comparisons for n blocks after the same prefix; ``add``
    and ``remove`` move at most n references in memory besides. Not thread-safe.
    """

    def __init__(self) -> None:
        self._children: dict[Hashable, list[tuple[bytes, int]]] = {}
        self._places: dict[int, tuple[Hashable, bytes]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, block: int) -> bool:
        return block in self._places

    def add(self, prefix: Hashable, tokens: bytes, block: int) -> None:
        """Enter a whole block of tokens that continues ``prefix``; a block already held is moved there."""
        if block in self._places:
            self.remove(block)
        self._places[block] = (prefix, tokens)
        children = self._children.get(prefix)
        if children is None:
            self._children[prefix] = [(tokens, block)]
        else:
            insort(children, (tokens, block))

    def remove(self, block: int) -> None:
        """Forget a block; does nothing when it is not held."""
        place = self._places.pop(block, None)
        if place is None:
            return
        prefix, tokens = place
        children = self._children[prefix]
        if len(children) == 1:
            del self._children[prefix]
        else:
            del children[bisect_left(children, (tokens, block))]

    def clear(self) -> None:
        """Forget all blocks."""
        self._children.clear()
        self._places.clear()

    def longest(self, prefix: Hashable, tokens: bytes) -> tuple[int, int]:
        """The block after ``prefix`` that starts with the most of ``tokens``, and how many they are.

        tokens: of at most one block. Returns ``(-1, 0)`` when no block shares even the first. Of blocks that share
        equally many, any may be returned.
        """
        children = self._children.get(prefix)
        if children is None or not tokens:
            return -1, 0
        after = bisect_left(children, (tokens,))
        best, shared = -1, 0
        for key, block in children[max(after - 1, 0) : after + 1]:
            length = _shared_tokens(key, tokens)
            if length > shared:
                best, shared = block, length
        return best, shared


def _shared_tokens(block: bytes, query: bytes) -> int:
    """Leading tokens in which a block and a query of no more tokens agree."""
    width = len(query)
    difference = int.from_bytes(block[:width], "big") ^ int.from_bytes(query, "big")
    return (8 * width - difference.bit_length()) // (8 * TOKEN_BYTES)

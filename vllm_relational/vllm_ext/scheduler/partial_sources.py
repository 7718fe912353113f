"""Cached blocks that a request may start inside of, by the prefix they continue and by their tokens.

A block is a source as long as it keeps the hash object that it had when it was entered. vLLM makes that object anew
whenever it caches a block, and takes it off when it evicts one. So nobody has to tell this index of evictions: a block
that is no longer what it was is thrown out when a lookup comes upon it, or when its number is entered again.
``csrc/scheduler/partial_index.h`` does the same; ``make_partial_sources`` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_relational import native
from vllm_relational.kv.partial_index import TOKEN_BYTES, PartialIndex, token_bytes
from vllm_relational.vllm_ext.scheduler.block_hashes import GROUP_BYTES


def make_partial_sources(blocks: list[Any], block_size: int) -> PartialSources:
    """An empty index over all blocks of a pool, by number."""
    made: PartialSources | None = native.partial_sources(blocks, block_size)
    return PartialSources(blocks, block_size) if made is None else made


class PartialSources:
    """``kv/partial_index.py`` over vLLM's blocks. Prefixes are bytes, at most 32 of them."""

    def __init__(self, blocks: list[Any], block_size: int) -> None:
        self._blocks, self._block_size = blocks, block_size
        self._index = PartialIndex()
        self._hashes: dict[int, bytes] = {}  # by block: the object

    def __len__(self) -> int:
        """Blocks in the index, some of which may be sources no longer."""
        return len(self._index)

    def enter(
        self,
        cached: Sequence[Any],
        first: int,
        hashes: Sequence[bytes],
        prefixes: Sequence[bytes],
        tokens: Sequence[int],
    ) -> None:
        """Blocks of a request, from its block number ``first``, are sources, but those that lost their hash since.

        hashes: of all blocks of the request, without group. prefixes: what each of ``cached`` continues. tokens: of the
        whole request.
        """
        size = self._block_size
        words = token_bytes(tokens[first * size : (first + len(cached)) * size])
        for number, block in enumerate(cached):
            block_hash, index = block._block_hash, first + number
            if block_hash is None or block_hash[:-GROUP_BYTES] != hashes[index]:
                continue  # evicted since, or given to another request
            start = number * size * TOKEN_BYTES
            self._index.add(prefixes[number], words[start : start + size * TOKEN_BYTES], block.block_id)
            self._hashes[block.block_id] = block_hash

    def longest(self, prefix: bytes, tokens: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """The block after ``prefix`` that starts with most of ``tokens[start:end]``, and how many they are.

        At most a block of tokens. ``(-1, 0)`` if no block shares even the first.
        """
        query = token_bytes(tokens[start:end])
        while True:
            block_id, shared = self._index.longest(prefix, query)
            if not shared or self._blocks[block_id]._block_hash is self._hashes[block_id]:
                return block_id, shared
            self._index.remove(block_id)
            del self._hashes[block_id]

    def clear(self) -> None:
        """Forget all blocks."""
        self._index.clear()
        self._hashes.clear()

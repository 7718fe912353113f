"""The free blocks of vLLM's pool, handed out in the order of an eviction policy.

Stands in for ``FreeKVCacheBlockQueue`` (vLLM 0.32.0, v1/core/kv_cache_utils.py) under vLLM's own ``BlockPool``, which
reads ``num_free_blocks`` and calls ``popleft_n``, ``remove``, ``prepend_n`` and ``append_n``; the other methods are for
whoever else calls them. A free block is in one of two places:

    the list:  vLLM's linked list, in its order: blocks without a hash, then blocks that nobody needs (rank ``IDLE``),
               those freed first at the head. For them everything costs what it costs in stock vLLM.
    the heap:  blocks with another rank, by rank, those freed first among equals. O(log n) per block. An entry holds
               as long as it is the block's entry in ``_kept``; the others are thrown out when they come up, or
               when they are more than those that hold.

The list goes first. vLLM frees the blocks of a request deepest first, so a child goes before its parent in both.
While a block is free its rank may change. The rank is looked up again when the block comes up, so that one who has
become worth more (a request for it arrived) stays; of those that have become worth less ``refresh`` must be told.
``kv/policy.py`` has the same policies as sort keys, and tests hold the two together. ``batch`` and ``fifo`` have queues
of their own here, which take their keys apart; ``KeyedFreeQueue`` runs any other policy by its key.

``NativeFreeQueue`` does all this in C++ (csrc/scheduler/free_queue.h), the list included, so that it costs no more than
vLLM's own; it hears of ranks that change from the native index of future uses. The classes in Python are its reference.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    FreeKVCacheBlockQueue,
    KVCacheBlock,
    make_block_hash_with_group_id,
)

from vllm_relational import native
from vllm_relational.kv.future_use import FutureUse
from vllm_relational.kv.policy import BlockUse, SortKey, sort_key
from vllm_relational.vllm_ext.scheduler.block_hashes import GROUP_BYTES

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool

IDLE = (-math.inf,)
"""Rank of a block that nobody needs."""
SPARE_ENTRIES = 64

Rank = tuple[float, ...]
_Entry = tuple[Rank, int, int]  # rank, clock when freed, block id


def make_free_queue(pool: BlockPool, eviction: str, future: FutureUse | None) -> PolicyFreeQueue | NativeFreeQueue:
    """The queue for a policy but ``lru``, to be put into the pool. future: for policies that read the queue."""
    if eviction not in ("batch", "fifo"):
        return KeyedFreeQueue(pool, sort_key(eviction), future)
    if native.is_native():
        return NativeFreeQueue(pool, future)
    return FifoFreeQueue(pool) if future is None else BatchFreeQueue(pool, future)


class NativeFreeQueue(native.FREE_QUEUE):  # type: ignore[misc]
    """``BatchFreeQueue`` or ``FifoFreeQueue`` in C++: ``popleft_n``, ``remove``, ``prepend_n``, ``append_n``,
    ``num_free_blocks``, ``get_all_free_blocks`` and ``evictions`` are there. ``future`` must be native too.
    """

    needs_refresh = False

    def popleft(self) -> KVCacheBlock:
        """The next block. ``ValueError`` if none is free."""
        if not self.num_free_blocks:
            raise ValueError("No free blocks available")
        block: KVCacheBlock = self.popleft_n(1)[0]
        return block

    def append(self, block: KVCacheBlock) -> None:
        """A block is free, as the most recently used one."""
        self.append_n([block])

    def refresh(self, hashes: Iterable[bytes], group: int = 0) -> None:
        """Nothing to do: the index of future uses tells."""

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        """Free blocks behind ``cursor`` (None: all), as ``get_all_free_blocks`` has them. O(n log n)."""
        return _blocks_after(self.get_all_free_blocks(), cursor)


def _blocks_after(blocks: list[KVCacheBlock], cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
    found = cursor is None
    for block in blocks:
        if found:
            yield block
        found = found or block is cursor


class PolicyFreeQueue(FreeKVCacheBlockQueue):
    """Least recently used first, as stock vLLM; subclasses rank blocks.

    needed:    hashes, without group, of the blocks that somebody needs; all others have rank ``IDLE``.
    evictions: blocks handed out so far: ``unhashed``, ``no_future_use`` (cached, rank ``IDLE``), and cached ones with a
               rank under the name in ``RANKED``.
    """

    RANKED = "future_use"
    needs_refresh = True

    def __init__(self, pool: BlockPool, needed: Container[Any] = ()) -> None:
        super().__init__(pool.free_block_queue.get_all_free_blocks())
        self._needed = needed
        self.evictions = {"unhashed": 0, "no_future_use": 0, self.RANKED: 0}
        self._pool = pool
        self._hash_map = pool.cached_block_hash_to_block
        self._clock = 0
        self._num_needs = self._checked = 0  # blocks put into the list after this clock are still as idle as they were
        self._freed = [0] * len(pool.blocks)  # by block: the clock when it was last put into the list
        self._kept: dict[int, _Entry] = {}
        self._heap: list[_Entry] = []

    def _rank(self, block: KVCacheBlock) -> Rank:
        """Of a free block: the less, the sooner it goes. ``IDLE`` if it has no hash."""
        return IDLE

    def _count_needs(self) -> int:
        """Grows when a block may have become needed."""
        return 0

    # ---------------------------------------------------------------------------------------------------- out
    def popleft(self) -> KVCacheBlock:
        """The next block. ``ValueError`` if none is free."""
        if not self.num_free_blocks:
            raise ValueError("No free blocks available")
        return self.popleft_n(1)[0]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """The next n blocks; so many must be free."""
        assert self.num_free_blocks >= n
        if self._hash_map is not self._pool.cached_block_hash_to_block:
            self._after_reset()
        taken: list[KVCacheBlock] = []
        while len(taken) < n:
            run = self._idle_run(n - len(taken))
            taken += super().popleft_n(run) if run else [self._pop()]
        return taken

    def _idle_run(self, most: int) -> int:
        """How many blocks at the head of the list may go as they stand: what makes the common case fast."""
        if self._heap and self._heap[0][0] == IDLE:
            return 0
        needed, tail, freed = self._needed, self.fake_free_list_tail, self._freed
        block, run, unhashed = self.fake_free_list_head.next_free_block, 0, 0
        if self._num_needs != (num_needs := self._count_needs()):
            self._num_needs, self._checked = num_needs, self._clock
        checked = self._checked
        while run < most and block is not None and block is not tail:
            block_hash = block._block_hash
            if block_hash is None:
                unhashed += 1
            elif freed[block.block_id] <= checked and block_hash[:-GROUP_BYTES] in needed:
                break
            run += 1
            block = block.next_free_block
        self.evictions["unhashed"] += unhashed
        self.evictions["no_future_use"] += run - unhashed
        return run

    def _pop(self) -> KVCacheBlock:
        head, top = self._head(), self._top()
        if head is not None and not self._is_before(top, head):
            super().remove(head)
            self.evictions["unhashed" if head._block_hash is None else "no_future_use"] += 1
            return head
        assert top is not None, "num_free_blocks is out of step with the free blocks"
        heappop(self._heap)
        del self._kept[top[2]]
        self.num_free_blocks -= 1
        block = self._pool.blocks[top[2]]
        kept = self.RANKED if top[0] != IDLE else "no_future_use"
        self.evictions["unhashed" if block._block_hash is None else kept] += 1
        return block

    def _is_before(self, top: _Entry | None, head: KVCacheBlock) -> bool:
        """Whether the block on the heap was freed before the head of the list, and nobody needs it any more."""
        if top is None or top[0] != IDLE or head._block_hash is None:
            return False
        return top[1] < self._freed[head.block_id]

    def _head(self) -> KVCacheBlock | None:
        """First block of the list, once those that somebody needs by now are in the heap."""
        while True:
            block = self.fake_free_list_head.next_free_block
            if block is None or block is self.fake_free_list_tail:
                return None
            rank = self._rank(block)
            if rank == IDLE:
                return block
            super().remove(block)
            self._keep(block, rank, self._freed[block.block_id])

    def _top(self) -> _Entry | None:
        """First entry of the heap, once it holds and its rank is the block's rank of now."""
        while self._heap:
            entry = self._heap[0]
            rank, clock, block_id = entry
            if self._kept.get(block_id) is not entry:
                heappop(self._heap)
                continue
            block = self._pool.blocks[block_id]
            now = self._rank(block)
            if now == rank:
                return entry
            self.num_free_blocks -= 1
            self._keep(block, now, clock)
        return None

    def remove(self, block: KVCacheBlock) -> None:
        """Take a free block out of its place. ``RuntimeError`` if it is not free."""
        if block.next_free_block is not None:
            super().remove(block)
        elif self._kept.pop(block.block_id, None) is not None:
            self.num_free_blocks -= 1
        else:
            raise RuntimeError(f"remove() called on an invalid block: {block}")

    # ----------------------------------------------------------------------------------------------------- in
    def append(self, block: KVCacheBlock) -> None:
        """A block is free, as the most recently used one."""
        self.append_n([block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        """Blocks are free, the most recently used one last."""
        needed, freed, clock = self._needed, self._freed, self._clock
        idle: list[KVCacheBlock] = []
        kept: list[KVCacheBlock] = []
        for block in blocks:
            block_hash = block._block_hash
            is_idle = block_hash is None or block_hash[:-GROUP_BYTES] not in needed
            (idle if is_idle else kept).append(block)
        for block in idle:
            clock += 1
            freed[block.block_id] = clock
        self._clock = clock
        super().append_n(idle)
        for block in kept:
            self._clock += 1
            self._keep(block, self._rank(block), self._clock)

    def _keep(self, block: KVCacheBlock, rank: Rank, clock: int) -> None:
        """Put a block that is in no place, and not counted, into the heap."""
        entry = (rank, clock, block.block_id)
        self._kept[block.block_id] = entry
        self.num_free_blocks += 1
        if len(self._heap) > 2 * len(self._kept) + SPARE_ENTRIES:
            self._heap = list(self._kept.values())
            heapify(self._heap)
        else:
            heappush(self._heap, entry)

    def refresh(self, hashes: Iterable[bytes], group: int = 0) -> None:
        """Requests for these blocks left the queue: free ones may be worth less now.

        Costs O(log n) a hash. group: the KV cache group of the blocks.
        """
        if not self._kept:
            return
        for block_hash in hashes:
            key = make_block_hash_with_group_id(BlockHash(block_hash), group)
            found = self._pool.cached_block_hash_to_block._cache.get(key)
            if found is not None:
                for block in (found,) if isinstance(found, KVCacheBlock) else found.values():
                    self._rank_again(block)

    def _rank_again(self, block: KVCacheBlock) -> None:
        entry = self._kept.get(block.block_id)
        if entry is not None and (rank := self._rank(block)) != entry[0]:
            self.num_free_blocks -= 1
            self._keep(block, rank, entry[1])

    def _after_reset(self) -> None:
        """``reset_prefix_cache`` took all hashes without a word: blocks without one come first again."""
        free = self.get_all_free_blocks()
        cached = [block for block in free if block._block_hash is not None]
        unhashed = [block for block in free if block._block_hash is None]
        for block in free:
            self.remove(block)
        super().append_n(unhashed)
        self.append_n(cached)
        self._hash_map = self._pool.cached_block_hash_to_block

    # -------------------------------------------------------------------------------------------------- looking
    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """All free blocks: the list, then the heap. Ranks that changed since are not looked up."""
        return super().get_all_free_blocks() + [self._pool.blocks[entry[2]] for entry in sorted(self._kept.values())]

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        """Free blocks behind ``cursor`` (None: all), as ``get_all_free_blocks`` has them. O(n log n)."""
        return _blocks_after(self.get_all_free_blocks(), cursor)


class BatchFreeQueue(PolicyFreeQueue):
    """No future use first, then farthest next use: ``batch`` of ``kv/policy.py``.

    future: what waits, by block hash without group. One KV cache group only: what a sliding window or a Mamba state
    needs next does not follow from the hash alone.
    """

    def __init__(self, pool: BlockPool, future: FutureUse) -> None:
        super().__init__(pool, future.needed)
        self._future, self._next_use = future, future.next_use

    def _rank(self, block: KVCacheBlock) -> Rank:
        block_hash = block._block_hash
        return (-self._next_use(block_hash[:-GROUP_BYTES]),) if block_hash is not None else IDLE

    def _count_needs(self) -> int:
        return self._future.num_added


class _Everything:
    def __contains__(self, item: object) -> bool:
        return True


class FifoFreeQueue(PolicyFreeQueue):
    """Oldest insertion first: ``fifo`` of ``kv/policy.py``.

    There a parent waits for its children. Here it takes their age when a request frees them together, which is the
    same as long as no other request holds the parent at that time.
    """

    RANKED = "cached"  # whether anybody waits for it is not known here

    def __init__(self, pool: BlockPool) -> None:
        super().__init__(pool, _Everything())
        self._inserted = [0] * len(pool.blocks)

    def _rank(self, block: KVCacheBlock) -> Rank:
        return (self._inserted[block.block_id],) if block._block_hash is not None else IDLE

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """The next n blocks, which are inserted now; so many must be free."""
        taken = super().popleft_n(n)
        self._clock += 1
        for block in taken:
            self._inserted[block.block_id] = self._clock
        return taken

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        """Blocks of one request are free, deepest first."""
        newest = 0
        for block in blocks:
            newest = self._inserted[block.block_id] = max(newest, self._inserted[block.block_id])
        super().append_n(blocks)


class KeyedFreeQueue(PolicyFreeQueue):
    """Least sort key first: any policy of ``kv/policy.py``, in Python. All that is cached lies on the heap.

    key:    reads a ``BlockUse`` in which the clock of this queue stands for the number of a request.
    future: what waits, by block hash without group; None for a key that does not read ``next_use``.
    """

    RANKED = "cached"

    def __init__(self, pool: BlockPool, key: SortKey, future: FutureUse | None = None) -> None:
        super().__init__(pool, _Everything())
        self._key, self._next_use = key, future.next_use if future is not None else None
        self._uses = [BlockUse(depth=1, inserted=0, last_use=0) for _ in pool.blocks]

    def _rank(self, block: KVCacheBlock) -> Rank:
        if block._block_hash is None:
            return IDLE
        use = self._uses[block.block_id]
        if self._next_use is not None:
            use.next_use = self._next_use(block._block_hash[:-GROUP_BYTES])
        return self._key(use)

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """The next n blocks, which are inserted now; so many must be free."""
        taken = super().popleft_n(n)
        self._clock += 1
        for block in taken:
            self._uses[block.block_id] = BlockUse(depth=1, inserted=self._clock, last_use=self._clock)
        return taken

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        """Blocks of one request are free, deepest first: this was their last use. A parent is as young as its children,
        so that it does not go before them."""
        self._clock += 1
        newest = 0
        for place, block in enumerate(blocks):
            use = self._uses[block.block_id]
            newest = use.inserted = max(newest, use.inserted)
            use.depth, use.last_use = len(blocks) - place, self._clock
        super().append_n(blocks)

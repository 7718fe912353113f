"""Eviction policies as sort keys: of the blocks that may go, the one with the least key goes first.

A policy is one function and one row of ``POLICIES``. The forecast (``kv/simulate.py``), the settings, the command line
and the block pool of a live engine (``vllm_ext/scheduler/free_queue.py``) take it from there.

Only leaves may go: blocks without a child in the cache that the request at hand does not hold. vLLM's block pool does
not check this: it takes the head of its queue, and a child can outlive its parent there. But a request reuses leading
blocks only, so such a child serves nobody, and once its parent is computed again vLLM computes the child again too: it
is dead room. A policy that lets the child go instead of the parent has at least the same hits, and stock vLLM's queue
does just that. So the rule takes nothing from any policy, and ``belady`` bounds those that break it too.

Under ``lru``, ``belady`` and ``batch`` a parent's key is never below its child's, so the least key of all is always a
leaf's. Under ``fifo`` it is not: a parent is as old as its child or older, and waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

NEVER = math.inf
"""The next use of a block that no later request holds."""


@dataclass(slots=True)
class BlockUse:
    """What a policy may know of a block.

    Compare each number between blocks only, never two numbers of one block: requests are counted from 0 in the order
    asked, an engine counts steps of its block pool, where a block that was used once already has another ``last_use``
    than ``inserted``.

    depth:    blocks of the prompt up to this one, itself included; in an engine, of those that were freed with it.
    inserted: the request that computed it; in an engine a parent is as young as its youngest child.
    last_use: the latest request that held it.
    next_use: the next request that will, as far as the queue of requests is known; ``NEVER`` if none will. In an engine
              it is ``NEVER`` for every block unless the policy says ``reads_queue``.
    """

    depth: int
    inserted: int
    last_use: int
    next_use: float = NEVER


SortKey = Callable[[BlockUse], tuple[float, ...]]


def lru(block: BlockUse) -> tuple[float, ...]:
    """Least recently used first, of one request the deepest first: stock vLLM."""
    return (block.last_use, -block.depth)


def fifo(block: BlockUse) -> tuple[float, ...]:
    """Oldest insertion first, of one request the deepest first (arXiv 2403.05821 v1, section 6.2).

    Where every prompt ends with a block of its own, it does what ``lru`` does: that block is as young as the request,
    and the blocks before it wait for it. The two differ when whole prompts, or prompts but for the last block, return.
    """
    return (block.inserted, -block.depth)


def belady(block: BlockUse) -> tuple[float, ...]:
    """Farthest next use first, never again first of all, of one request the deepest first.

    With all requests known no policy finds more blocks in the cache (L. A. Belady, A study of replacement algorithms
    for a virtual-storage computer, 1966). In tokens served this holds as long as no prompt ends with a whole block
    and starts another prompt: vLLM computes such a block again although it is cached, and its hit counts for nothing.
    Distinct rows with a text after them, as the pipeline sends them, are never so.
    """
    return (-block.next_use, -block.depth)


def batch(block: BlockUse) -> tuple[float, ...]:
    """``belady`` on the requests that wait now, least recently used among equals: what our block pool does.

    With all requests waiting from the start it has the hits of ``belady``: blocks with the same next request lie on its
    one path, and of those that nobody waits for any may go. With later arrivals it does what ``lru`` does among the
    blocks that nobody waits for yet. It lets a needed block go only where no other is free.
    """
    return (-block.next_use, block.last_use, -block.depth)


@dataclass(frozen=True)
class Policy:
    """A sort key and what it declares about itself; called like the key.

    reads_queue: it reads ``next_use``: an engine keeps an index of what waiting requests need.
    serves:      an engine can run it. False where it must know requests that have not arrived.
    replay:      the C++ replay with the same hits, by its name in ``csrc/replay/prefix_cache.h``. "" where there is
                 none: then the reference replays, which takes time for every block of the cache.
    """

    key: SortKey
    reads_queue: bool = False
    serves: bool = True
    replay: str = ""

    def __call__(self, block: BlockUse) -> tuple[float, ...]:
        return self.key(block)


POLICIES: Mapping[str, Policy] = {
    "lru": Policy(lru, replay="lru"),
    "fifo": Policy(fifo, replay="fifo"),
    "belady": Policy(belady, reads_queue=True, serves=False, replay="belady"),
    "batch": Policy(batch, reads_queue=True, replay="belady"),
}


def sort_key(policy: str) -> Policy:
    """The policy of that name, which is its sort key; ``ValueError`` with the names there are."""
    if policy not in POLICIES:
        raise ValueError(f"there is no eviction policy {policy!r}: use one of {', '.join(POLICIES)}")
    return POLICIES[policy]

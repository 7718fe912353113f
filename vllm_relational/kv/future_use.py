"""Which blocks the waiting requests still need, and how soon: what a cache that knows its queue can know.

A request is its block hashes, root first. Places in the queue are whole numbers, less is sooner: arrivals take the next
number at the back, requests that go back to the front (preempted, deferred) the next one at the front. So the places
of the users of one block rise as they come, and no structure has to be kept sorted.

``csrc/scheduler/future_use.h`` does the same for block hashes that are bytes; ``native.future_use`` chooses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, KeysView, Sequence
from typing import Any

from vllm_relational.kv.policy import NEVER


class FutureUse:
    """Per block hash: how many waiting requests hold it, and the place of the first of them.

    Every update costs O(blocks of the request), amortised: a request that leaves is forgotten at once, its places
    when they come to the head of their block's line, or when they are more than those of requests that wait. Memory:
    one number a block that one request holds, at most three a request for shared blocks. num_added: requests so far.
    """

    def __init__(self) -> None:
        self.num_added = 0
        self._first_place = self._next_place = 0
        self._places: dict[Hashable, tuple[int, Sequence[Hashable]]] = {}
        self._live: set[int] = set()
        self._users: dict[Hashable, Any] = {}  # a place, or a _Line of several

    def __len__(self) -> int:
        """Waiting requests."""
        return len(self._places)

    def add(self, request: Hashable, hashes: Sequence[Hashable], front: bool = False) -> None:
        """A request waits at the back of the queue, or at its front; one that waits already moves.

        hashes: all different.
        """
        if request in self._places:
            self.remove(request)
        self.num_added += 1
        place = self._take_place(front)
        self._places[request] = (place, tuple(hashes))
        self._live.add(place)
        users = self._users
        for block in hashes:
            there = users.get(block)
            if there is None:
                users[block] = place
            elif type(there) is int:
                users[block] = _Line(there, place, front)
            else:
                there.add(place, front)

    def remove(self, request: Hashable) -> bool:
        """A request waits no longer, because it starts or was aborted; False if it did not wait."""
        if request not in self._places:
            return False
        place, hashes = self._places.pop(request)
        self._live.discard(place)
        users = self._users
        for block in hashes:
            there = users[block]
            if type(there) is int or there.count == 1:
                del users[block]
            else:
                there.leave(self._live)
        return True

    def next_use(self, block: Hashable) -> float:
        """Place of the next request that holds the block; ``NEVER`` if none waits that does."""
        there = self._users.get(block)
        if there is None:
            return NEVER
        return there if type(there) is int else there.first(self._live)

    def count(self, block: Hashable) -> int:
        """Waiting requests that hold the block."""
        there = self._users.get(block)
        if there is None:
            return 0
        return 1 if type(there) is int else there.count

    @property
    def num_blocks(self) -> int:
        """Distinct blocks that waiting requests hold."""
        return len(self._users)

    @property
    def needed(self) -> KeysView[Hashable]:
        """The blocks that waiting requests hold: a view that stays up to date."""
        return self._users.keys()

    def _take_place(self, front: bool) -> int:
        if front:
            self._first_place -= 1
            return self._first_place
        self._next_place += 1
        return self._next_place - 1


class _Line:
    """Places of several requests that hold one block, rising; some may have left."""

    __slots__ = ("count", "places")

    def __init__(self, first: int, second: int, front: bool) -> None:
        self.places = deque((first,))
        self.count = 1
        self.add(second, front)

    def add(self, place: int, front: bool) -> None:
        self.count += 1
        if front:
            self.places.appendleft(place)
        else:
            self.places.append(place)

    def leave(self, live: set[int]) -> None:
        """One of them has left; places of those who left earlier go when they are the most."""
        self.count -= 1
        if len(self.places) > 2 * self.count + 1:
            self.places = deque(place for place in self.places if place in live)

    def first(self, live: set[int]) -> int:
        places = self.places
        while places[0] not in live:
            places.popleft()
        return places[0]

"""vLLM's queue of waiting requests, in prefix order while it is deep, telling the cache what it still needs.

Requests that vLLM puts back (preempted, skipped in a step) are in front of all others, as in stock vLLM. The others
come first come first served while few wait. From ``deep_queue + 1`` on they come depth-first by their common prefixes
(``kv/prefix_queue.py``), until no more than a quarter of ``deep_queue`` is left. Who arrives at a deep queue and finds
more of its prefix in the cache than in the requests that wait is "warm" and comes before all of them: none of them
will bring that prefix back, so it is served now or never. The second question about a row that a filter passed is one.

Nobody starves: a request is overtaken only by requests that arrived at most ``max_age_s`` after it. A batch that is
sent at once is free to be reordered as a whole, however long it runs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from vllm_relational.kv.future_use import FutureUse
from vllm_relational.kv.prefix_queue import PrefixQueue

Hashes = Sequence[Any]
SHALLOW = 4  # the queue is shallow again at deep_queue / SHALLOW


class RelationalQueue(RequestQueue):
    """See above. All calls but iteration cost O(blocks of the request), amortised.

    deep_queue:     None: first come first served, always.
    future:         told of every request that waits or waits no longer; None: nobody is.
    when_withdrawn: called with the hashes of requests that leave without being started.
    is_cached:      whether the KV cache holds the block of that hash; None: nobody is warm.
    num_reordered:  requests started before an older one.
    """

    def __init__(
        self,
        deep_queue: int | None,
        max_age_s: float,
        future: FutureUse | None = None,
        when_withdrawn: Callable[[Hashes], None] | None = None,
        is_cached: Callable[[Any], bool] | None = None,
    ) -> None:
        self.num_reordered = 0
        self._deep_queue, self._max_age_s = deep_queue, max_age_s
        self._future, self._when_withdrawn = future, when_withdrawn
        self._front: deque[Request] = deque()
        self._waiting: OrderedDict[str, Request] = OrderedDict()
        self._tree: PrefixQueue | None = None
        self._is_cached = is_cached
        self._warm: OrderedDict[str, None] = OrderedDict()
        self._last: Hashes = ()
        self._chosen: Request | None = None

    # ---------------------------------------------------------------------------------------------------- in
    def add_request(self, request: Request) -> None:
        """A request arrives."""
        hashes = tuple(request.block_hashes)
        self._waiting[request.request_id] = request
        if self._future is not None:
            self._future.add(request.request_id, hashes)
        if self._tree is not None:
            if self._is_warm(self._tree, hashes):
                self._warm[request.request_id] = None
            else:
                self._tree.add(request.request_id, hashes)
        elif self._deep_queue is not None and len(self._waiting) > self._deep_queue:
            self._grow_tree()

    def _is_warm(self, tree: PrefixQueue, hashes: Hashes) -> bool:
        """Whether the cache holds more of its prefix than those who wait do."""
        if self._is_cached is None:
            return False
        depth = tree.shared_depth(hashes)
        return depth < len(hashes) and self._is_cached(hashes[depth])

    def _grow_tree(self) -> None:
        self._tree = PrefixQueue()
        for request in self._waiting.values():
            self._tree.add(request.request_id, tuple(request.block_hashes))
        self._tree.seek(self._last)

    def prepend_request(self, request: Request) -> None:
        """A request comes back, in front of all."""
        self._front.appendleft(request)
        if self._future is not None:
            self._future.add(request.request_id, tuple(request.block_hashes), front=True)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Requests come back, the last one in front: vLLM's own order."""
        for request in requests:
            self.prepend_request(request)

    # --------------------------------------------------------------------------------------------------- out
    def peek_request(self) -> Request:
        """The request that is next; ``IndexError`` if none waits. It stays next, whoever arrives, but for the front."""
        if self._front:
            return self._front[0]
        if self._chosen is None:
            self._chosen = self._choose()
        return self._chosen

    def _choose(self) -> Request:
        if not self._waiting:
            raise IndexError("peek from an empty queue")
        oldest = next(iter(self._waiting.values()))
        if self._tree is None:
            return oldest
        first = self._waiting[next(iter(self._warm), None) or str(self._tree.first())]
        overtakes = first.arrival_time - oldest.arrival_time > self._max_age_s
        return oldest if overtakes else first

    def pop_request(self) -> Request:
        """Take the request that is next; ``IndexError`` if none waits."""
        request = self.peek_request()
        if self._front:
            self._front.popleft()
        else:
            self._start(request)
        if self._future is not None:
            self._future.remove(request.request_id)
        return request

    def _start(self, request: Request) -> None:
        self._chosen = None
        self.num_reordered += request is not next(iter(self._waiting.values()))
        del self._waiting[request.request_id]
        if request.request_id in self._warm:  # a detour: the way through the tree goes on where it was
            del self._warm[request.request_id]
        else:
            self._last = request.block_hashes
            if self._tree is not None:
                self._tree.take(request.request_id)
        self._fell_tree()

    def _fell_tree(self) -> None:
        if self._deep_queue is not None and len(self._waiting) <= self._deep_queue // SHALLOW:
            self._tree = None
            self._warm.clear()

    def remove_request(self, request: Request) -> None:
        """A request is withdrawn; ``ValueError`` if it is not here."""
        if request.request_id not in self._waiting and request not in self._front:
            raise ValueError(f"request {request.request_id} does not wait")
        self.remove_requests([request])

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Requests are withdrawn; those that are not here are passed over."""
        gone = {request.request_id for request in requests}
        if any(request.request_id in gone for request in self._front):
            self._front = deque(request for request in self._front if request.request_id not in gone)
        for request_id in gone:
            if self._waiting.pop(request_id, None) is not None and self._tree is not None:
                self._tree.remove(request_id)
                self._warm.pop(request_id, None)
            if self._future is not None:
                hashes = self._future.remove(request_id)
                if self._when_withdrawn is not None and hashes:
                    self._when_withdrawn(hashes)
        self._chosen = None
        self._fell_tree()

    # ----------------------------------------------------------------------------------------------- looking
    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._front or self._waiting)

    def __len__(self) -> int:
        """Waiting requests."""
        return len(self._front) + len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        """All who wait: the front, then by arrival, or the tree from its root."""
        yield from self._front
        if self._tree is None:
            yield from self._waiting.values()
        else:
            yield from (self._waiting[str(request_id)] for request_id in (*self._warm, *self._tree))

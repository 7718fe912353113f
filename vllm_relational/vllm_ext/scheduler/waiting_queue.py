"""vLLM's queue of waiting requests, in prefix order while it is deep, telling the cache what it still needs.

Preempted requests are in front of all others, as in stock vLLM. The others come first come first served while few
wait. From ``deep_queue + 1`` on they come depth-first by their common prefixes (``kv/prefix_queue.py``), until no more
than a quarter of ``deep_queue`` is left. vLLM takes requests out that cannot start yet (a grammar is not ready, a LoRA
slot is not free) and puts them back at the end of the step: they find their place again.

Who arrives at a deep queue and finds more of its prefix in the cache than in the requests that wait is "warm" and comes
before all of them: none of them will bring that prefix back, so it is served now or never. The second question about a
row that a filter passed is one.

Nobody starves: a request is overtaken only by requests that arrived at most ``max_age_s`` after it. A batch that is
sent at once is free to be reordered as a whole, however long it runs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from vllm_relational import native
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
    num_reordered:  requests started before an older one that could have started.
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
        self._waiting: OrderedDict[str, Request] = OrderedDict()  # the oldest first
        self._out: set[str] = set()  # of _waiting, taken in this step: they keep their place until it ends
        self._ahead: set[str] = set()  # taken in this step before an older one
        self._any_back = False  # in this step
        self._felled = False  # in this step
        self._tree: PrefixQueue | None = None
        self._is_cached = is_cached
        self._warm = native.prefix_queue()
        self._warm_ids: set[str] = set()
        self._last: Hashes = ()  # of the request that was taken last
        self._last_started: Hashes = ()
        self._chosen: Request | None = None
        self._overtakes = False  # _chosen is not the oldest

    # ---------------------------------------------------------------------------------------------------- in
    def add_request(self, request: Request) -> None:
        """A request arrives."""
        self._waiting[request.request_id] = request
        if self._future is not None:
            self._future.add(request.request_id, request.block_hashes)
        if self._tree is not None:
            self._enter(self._tree, request)
        elif self._deep_queue is not None and len(self._waiting) - len(self._out) > self._deep_queue:
            self._grow_tree()

    def _enter(self, tree: PrefixQueue, request: Request, front: bool = False) -> None:
        hashes = _frozen(request)
        if self._is_warm(tree, hashes):
            self._warm.add(request.request_id, hashes, front)
            self._warm_ids.add(request.request_id)
        else:
            tree.add(request.request_id, hashes, front)

    def _is_warm(self, tree: PrefixQueue, hashes: Hashes) -> bool:
        """Whether the cache holds more of its prefix than those who wait do."""
        if self._is_cached is None:
            return False
        depth = tree.shared_depth(hashes)
        return depth < len(hashes) and self._is_cached(hashes[depth])

    def _grow_tree(self) -> None:
        self._tree = native.prefix_queue()
        for request in self._by_arrival():
            self._tree.add(request.request_id, _frozen(request))
        self._tree.seek(self._last)

    def prepend_request(self, request: Request) -> None:
        """A preempted request comes back, in front of all."""
        self._front.appendleft(request)
        if self._future is not None:
            self._future.add(request.request_id, request.block_hashes, front=True)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Requests that could not start in this step come back, the last one in front: vLLM's own order."""
        for request in requests:
            if request.status == RequestStatus.PREEMPTED:
                self.prepend_request(request)
            else:
                self._put_back(request)

    def _put_back(self, request: Request) -> None:
        request_id = request.request_id
        if request_id in self._out:
            self._out.remove(request_id)
        else:
            self._waiting[request_id] = request
            self._waiting.move_to_end(request_id, last=False)
        if self._future is not None:
            self._future.add(request_id, request.block_hashes, front=True)
        if self._tree is not None:
            self._enter(self._tree, request, front=True)
        if request_id in self._ahead:
            self._ahead.remove(request_id)
            self.num_reordered -= 1
        self._any_back, self._chosen = True, None

    # --------------------------------------------------------------------------------------------------- out
    def peek_request(self) -> Request:
        """The request that is next; ``IndexError`` if none waits. It stays next, whoever arrives, but for the front."""
        if self._front:
            return self._front[0]
        if self._chosen is None:
            self._chosen = self._choose()
        return self._chosen

    def _choose(self) -> Request:
        oldest = self._oldest()
        if oldest is None:
            raise IndexError("peek from an empty queue")
        self._overtakes = False
        if self._tree is None:
            return oldest
        first = self._waiting[str((self._warm if self._warm_ids else self._tree).first())]
        if first is oldest or first.arrival_time - oldest.arrival_time > self._max_age_s:
            return oldest
        self._overtakes = True
        return first

    def _oldest(self) -> Request | None:
        waiting, out = self._waiting, self._out
        while waiting:
            request_id, request = next(iter(waiting.items()))
            if request_id not in out:
                return request
            del waiting[request_id]  # nobody is before it: put back, it is first again
            out.remove(request_id)
        return None

    def pop_request(self) -> Request:
        """Take the request that is next; ``IndexError`` if none waits."""
        request = self.peek_request()
        if self._front:
            self._front.popleft()
        else:
            self._take(request)
        if self._future is not None:
            self._future.remove(request.request_id)
        return request

    def _take(self, request: Request) -> None:
        request_id, self._chosen = request.request_id, None
        if self._tree is None:
            self._last = request.block_hashes
            del self._waiting[request_id]
            return
        if self._overtakes:
            self.num_reordered += 1
            self._ahead.add(request_id)
        self._out.add(request_id)
        if request_id in self._warm_ids:  # a detour: the way through the tree goes on where it was
            self._warm_ids.remove(request_id)
            self._warm.take(request_id)
        else:
            self._last = request.block_hashes
            self._tree.take(request_id)
        self._fell_tree()

    def _fell_tree(self) -> None:
        if self._tree is not None and self._is_shallow():
            self._tree, self._felled = None, True
            self._warm = native.prefix_queue()
            self._warm_ids.clear()

    def _is_shallow(self) -> bool:
        assert self._deep_queue is not None
        return len(self._waiting) - len(self._out) <= self._deep_queue // SHALLOW

    def step_ends(self, last_started: Request | None) -> None:
        """vLLM has taken whom it wanted and put back who could not start; the next one goes on from the last started.

        Without this call the order goes on from the last one that was taken, and requests are let go of later.
        """
        if last_started is not None:
            self._last_started = last_started.block_hashes
        for request_id in self._out:
            del self._waiting[request_id]
        self._out.clear()
        self._ahead.clear()
        if self._any_back:
            self._go_on_from_last_started()
        self._any_back = self._felled = False

    def _go_on_from_last_started(self) -> None:
        self._last = self._last_started
        if self._tree is not None:
            self._tree.seek(self._last)
        elif self._felled and not self._is_shallow():  # it looked shallow while those who came back were out
            self._grow_tree()
            self._chosen = None

    def remove_request(self, request: Request) -> None:
        """A request is withdrawn; ``ValueError`` if it is not here."""
        waits = request.request_id in self._waiting and request.request_id not in self._out
        if not waits and request not in self._front:
            raise ValueError(f"request {request.request_id} does not wait")
        self.remove_requests([request])

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Requests are withdrawn; those that are not here are passed over."""
        gone = {request.request_id: request for request in requests}
        if any(request.request_id in gone for request in self._front):
            self._front = deque(request for request in self._front if request.request_id not in gone)
        for request_id, request in gone.items():
            if request_id not in self._out:
                self._withdraw(request_id)
            if self._future is not None and self._future.remove(request_id) and self._when_withdrawn is not None:
                self._when_withdrawn(request.block_hashes)
        self._chosen = None
        self._fell_tree()

    def _withdraw(self, request_id: str) -> None:
        if self._waiting.pop(request_id, None) is not None and self._tree is not None:
            self._tree.remove(request_id)
            self._warm.remove(request_id)
            self._warm_ids.discard(request_id)

    # ----------------------------------------------------------------------------------------------- looking
    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return len(self._waiting) > len(self._out) or bool(self._front)

    def __len__(self) -> int:
        """Waiting requests."""
        return len(self._front) + len(self._waiting) - len(self._out)

    def __iter__(self) -> Iterator[Request]:
        """All who wait: the front, then by arrival, or the tree from its root."""
        yield from self._front
        if self._tree is None:
            yield from self._by_arrival()
        else:
            yield from (self._waiting[str(request_id)] for request_id in (*self._warm, *self._tree))

    def _by_arrival(self) -> Iterator[Request]:
        return (request for request_id, request in self._waiting.items() if request_id not in self._out)


def _frozen(request: Request) -> Hashes:
    """The hashes as they are now: a list that grows. The native queue copies what it needs."""
    return request.block_hashes if native.is_native() else tuple(request.block_hashes)

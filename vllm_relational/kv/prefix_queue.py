"""Waiting requests in depth-first order of their common prefixes, kept while requests come and go.

A compressed prefix tree of block hashes: a node stands for a prefix at which requests end or part, so a request adds
two nodes at most, however long it is. A block hash stands for the whole prefix up to its block. So two requests share
the first n blocks exactly where their n-th hashes are equal, and one comparison decides about an edge of any length.

``csrc/scheduler/prefix_queue.h`` does the same for block hashes that are bytes; ``native.prefix_queue`` chooses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

Hashes = Sequence[Hashable]


class _Node:
    """The first ``depth`` of ``hashes``; the requests that end here, and the nodes below by their next hash.

    Ordered dictionaries: the first key of a plain one takes linear time once many before it were deleted.
    """

    __slots__ = ("children", "depth", "hashes", "parent", "requests")

    def __init__(self, parent: _Node | None, hashes: Hashes, depth: int) -> None:
        self.parent, self.hashes, self.depth = parent, hashes, depth
        self.requests: OrderedDict[Hashable, None] | None = None
        self.children: OrderedDict[Hashable, _Node] | None = None

    def child(self, hashes: Hashes) -> _Node | None:
        """The node below on the way of ``hashes``, which may part from it on the edge."""
        if not self.children or len(hashes) == self.depth:
            return None
        return self.children.get(hashes[self.depth])

    def is_prefix_of(self, hashes: Hashes) -> bool:
        return len(hashes) >= self.depth and (not self.depth or hashes[self.depth - 1] == self.hashes[self.depth - 1])

    def add_child(self, hashes: Hashes, depth: int, front: bool = False) -> _Node:
        """A node below, in the place of the one that goes the same way, else as the youngest, or the oldest."""
        if self.children is None:
            self.children = OrderedDict()
        child = self.children[hashes[self.depth]] = _Node(self, hashes, depth)
        if front:
            self.children.move_to_end(hashes[self.depth], last=False)
        return child


class PrefixQueue:
    """Who is next: stay under the prefix of the last request as deep as possible, else the oldest branch.

    Requests that end at a node come before those that go on below it. A branch is as old as the first request that
    opened it. Every call costs O(blocks of a request) or less, but for going through all requests.
    """

    def __init__(self) -> None:
        self._root = self._at = _Node(None, (), 0)
        self._nodes: dict[Hashable, _Node] = {}
        self._last: Hashes = ()
        self._all_sought = True  # whether _at was found with all who wait now in the tree

    def __len__(self) -> int:
        """Waiting requests."""
        return len(self._nodes)

    def shared_depth(self, hashes: Hashes) -> int:
        """How many leading blocks some waiting request has in common with ``hashes``."""
        node, child = self._walk(hashes)
        return node.depth if child is None else _parting(node, child, hashes)

    def _walk(self, hashes: Hashes) -> tuple[_Node, _Node | None]:
        """The deepest node that is a prefix of ``hashes``, and the one below it from which they part on the edge."""
        node = self._root
        while (child := node.child(hashes)) is not None and child.is_prefix_of(hashes):
            node = child
        return node, child

    def add(self, request: Hashable, hashes: Hashes, front: bool = False) -> None:
        """A request waits; ``hashes``: its full blocks, root first, not to be changed from now on.

        front: it comes back, before all others of its prefix; a branch that it opens is the oldest. Requests that were
        taken one after the other and come back the last one first are where they were.
        """
        node = self._place(hashes, front)
        if node.requests is None:
            node.requests = OrderedDict()
        node.requests[request] = None
        if front:
            node.requests.move_to_end(request, last=False)
        self._nodes[request] = node
        self._all_sought = False

    def _place(self, hashes: Hashes, front: bool) -> _Node:
        """The node of exactly these hashes."""
        node, child = self._walk(hashes)
        if child is not None:
            node = _split(node, child, hashes)
        return node if node.depth == len(hashes) else node.add_child(hashes, len(hashes), front)

    def remove(self, request: Hashable) -> bool:
        """The request waits no longer; False if it did not."""
        node = self._nodes.pop(request, None)
        if node is None:
            return False
        self._leave(node, request)
        return True

    def take(self, request: Hashable) -> None:
        """The request starts: those that share most with it are next. ``KeyError`` if it does not wait."""
        self._at = node = self._nodes.pop(request)
        self._last = node.hashes[: node.depth]
        self._leave(node, request)

    def seek(self, hashes: Hashes) -> None:
        """A request with these hashes has started elsewhere: those that share most with it are next."""
        node, child = self._walk(hashes)
        # Parting from it on the edge, the child's requests still share more than all others.
        self._at, self._last, self._all_sought = child or node, hashes, True

    def _leave(self, node: _Node, request: Hashable) -> None:
        assert node.requests is not None
        del node.requests[request]
        while not node.requests and not node.children and node.parent is not None:
            above = node.parent
            assert above.children is not None
            del above.children[node.hashes[above.depth]]
            if self._at is node:
                self._at = above
            node = above

    def first(self) -> Hashable:
        """The request that is next. ``IndexError`` if none waits."""
        if not self._nodes:
            raise IndexError("no request waits")
        if not self._all_sought:
            self.seek(self._last)
        node = self._at
        while not node.requests and not node.children:
            assert node.parent is not None
            node = node.parent
        while not node.requests:
            assert node.children is not None
            node = next(iter(node.children.values()))
        return next(iter(node.requests))

    def __iter__(self) -> Iterator[Hashable]:
        """All who wait, from the root, the oldest branch first."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            yield from node.requests or ()
            stack.extend(reversed((node.children or {}).values()))


def _parting(parent: _Node, child: _Node, hashes: Hashes) -> int:
    """The depth on the edge from parent to child at which ``hashes`` part from it."""
    depth = parent.depth + 1
    while depth < len(hashes) and depth < child.depth and hashes[depth] == child.hashes[depth]:
        depth += 1
    return depth


def _split(parent: _Node, child: _Node, hashes: Hashes) -> _Node:
    """A new node on the edge from parent to child, where ``hashes`` part from it."""
    depth = _parting(parent, child, hashes)
    middle = parent.add_child(child.hashes, depth)
    middle.children = OrderedDict(((child.hashes[depth], child),))
    child.parent = middle
    return middle

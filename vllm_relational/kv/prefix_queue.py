"""Waiting requests in depth-first order of their common prefixes, kept while requests come and go.

A prefix tree of block hashes in which a request sits as high as it can: its hashes are spelt out only as far as another
request shares them. So a request with a prefix of its own costs one node, however long it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence


class _Node:
    """Requests that end here (or, without children, one that goes on alone), and the nodes below by next hash."""

    __slots__ = ("children", "depth", "name", "parent", "requests")

    def __init__(self, parent: _Node | None, name: Hashable, depth: int) -> None:
        self.parent, self.name, self.depth = parent, name, depth
        self.requests: OrderedDict[Hashable, Sequence[Hashable]] = OrderedDict()
        # OrderedDict: the first key of a plain dict is found in linear time after many deletions at its head.
        self.children: OrderedDict[Hashable, _Node] | None = None


class PrefixQueue:
    """Who is next: stay under the prefix of the last request as deep as possible, else the oldest branch.

    Requests that end at a node come before those that go on below it. A branch is as old as the first request that
    opened it. Every call costs O(hashes shared with another request), but for going through all of them.
    """

    def __init__(self) -> None:
        self._root = self._at = _Node(None, None, 0)
        self._nodes: dict[Hashable, _Node] = {}
        self._last: Sequence[Hashable] = ()
        self._all_sought = True  # whether _at was found with all who wait now in the tree

    def __len__(self) -> int:
        """Waiting requests."""
        return len(self._nodes)

    def add(self, request: Hashable, hashes: Sequence[Hashable]) -> None:
        """A request waits; ``hashes``: its full blocks, root first, not to be changed while it waits."""
        node = self._root
        while True:
            self._spell_out(node)
            if node.depth == len(hashes):
                break
            children = node.children
            if children is None:
                children = node.children = OrderedDict()
            child = children.get(hashes[node.depth])
            if child is None:
                child = children[hashes[node.depth]] = _Node(node, hashes[node.depth], node.depth + 1)
                node = child
                break
            node = child
        node.requests[request] = hashes
        self._nodes[request] = node
        self._all_sought = False

    def _spell_out(self, node: _Node) -> None:
        """Another request comes to the node: one that sits here but goes on alone moves one hash further down."""
        if node.children is not None or not node.requests or node.parent is None:
            return
        request, hashes = next(iter(node.requests.items()))
        if len(hashes) > node.depth:
            del node.requests[request]
            child = _Node(node, hashes[node.depth], node.depth + 1)
            child.requests[request] = hashes
            node.children = OrderedDict(((child.name, child),))
            self._nodes[request] = child

    def remove(self, request: Hashable) -> bool:
        """The request waits no longer; False if it did not. The place in the tree stays where it is, or above."""
        node = self._nodes.pop(request, None)
        if node is None:
            return False
        del node.requests[request]
        self._prune(node)
        return True

    def take(self, request: Hashable) -> None:
        """The request starts: those that share most with it are next. ``KeyError`` if it does not wait."""
        node = self._nodes.pop(request)
        self._last = node.requests.pop(request)
        self._at = node
        self._prune(node)

    def seek(self, hashes: Sequence[Hashable]) -> None:
        """A request with these hashes has started elsewhere: those that share most with it are next."""
        node = self._root
        while node.children and node.depth < len(hashes) and hashes[node.depth] in node.children:
            node = node.children[hashes[node.depth]]
        self._at, self._last, self._all_sought = node, hashes, True

    def _prune(self, node: _Node) -> None:
        while not node.requests and not node.children and node.parent is not None:
            above = node.parent
            assert above.children is not None
            del above.children[node.name]
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
            yield from node.requests
            stack.extend(reversed((node.children or {}).values()))

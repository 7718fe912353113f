"""The queue in prefix order against a recursive definition of that order."""

import pytest
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_relational import native
from vllm_relational.kv.prefix_queue import PrefixQueue

KINDS = {"reference": PrefixQueue, "native": native.prefix_queue}
paths = st.lists(st.integers(0, 2), max_size=4).map(lambda cells: [bytes(cells[: i + 1]) for i in range(len(cells))])
every_kind = pytest.mark.parametrize("kind", KINDS)


def depth_first(requests, depth=0):
    """requests: (name, hashes) by arrival. Those that end come first, then branches by their oldest request."""
    ordered = [name for name, hashes in requests if len(hashes) == depth]
    for branch in dict.fromkeys(hashes[depth] for _, hashes in requests if len(hashes) > depth):
        inside = [(name, hashes) for name, hashes in requests if len(hashes) > depth and hashes[depth] == branch]
        ordered += depth_first(inside, depth + 1)
    return ordered


def drain(queue):
    taken = []
    while len(queue):
        taken.append(queue.first())
        queue.take(taken[-1])
    return taken


@every_kind
@given(requests=st.lists(paths, max_size=25))
def test_a_queue_that_only_drains_is_in_depth_first_order(kind, requests):
    queue = KINDS[kind]()
    for name, hashes in enumerate(requests):
        queue.add(str(name), hashes)
    expected = depth_first([(str(name), hashes) for name, hashes in enumerate(requests)])
    assert sorted(queue) == sorted(expected)
    assert drain(queue) == expected


def shared(first, second):
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


class Traffic(RuleBasedStateMachine):
    """Whatever comes and goes: the next request shares as much with the last one as any that waits."""

    def __init__(self):
        super().__init__()
        self.queue, self.other = PrefixQueue(), native.prefix_queue()
        self.waiting, self.arrived, self.last = {}, 0, []

    @rule(hashes=paths, front=st.booleans())
    def arrive(self, hashes, front):
        self.arrived += 1
        self.queue.add(str(self.arrived), hashes, front)
        self.other.add(str(self.arrived), hashes, front)
        self.waiting[str(self.arrived)] = hashes

    @rule(hashes=paths)
    def look(self, hashes):
        expected = max((shared(hashes, other) for other in self.waiting.values()), default=0)
        assert self.queue.shared_depth(hashes) == self.other.shared_depth(hashes) == expected

    @rule(hashes=paths)
    def start_elsewhere(self, hashes):
        self.queue.seek(hashes)
        self.other.seek(hashes)
        self.last = hashes

    @precondition(lambda self: self.waiting)
    @rule()
    def start(self):
        request = self.queue.first()
        hashes = self.waiting.pop(request)
        most = max((shared(self.last, other) for other in [hashes, *self.waiting.values()]), default=0)
        assert shared(self.last, hashes) == most
        self.take(request)
        self.last = hashes

    def take(self, request):
        self.queue.take(request)
        self.other.take(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def start_another(self, data):
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        self.last = self.waiting.pop(request)
        self.take(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abort(self, data):
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[request]
        assert self.queue.remove(request)
        assert self.other.remove(request)

    @invariant()
    def nobody_is_lost(self):
        assert sorted(self.queue) == sorted(self.waiting)
        assert len(self.queue) == len(self.waiting)
        if self.waiting:
            assert self.queue.first() in self.waiting

    @invariant()
    def native_does_the_same(self):
        assert list(self.other) == list(self.queue)
        assert not self.waiting or self.other.first() == self.queue.first()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=examples(100), stateful_step_count=40, deadline=None)


def nodes(node):
    return 1 + sum(nodes(child) for child in (node.children or {}).values())


def test_a_request_adds_two_nodes_at_most():
    queue = PrefixQueue()
    queue.add("a", [("same", i) for i in range(1000)])
    assert nodes(queue._root) == 2
    queue.add("b", [*(("same", i) for i in range(10)), "other"])
    assert nodes(queue._root) == 4
    drain(queue)
    assert nodes(queue._root) == 1


def test_seek_goes_on_where_another_queue_stopped():
    queue = PrefixQueue()
    for name, hashes in {"a": ["1", "12"], "b": ["3", "34"], "c": ["3", "35"]}.items():
        queue.add(name, hashes)
    queue.seek(["3", "35", "356"])
    assert drain(queue) == ["c", "b", "a"]


@every_kind
@given(requests=st.lists(paths, min_size=1, max_size=12), number=st.integers(1, 12))
def test_requests_that_come_back_the_last_one_first_are_where_they_were(kind, requests, number):
    queue, taken = KINDS[kind](), []
    for name, hashes in enumerate(requests):
        queue.add(str(name), hashes)
    before = list(queue)
    for _ in range(min(number, len(requests))):
        taken.append(queue.first())
        queue.take(taken[-1])
    for name in reversed(taken):
        queue.add(name, requests[int(name)], front=True)
    queue.seek(())
    assert list(queue) == before


@every_kind
def test_an_empty_queue(kind):
    with pytest.raises(IndexError):
        KINDS[kind]().first()
    assert not KINDS[kind]().remove("a")
    with pytest.raises(KeyError):
        KINDS[kind]().take("a")

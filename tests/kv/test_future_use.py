"""The index of future uses against a recount of the queue."""

import pytest
from how_many import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_relational import native
from vllm_relational.kv.future_use import FutureUse
from vllm_relational.kv.policy import NEVER

KINDS = {"reference": FutureUse, "native": native.future_use}
paths = st.lists(st.integers(0, 2), max_size=4).map(lambda cells: [bytes(cells[: i + 1]) for i in range(len(cells))])
every_kind = pytest.mark.parametrize("kind", KINDS)


class Recount(RuleBasedStateMachine):
    """The queue as a plain list, first request first."""

    kind = "reference"

    def __init__(self):
        super().__init__()
        self.index, self.queue, self.arrived = KINDS[self.kind](), [], 0

    @rule(hashes=paths, front=st.booleans())
    def arrive(self, hashes, front):
        self.arrived += 1
        self.index.add(f"r{self.arrived}", hashes, front)
        self.queue.insert(0 if front else len(self.queue), (f"r{self.arrived}", hashes))

    @precondition(lambda self: self.queue)
    @rule(data=st.data(), front=st.booleans())
    def move(self, data, front):
        request, hashes = self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))
        self.index.add(request, hashes, front)
        self.queue.insert(0 if front else len(self.queue), (request, hashes))

    @precondition(lambda self: self.queue)
    @rule()
    def start(self):
        request, _ = self.queue.pop(0)
        assert self.index.remove(request)

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def abort(self, data):
        request, _ = self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))
        self.index.remove(request)

    @invariant()
    def counts_and_order_are_those_of_the_queue(self):
        assert len(self.index) == len(self.queue)
        blocks = {block for _, hashes in self.queue for block in hashes}
        users = {block: [i for i, (_, hashes) in enumerate(self.queue) if block in hashes] for block in blocks}
        assert self.index.num_blocks == len(blocks)  # nothing is kept of what is gone
        assert all(self.index.count(block) == len(places) for block, places in users.items())
        by_next_use = sorted(blocks, key=self.index.next_use)
        assert [users[block][0] for block in by_next_use] == sorted(places[0] for places in users.values())


class NativeRecount(Recount):
    kind = "native"


TestRecount, TestNativeRecount = Recount.TestCase, NativeRecount.TestCase
TestRecount.settings = TestNativeRecount.settings = settings(
    max_examples=examples(60), stateful_step_count=30, deadline=None
)


@every_kind
def test_a_block_that_nobody_waits_for(kind):
    index = KINDS[kind]()
    index.add("a", [b"1", b"2"])
    index.remove("a")
    assert index.next_use(b"1") == NEVER and index.count(b"1") == 0
    assert not index.remove("a")


@every_kind
def test_a_request_waits_once_and_moves_when_it_comes_again(kind):
    index = KINDS[kind]()
    index.add("a", [b"1"])
    index.add("b", [b"2"])
    index.add("a", [b"1", b"3"])
    assert len(index) == 2 and index.count(b"1") == 1
    assert index.next_use(b"2") < index.next_use(b"1") == index.next_use(b"3")


def test_requests_that_are_put_back_again_and_again_leave_nothing_behind():
    """The native index keeps no places of those who left; its memory is bounded by what waits at most."""
    index = FutureUse()
    for step in range(1000):
        for request in ("a", "b", "c"):
            index.add(request, [b"1"], front=step % 2 == 0)
    assert len(index._users[b"1"].places) <= 2 * 3 + 1

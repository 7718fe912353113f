"""The index of future uses against a recount of the queue."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_relational.kv.future_use import FutureUse
from vllm_relational.kv.policy import NEVER

paths = st.lists(st.integers(0, 2), max_size=4).map(lambda cells: [tuple(cells[: i + 1]) for i in range(len(cells))])


class Recount(RuleBasedStateMachine):
    """The queue as a plain list, first request first."""

    def __init__(self):
        super().__init__()
        self.index, self.queue, self.arrived = FutureUse(), [], 0

    @rule(hashes=paths, front=st.booleans())
    def arrive(self, hashes, front):
        self.arrived += 1
        self.index.add(self.arrived, hashes, front)
        self.queue.insert(0 if front else len(self.queue), (self.arrived, hashes))

    @precondition(lambda self: self.queue)
    @rule()
    def start(self):
        request, hashes = self.queue.pop(0)
        assert list(self.index.remove(request)) == hashes

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def abort(self, data):
        request, _ = self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))
        self.index.remove(request)

    @rule(data=st.data())
    def reorder(self, data):
        self.queue = data.draw(st.permutations(self.queue))
        self.index.reorder([request for request, _ in self.queue])

    @invariant()
    def counts_and_order_are_those_of_the_queue(self):
        assert len(self.index) == len(self.queue)
        blocks = {block for _, hashes in self.queue for block in hashes}
        users = {block: [i for i, (_, hashes) in enumerate(self.queue) if block in hashes] for block in blocks}
        assert set(self.index._users) == blocks  # nothing is kept of what is gone
        assert all(self.index.count(block) == len(places) for block, places in users.items())
        by_next_use = sorted(blocks, key=self.index.next_use)
        assert [users[block][0] for block in by_next_use] == sorted(places[0] for places in users.values())


TestRecount = Recount.TestCase
TestRecount.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_block_that_nobody_waits_for():
    index = FutureUse()
    index.add("a", [b"1", b"2"])
    index.remove("a")
    assert index.next_use(b"1") == NEVER and index.count(b"1") == 0
    assert list(index.remove("a")) == []


def test_a_request_waits_once_and_moves_when_it_comes_again():
    index = FutureUse()
    index.add("a", [b"1"])
    index.add("b", [b"2"])
    index.add("a", [b"1", b"3"])
    assert len(index) == 2 and index.count(b"1") == 1
    assert index.next_use(b"2") < index.next_use(b"1") == index.next_use(b"3")


def test_a_new_order_names_all_who_wait():
    index = FutureUse()
    index.add("a", [])
    index.add("b", [])
    with pytest.raises(KeyError, match="1 of 2"):
        index.reorder(["a"])

"""The waiting queue: vLLM's order while few wait, prefix order while many do, nobody lost, nobody starved."""

from itertools import product

import pytest
from how_many import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import RequestStatus
from vllm_objects import make_request

from vllm_relational import native
from vllm_relational.vllm_ext.scheduler.waiting_queue import RelationalQueue


def names(requests):
    return [request.request_id for request in requests]


def drain(queue):
    return [queue.pop_request().request_id for _ in range(len(queue))]


def filled(queue, prompts, arrivals=None):
    for i, cells in enumerate(prompts):
        tokens = [int(cell) for cell in cells for _ in range(2)] + [9]
        queue.add_request(make_request(f"{i}:{cells}", tokens, arrival=arrivals[i] if arrivals else 0.0))
    return queue


class Traffic(RuleBasedStateMachine):
    """Random traffic; ``deep_queue`` 3, so that it becomes deep and shallow often."""

    deep_queue: int | None = 3

    def __init__(self):
        super().__init__()
        self.future = native.future_use()
        self.queue = RelationalQueue(self.deep_queue, 1e9, self.future)
        self.stock, self.here, self.out, self.count = FCFSRequestQueue(), {}, [], 0

    @rule(cells=st.lists(st.sampled_from([1, 2]), max_size=3))
    def arrive(self, cells):
        self.count += 1
        request = make_request(str(self.count), [token for cell in cells for token in [cell] * 2] + [9])
        self.here[request.request_id] = request
        self.queue.add_request(request)
        self.stock.add_request(request)

    @precondition(lambda self: self.here)
    @rule()
    def start(self):
        peeked = self.queue.peek_request()
        assert self.queue.peek_request() is peeked
        assert self.queue.pop_request() is peeked
        self.check_start(peeked)
        self.stock.remove_request(peeked)
        self.out.append(self.here.pop(peeked.request_id))

    def check_start(self, request):
        pass

    @precondition(lambda self: self.out)
    @rule()
    def preempt(self):
        request = self.out.pop()
        request.status = RequestStatus.PREEMPTED
        self.here[request.request_id] = request
        self.queue.prepend_request(request)
        self.stock.prepend_request(request)
        assert self.queue.peek_request() is request

    @rule()
    def step_ends(self):
        self.queue.step_ends(self.out[-1] if self.out else None)

    @precondition(lambda self: self.here)
    @rule(several=st.integers(1, 3))
    def skip(self, several):
        """As in vLLM's step: some who are next are taken and put back together."""
        skipped = []
        for _ in range(min(several, len(self.here))):
            skipped.insert(0, self.queue.pop_request())
            self.stock.remove_request(skipped[0])
        self.queue.prepend_requests(skipped)
        self.stock.prepend_requests(skipped)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def abort(self, data):
        gone = [self.here.pop(name) for name in data.draw(st.sets(st.sampled_from(sorted(self.here))))]
        self.queue.remove_requests(gone)
        self.stock.remove_requests(gone)

    @invariant()
    def nobody_is_lost(self):
        assert sorted(names(self.queue)) == sorted(self.here)
        assert len(self.queue) == len(self.here) == len(self.future) and bool(self.queue) == bool(self.here)
        blocks = {block for request in self.here.values() for block in request.block_hashes}
        assert self.future.num_blocks == len(blocks)


class ArrivalTraffic(Traffic):
    """Without a limit to being shallow it is vLLM's own queue."""

    deep_queue = None

    def check_start(self, request):
        assert request is self.stock.peek_request()

    @invariant()
    def order_is_that_of_stock(self):
        assert names(self.queue) == names(self.stock)


class WarmTraffic(Traffic):
    """Half of all blocks are cached."""

    def __init__(self):
        super().__init__()
        self.queue = RelationalQueue(self.deep_queue, 1e9, self.future, is_cached=lambda block: block[0] % 2 == 0)


@pytest.mark.parametrize("traffic", [Traffic, ArrivalTraffic, WarmTraffic])
def test_random_traffic(traffic):
    run_state_machine_as_test(
        traffic, settings=settings(max_examples=examples(60), stateful_step_count=30, deadline=None)
    )


def test_a_shallow_queue_is_first_come_first_served():
    queue = filled(RelationalQueue(4, 30.0), ["12", "3", "13", "3"])
    assert drain(queue) == ["0:12", "1:3", "2:13", "3:3"]
    assert queue.num_reordered == 0


def test_a_deep_queue_runs_by_common_prefixes_until_a_quarter_is_left():
    queue = filled(RelationalQueue(4, 30.0), ["12", "3", "13", "3", "12", "4"])
    assert drain(queue) == ["0:12", "4:12", "2:13", "1:3", "3:3", "5:4"]
    assert queue.num_reordered == 2
    filled(queue, ["1", "2", "1"])
    assert drain(queue) == ["0:1", "1:2", "2:1"]


def test_it_goes_on_where_first_come_first_served_stopped():
    queue = filled(RelationalQueue(4, 30.0), ["12", "3"])
    assert queue.pop_request().request_id == "0:12"
    filled(queue, ["4", "5", "6", "12"])
    assert drain(queue)[0] == "3:12"


def test_a_request_is_overtaken_only_by_those_that_came_soon_after():
    prompts, arrivals = ["1", "2", "1", "1", "3"], [0.0, 1.0, 2.0, 50.0, 60.0]
    assert drain(filled(RelationalQueue(2, 30.0), prompts, arrivals)) == ["0:1", "2:1", "1:2", "3:1", "4:3"]
    assert drain(filled(RelationalQueue(2, 99.0), prompts, arrivals)) == ["0:1", "2:1", "3:1", "1:2", "4:3"]


def hashes_of(cells):
    return filled(RelationalQueue(None, 0.0), [cells]).peek_request().block_hashes


@pytest.mark.parametrize(
    "cached, order",
    [
        ("", ["0:1", "1:2", "3:23", "2:3", "4:5"]),
        ("5", ["4:5", "0:1", "1:2", "3:23", "2:3"]),  # the cache alone has its prefix
        ("2", ["0:1", "1:2", "3:23", "2:3", "4:5"]),  # one that waits will bring it back: no hurry
        ("23", ["3:23", "0:1", "1:2", "2:3", "4:5"]),  # no further than to its first block
    ],
)
def test_a_request_whose_prefix_only_the_cache_has_comes_first(cached, order):
    held = {block for length in range(len(cached)) for block in hashes_of(cached[: length + 1])}
    queue = RelationalQueue(2, 30.0, is_cached=held.__contains__)
    assert drain(filled(queue, ["1", "2", "3", "23", "5"])) == order


def test_a_warm_request_is_a_detour():
    queue = RelationalQueue(2, 30.0, is_cached=set(hashes_of("5")).__contains__)
    filled(queue, ["12", "3", "13"])
    started = [queue.pop_request().request_id]
    filled(queue, ["5", "5", "4", "5"])
    assert started + drain(queue) == ["0:12", "0:5", "1:5", "3:5", "2:13", "1:3", "2:4"]


def test_warm_requests_starve_nobody():
    queue = RelationalQueue(2, 30.0, is_cached=set(hashes_of("5")).__contains__)
    filled(queue, ["1", "2", "3", "5", "5"], [0.0, 0.0, 0.0, 20.0, 40.0])
    assert drain(queue)[:2] == ["3:5", "0:1"]


def put_back(queue, number):
    """vLLM takes out whom it cannot start, and puts them back at the end of the step."""
    taken = [queue.pop_request() for _ in range(number)]
    queue.prepend_requests(taken[::-1])
    queue.step_ends(None)


def test_requests_that_vllm_only_skipped_find_their_place_in_the_prefix_order_again():
    prompts = ["12", "3", "13", "3", "12", "4"]
    queue = filled(RelationalQueue(4, 30.0), prompts)
    put_back(queue, 6)
    filled(queue, ["5", "31"])  # who comes later is not behind them all
    assert drain(queue) == drain(filled(filled(RelationalQueue(4, 30.0), prompts), ["5", "31"]))


@pytest.mark.parametrize("number", range(1, 7))
def test_a_queue_of_which_nearly_all_were_skipped_is_still_deep(number):
    queue = filled(RelationalQueue(4, 30.0), ["12", "3", "13", "3", "12", "4"])
    put_back(queue, number)
    assert drain(queue) == ["0:12", "4:12", "2:13", "1:3", "3:3", "5:4"]


def test_skipped_requests_are_not_reordered_ones():
    queue = filled(RelationalQueue(4, 30.0), ["12", "3", "13", "3", "12", "4"])
    for _ in range(5):
        put_back(queue, 4)
    assert queue.num_reordered == 0
    drain(queue)
    assert queue.num_reordered == 2


def test_the_order_goes_on_from_the_request_that_started_not_from_one_that_was_skipped():
    queue = filled(RelationalQueue(4, 30.0), ["12", "3", "4", "12", "3", "12"])
    started = queue.pop_request()
    skipped = [queue.pop_request() for _ in range(3)]  # the two others of its prefix, and one of another
    queue.prepend_requests(skipped[::-1])
    queue.step_ends(started)
    assert drain(queue)[:2] == ["3:12", "5:12"]


def test_a_skipped_request_keeps_its_age():
    prompts, arrivals = ["1", "2", "1", "1", "3", "1"], [0.0, 1.0, 2.0, 50.0, 60.0, 31.5]
    for numbers in product((1, 3, 5), repeat=3):
        queue = filled(RelationalQueue(2, 30.0), prompts, arrivals)
        for number in numbers:
            put_back(queue, number)
        started = [arrivals[int(name[0])] for name in drain(queue)]
        assert all(arrival - min(started[i:]) <= 30 for i, arrival in enumerate(started))


def test_those_who_started_are_let_go_of_when_the_step_ends():
    queue = filled(RelationalQueue(2, 99.0), ["2", *"1" * 50, "2"])
    for _ in range(10):
        queue.step_ends(queue.pop_request())
    assert len(queue._waiting) == len(queue) == 42


def test_withdrawn_requests_are_told():
    told = []
    queue = filled(RelationalQueue(2, 30.0, native.future_use(), told.append), ["12", "3"])
    first = queue.peek_request()
    queue.remove_request(first)
    assert told == [first.block_hashes] and drain(queue) == ["1:3"]
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove_request(first)
    with pytest.raises(IndexError):
        queue.pop_request()

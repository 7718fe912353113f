"""The free queue under vLLM's own block pool: nothing lost, and victims in the order of the policy."""

import gc
import weakref

import pytest
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_objects import BLOCK_SIZE, check_pool, make_manager, make_request

from vllm_relational import native
from vllm_relational.kv.future_use import FutureUse
from vllm_relational.kv.policy import BlockUse, sort_key
from vllm_relational.vllm_ext.scheduler.free_queue import (
    BatchFreeQueue,
    FifoFreeQueue,
    KeyedFreeQueue,
    NativeFreeQueue,
    PolicyFreeQueue,
    make_free_queue,
)

QUEUES = ["stock", "lru", "fifo", "batch", "keyed"]
cells = st.lists(st.sampled_from([1, 2]), max_size=5)
tails = st.integers(0, BLOCK_SIZE)
prompts = st.builds(lambda cells, tail: [t for c in cells for t in [c] * BLOCK_SIZE] + [9] * tail, cells, tails).filter(
    len
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("start"), prompts),
        st.tuples(st.just("finish"), st.integers(0, 9)),
        st.tuples(st.just("wait"), prompts),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("hurry"), st.integers(0, 9)),
        st.tuples(st.just("evict"), st.integers(1, 9)),
        st.tuples(st.just("reset"), st.none()),
    ),
    max_size=40,
)


def install(manager, name, reference=False):
    """The queue of that name under the manager's pool, and the index that it reads."""
    pool = manager.block_pool
    future = FutureUse() if reference else native.future_use()
    if name == "lru":
        pool.free_block_queue = PolicyFreeQueue(pool)
    elif name.startswith("keyed"):  # by the key of batch, unless it names another policy
        policy = sort_key(name.partition(" ")[2] or "batch")
        pool.free_block_queue = KeyedFreeQueue(pool, policy, future if policy.reads_queue else None)
    elif name != "stock" and not reference:
        pool.free_block_queue = make_free_queue(pool, name, future if sort_key(name).reads_queue else None)
    elif name != "stock":
        pool.free_block_queue = BatchFreeQueue(pool, future) if name == "batch" else FifoFreeQueue(pool)
    return future


class Driver:
    """A cache manager that runs requests as a scheduler would, several at a time."""

    def __init__(self, name, num_blocks=12, reference=False):
        self.manager = make_manager(num_blocks)
        self.pool = self.manager.block_pool
        self.future = install(self.manager, name, reference)
        self.running, self.waiting, self.trace, self.count = [], [], [], 0

    def held(self):
        return {b.block_id: b for r in self.running for b in self.manager.get_blocks(r.request_id).blocks[0]}.values()

    def start(self, prompt):
        self.count += 1
        request = make_request(str(self.count), prompt)
        blocks, hit, _ = self.manager.get_computed_blocks(request)
        if self.manager.allocate_slots(request, len(prompt) - hit, hit, blocks) is None:
            self.trace.append("full")
            return
        self.running.append(request)
        self.trace.append((hit, self.manager.get_block_ids(request.request_id)))

    def finish(self, number):
        if self.running:
            self.manager.free(self.running.pop(number % len(self.running)))

    def wait(self, prompt):
        self.count += 1
        self.waiting.append(make_request(str(self.count), prompt))
        self.future.add(self.waiting[-1].request_id, self.waiting[-1].block_hashes)

    def leave(self, number):
        if self.waiting:
            request = self.waiting.pop(number % len(self.waiting))
            assert self.future.remove(request.request_id)
            if isinstance(self.pool.free_block_queue, (PolicyFreeQueue, NativeFreeQueue)):
                self.pool.free_block_queue.refresh(request.block_hashes)

    def hurry(self, number):
        """A request that waits goes to the front."""
        if self.waiting:
            request = self.waiting[number % len(self.waiting)]
            self.future.add(request.request_id, request.block_hashes, front=True)

    def evict(self, block_id):
        self.manager.evict_blocks({block_id})

    def reset(self, _):
        self.trace.append(self.manager.reset_prefix_cache())


@pytest.mark.parametrize("name", QUEUES)
@settings(max_examples=examples(60), deadline=None)
@given(operations=operations)
def test_free_and_held_and_null_make_the_pool_after_every_step(name, operations):
    driver = Driver(name)
    for operation, argument in operations:
        getattr(driver, operation)(argument)
        check_pool(driver.pool, driver.held())


@settings(max_examples=examples(100), deadline=None)
@given(operations=operations)
def test_lru_takes_the_very_blocks_that_stock_takes(operations):
    ours, stock = Driver("lru"), Driver("stock")
    for operation, argument in operations:
        if operation != "reset":  # after it ours goes through the blocks without a hash in another order
            getattr(ours, operation)(argument)
            getattr(stock, operation)(argument)
    assert ours.trace == stock.trace


def uses(driver):
    """Of all free cached blocks, what the policy may know: the clock of the queue stands for requests."""
    queue = driver.pool.free_block_queue
    for block in queue.get_all_free_blocks():
        if block.block_hash is not None:
            kept = queue._kept.get(block.block_id)
            clock = kept[1] if kept else queue._freed[block.block_id]
            next_use = driver.future.next_use(block.block_hash[:-4])
            yield block.block_id, BlockUse(0, inserted=0, last_use=clock, next_use=next_use)


@settings(max_examples=examples(150), deadline=None)
@given(operations=operations)
def test_batch_hands_blocks_out_in_the_order_of_its_sort_key(operations):
    driver = Driver("batch", reference=True)
    for operation, argument in operations:
        getattr(driver, operation)(argument)
    for number in range(len(driver.running)):
        driver.finish(number)
    queue = driver.pool.free_block_queue
    key = sort_key("batch")
    expected = [block_id for block_id, use in sorted(uses(driver), key=lambda pair: key(pair[1]))]
    taken = queue.popleft_n(queue.num_free_blocks)
    assert [block.block_id for block in taken if block.block_hash is not None] == expected
    assert sum(queue.evictions.values()) >= len(taken)


@pytest.mark.parametrize("name", ["fifo", "batch"])
@settings(max_examples=examples(200), deadline=None)
@given(operations=operations)
def test_native_hands_out_the_very_blocks_of_the_reference(name, operations):
    native_one, reference = Driver(name), Driver(name, reference=True)
    for operation, argument in operations:
        for driver in (native_one, reference):
            getattr(driver, operation)(argument)
        assert native_one.trace == reference.trace
    queues = [driver.pool.free_block_queue for driver in (native_one, reference)]
    drained = [[block.block_id for block in queue.popleft_n(queue.num_free_blocks)] for queue in queues]
    assert drained[0] == drained[1]
    assert queues[0].evictions == queues[1].evictions


@pytest.mark.parametrize("policy", ["lru", "fifo", "batch"])
@settings(max_examples=examples(100), deadline=None)
@given(several=st.lists(prompts, max_size=12), waiting=st.lists(prompts, max_size=6))
def test_a_policy_by_its_key_finds_the_blocks_of_its_own_queue(policy, several, waiting):
    """One request at a time: there the numbers of requests and the clock of the queue rise alike."""
    drivers = Driver(f"keyed {policy}"), Driver(policy)
    for driver in drivers:
        for prompt in waiting:
            driver.wait(prompt)
        for prompt in several:
            driver.start(prompt)
            driver.finish(0)
    hits = [[found if found == "full" else found[0] for found in driver.trace] for driver in drivers]
    assert hits[0] == hits[1]


@pytest.mark.parametrize("name", ["fifo", "batch", "keyed"])
@settings(max_examples=examples(60), deadline=None)
@given(several=st.lists(prompts, max_size=12), waiting=st.lists(prompts, max_size=6))
def test_blocks_without_a_hash_come_first_and_children_before_parents(name, several, waiting):
    driver = Driver(name, num_blocks=14)
    parents = {}
    for prompt in waiting:
        driver.wait(prompt)
    for prompt in several:
        driver.start(prompt)
        hashes = make_request("x", prompt).block_hashes
        parents.update(zip(hashes[1:], hashes, strict=False))
        driver.finish(0)
    queue = driver.pool.free_block_queue
    order = [block.block_hash and block.block_hash[:-4] for block in queue.popleft_n(queue.num_free_blocks)]
    cached = order[sum(block_hash is None for block_hash in order) :]
    assert None not in cached
    for place, block_hash in enumerate(cached):
        # A prompt that returns whole leaves its last block twice: the second one may go before.
        assert parents.get(block_hash) not in cached[:place] or parents[block_hash] in cached[place:]


def test_a_block_that_is_waited_for_outlives_those_freed_later():
    driver = Driver("batch", num_blocks=6)
    driver.wait([1, 1, 9])
    for prompt in ([1, 1, 9], [2, 2, 9], [3, 3, 9], [4, 4, 9], [5, 5, 9], [6, 6, 9]):
        driver.start(prompt)
        driver.finish(0)
    driver.start([1, 1, 9])
    assert driver.trace[-1][0] == 2
    assert driver.pool.free_block_queue.evictions == {"unhashed": 11, "no_future_use": 2, "future_use": 0}


def test_a_withdrawn_request_needs_nothing():
    driver = Driver("batch", num_blocks=4)
    driver.wait([1, 1, 9])
    driver.start([1, 1, 9])
    driver.finish(0)
    driver.leave(0)
    for prompt in ([2, 2, 9], [3, 3, 9]):
        driver.start(prompt)
        driver.finish(0)
    driver.start([1, 1, 9])
    assert driver.trace[-1][0] == 0


def test_after_a_reset_blocks_come_unhashed_first():
    driver = Driver("batch", num_blocks=8)
    driver.wait([1, 1, 1, 1, 9])
    driver.start([1, 1, 1, 1, 9])
    driver.finish(0)
    driver.reset(None)
    driver.start([2, 2, 9])
    driver.finish(0)
    queue = driver.pool.free_block_queue
    assert [block.block_hash is None for block in queue.popleft_n(7)] == [True] * 6 + [False]


def test_key_value_events_are_those_of_stock():
    events = []
    for name in ("stock", "lru"):
        manager = make_manager(4, events=True)
        install(manager, name)
        for i, prompt in enumerate(([1, 1, 9], [2, 2, 9], [3, 3, 9])):
            request = make_request(str(i), prompt)
            manager.allocate_slots(request, len(prompt))
            manager.free(request)
        events.append([(type(event).__name__, event.block_hashes) for event in manager.take_events()])
    assert events[0] == events[1] and any(name == "BlockRemoved" for name, _ in events[0])


@pytest.mark.parametrize("name", ["fifo", "batch"])
def test_a_hundred_thousand_blocks(name):
    driver = Driver(name, num_blocks=100_000)
    driver.wait([7] * 200 + [9])
    for _ in range(300):  # the same prefix again and again: entries that no longer hold must not pile up
        driver.start([7] * 200 + [9])
        driver.finish(0)
    queue = driver.pool.free_block_queue
    assert len(getattr(queue, "_heap", ())) <= 2 * 100 + 64 + 1  # the native heap has no such entries
    assert len({block.block_id for block in queue.popleft_n(99_999)}) == 99_999
    with pytest.raises(ValueError, match="No free blocks"):
        queue.popleft()


def test_a_block_that_is_not_free_cannot_be_removed():
    driver = Driver("batch")
    block = driver.pool.free_block_queue.popleft()
    with pytest.raises(RuntimeError, match="invalid block"):
        driver.pool.free_block_queue.remove(block)
    driver.pool.free_block_queue.append(block)
    assert list(driver.pool.free_block_queue.iter_blocks_after(None))[-1] is block


@pytest.mark.parametrize("name", ["fifo", "batch"])
def test_a_free_block_cannot_be_freed_again(name, parts):
    if parts == "reference":
        pytest.skip("as vLLM's own list, which it extends, the reference does not look")
    queue = Driver(name).pool.free_block_queue
    free = queue.get_all_free_blocks()[:1]
    for put in (queue.append_n, queue.prepend_n):
        with pytest.raises(RuntimeError, match="invalid block"):
            put(free)


def test_a_pool_with_our_queue_is_garbage_when_nobody_holds_it():
    pool = Driver("batch").pool
    block = weakref.ref(pool)
    del pool
    gc.collect()
    assert block() is None

"""The scheduler on vLLM's own objects, the model left out: order, hits, preemption, settings."""

import random

import pytest
import torch
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.request import RequestStatus
from vllm_objects import BLOCK_SIZE, Run, check_pool, make_request, make_scheduler

from vllm_relational.engine.vllm_engine import VllmEngine
from vllm_relational.kv.policy import sort_key
from vllm_relational.kv.simulate import PolicyCache, block_paths
from vllm_relational.records import RelationalError
from vllm_relational.vllm_ext.scheduler.free_queue import BatchFreeQueue, FifoFreeQueue, NativeFreeQueue
from vllm_relational.vllm_ext.scheduler.scheduler import RelationalScheduler, SyncRelationalScheduler

TAIL = 9
prompts = st.lists(
    st.lists(st.sampled_from([1, 2]), max_size=5).map(
        lambda cells: [t for c in cells for t in [c] * BLOCK_SIZE] + [TAIL]
    ),
    max_size=14,
)
ORDERS = ("arrival", "prefix-tree")
EVICTIONS = ("lru", "fifo", "batch")


def requests_of(prompts, max_tokens=1):
    return [make_request(f"r{i}", tokens, max_tokens) for i, tokens in enumerate(prompts)]


def simulated(policy, prompts, num_blocks):
    """Hit tokens; vLLM sets one block aside, and the partly filled last block takes another."""
    paths = block_paths(prompts, BLOCK_SIZE, num_blocks - 2)
    cache = PolicyCache(sort_key(policy), paths, num_blocks - 2)
    return [cache.request(number) * BLOCK_SIZE for number in range(len(paths))]


@pytest.mark.parametrize("cls", [RelationalScheduler, SyncRelationalScheduler])
@pytest.mark.parametrize("eviction", ["lru", "batch"])
@settings(max_examples=examples(60), deadline=None)
@given(prompts=prompts, num_blocks=st.integers(8, 14))
def test_hits_are_those_of_the_simulator_when_requests_run_one_by_one(cls, eviction, prompts, num_blocks):
    relational = {"eviction": eviction, "order": "arrival"}
    run = Run(make_scheduler(cls, num_blocks, relational, max_num_seqs=1), requests_of(prompts))
    assert [run.hits[f"r{i}"] for i in range(len(prompts))] == simulated(eviction, prompts, num_blocks)


@pytest.mark.parametrize("eviction", ["lru", "batch"])
@settings(max_examples=examples(40), deadline=None)
@given(prompts=prompts, num_blocks=st.integers(8, 14))
def test_hits_are_those_of_the_simulator_in_prefix_order_too(eviction, prompts, num_blocks):
    """For batch where no prompt returns, because the simulator knows the order and the index only who waits."""
    relational = {"eviction": eviction, "deep_queue": 1}
    run = Run(make_scheduler(RelationalScheduler, num_blocks, relational, max_num_seqs=1), requests_of(prompts))
    ordered = [prompts[int(name[1:])] for name in run.started]
    expected = simulated(eviction, ordered, num_blocks)
    found = [run.hits[name] for name in run.started]
    assert found == expected if eviction == "lru" else sum(found) <= sum(expected)


def mixed_workload(seed, num_requests=60):
    """Shared prefixes, prompts that come twice, whole blocks and not, answers long enough for preemption."""
    rng = random.Random(seed)
    prefixes = [[rng.randrange(10, 99) for _ in range(rng.randrange(2, 14))] for _ in range(8)]
    tails = [[rng.randrange(10, 99) for _ in range(rng.randrange(0, 7))] + [TAIL] for _ in range(12)]
    return [
        make_request(f"r{i}", rng.choice(prefixes) + rng.choice(tails), rng.randrange(1, 12), arrival=i)
        for i in range(num_requests)
    ]


@pytest.mark.parametrize("async_scheduling", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_every_request_is_answered_and_no_block_lost_under_preemption(eviction, order, async_scheduling):
    relational = {"eviction": eviction, "order": order, "deep_queue": 8, "max_age_s": 1000}
    scheduler = make_scheduler(
        RelationalScheduler, 28, relational, max_num_seqs=6, max_batched_tokens=16, async_scheduling=async_scheduling
    )
    manager = scheduler.kv_cache_manager
    preempted = set()

    def check():
        held = {b.block_id: b for name in scheduler.requests for b in manager.get_blocks(name).blocks[0]}
        check_pool(manager.block_pool, held.values())
        preempted.update(name for name, request in scheduler.requests.items() if request.num_preemptions)

    run = Run(scheduler, mixed_workload(1), check, in_flight=2 if async_scheduling else 1)
    assert sorted(run.finished) == sorted(f"r{i}" for i in range(60))
    assert preempted
    assert manager.block_pool.get_num_free_blocks() == 27
    assert scheduler._future is None or len(scheduler._future) == 0


def test_a_random_order_with_a_small_cache_is_mended_by_the_queue_and_partly_by_the_eviction():
    rng = random.Random(0)
    prompts = [[p] * 20 + [100 + i, TAIL] for i, p in enumerate(rng.sample(list(range(10, 40)) * 10, 300))]
    hits = {
        (order, eviction): sum(
            Run(
                make_scheduler(RelationalScheduler, 60, {"order": order, "eviction": eviction}, max_num_seqs=2),
                requests_of(prompts),
            ).hits.values()
        )
        for order in ORDERS
        for eviction in EVICTIONS
    }
    most = 30 * 9 * 20
    assert hits["prefix-tree", "lru"] == hits["prefix-tree", "batch"] == most
    assert hits["arrival", "lru"] < hits["arrival", "batch"] < most


class Filtering(Run):
    """Sends a second question about each document as soon as the first is answered."""

    def receive(self, outputs):
        super().receive(outputs)
        for output in outputs[0].outputs if 0 in outputs else ():
            name = output.request_id
            if output.finish_reason is not None and not name.endswith("again"):
                tokens = self.prompts[name]
                self.scheduler.add_request(make_request(f"{name} again", [*tokens[:-1], TAIL + 1]))

    def __init__(self, scheduler, requests):
        self.prompts = {request.request_id: list(request.prompt_token_ids) for request in requests}
        super().__init__(scheduler, requests)


@pytest.mark.parametrize("order, most", [("arrival", 0), ("prefix-tree", 100 * 2 * BLOCK_SIZE)])
def test_a_question_about_what_was_just_computed_does_not_wait_behind_all_others(order, most):
    documents = [[i, i, 300 + i, 300 + i, TAIL] for i in range(10, 110)]
    scheduler = make_scheduler(RelationalScheduler, 20, {"order": order, "deep_queue": 4}, max_num_seqs=2)
    run = Filtering(scheduler, requests_of(documents))
    assert sum(run.hits.values()) >= 0.9 * most if most else not any(run.hits.values())


def test_requests_of_one_step_share_blocks_in_stock_vllm():
    """Why there is no warm-up of one leader a prefix: followers find the leader's blocks in the same step."""
    stock = Run(
        make_scheduler(AsyncScheduler, 99, max_num_seqs=8), requests_of([[1] * 20 + [i, TAIL] for i in range(8)])
    )
    assert list(stock.hits.values()) == [0] + [20] * 7


def test_a_whole_prompt_that_returns_leaves_no_block_behind_as_needed():
    """vLLM computes its last block again, and the cached one is not needed any more."""
    scheduler = make_scheduler(RelationalScheduler, 12, {"eviction": "batch", "order": "arrival"}, max_num_seqs=1)
    Run(scheduler, requests_of([[p] * 4 for p in (1, 2, 1, 2, 3, 4)]))
    assert scheduler._future.num_blocks == 0
    queue = scheduler.free_queue
    queue.popleft_n(queue.num_free_blocks)
    assert queue.evictions["future_use"] == 0


def test_reset_in_the_middle_starts_cold_and_loses_nobody():
    scheduler = make_scheduler(RelationalScheduler, 40, {"eviction": "batch", "deep_queue": 4}, max_num_seqs=4)
    run = Run(scheduler, [])
    for request in requests_of([[1] * 10 + [i, TAIL] for i in range(20)], max_tokens=3):
        scheduler.add_request(request)
    run.step()
    assert scheduler.reset_prefix_cache(reset_running_requests=True)
    while scheduler.has_unfinished_requests():
        run.step()
    assert len(run.finished) == 20


def test_aborted_requests_are_forgotten():
    scheduler = make_scheduler(RelationalScheduler, 40, {"eviction": "batch", "deep_queue": 4}, max_num_seqs=2)
    for request in requests_of([[1] * 10 + [i, TAIL] for i in range(20)], max_tokens=3):
        scheduler.add_request(request)
    run = Run(scheduler, [], lambda: None)
    scheduler.add_request(make_request("last", [1, 2, 3]))
    run.step()
    scheduler.finish_requests([f"r{i}" for i in range(20)], RequestStatus.FINISHED_ABORTED)
    while scheduler.has_unfinished_requests():
        run.step()
    assert run.finished[-1] == "last" and len(scheduler._future) == 0


def test_the_class_follows_vllms_choice_of_scheduling():
    kinds = {a: type(make_scheduler(RelationalScheduler, 9, async_scheduling=a)) for a in (True, False)}
    assert kinds == {True: RelationalScheduler, False: SyncRelationalScheduler}
    assert issubclass(RelationalScheduler, AsyncScheduler) and not issubclass(SyncRelationalScheduler, AsyncScheduler)


def test_what_the_settings_do_not_ask_for_stays_stock():
    stock = make_scheduler(Scheduler, 9)
    ours = make_scheduler(RelationalScheduler, 9, {"eviction": "lru", "order": "arrival"})
    assert type(ours.waiting) is type(stock.waiting)
    assert type(ours.kv_cache_manager.block_pool.free_block_queue) is type(
        stock.kv_cache_manager.block_pool.free_block_queue
    )


@pytest.mark.parametrize("eviction, kind", [("batch", BatchFreeQueue), ("fifo", FifoFreeQueue)])
def test_eviction_needs_full_attention_and_a_prefix_cache(eviction, kind, parts):
    kind = NativeFreeQueue if parts == "native" else kind

    def queue_of(**kwargs):
        scheduler = make_scheduler(RelationalScheduler, 9, {"eviction": eviction}, **kwargs)
        return type(scheduler.kv_cache_manager.block_pool.free_block_queue)

    shape = {"block_size": BLOCK_SIZE, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    hybrid = [FullAttentionSpec(**shape), SlidingWindowSpec(**shape, sliding_window=4)]
    assert queue_of() is kind
    assert queue_of(caching=False) is not kind
    assert queue_of(specs=hybrid) is not kind


@pytest.mark.parametrize(
    "relational, message",
    [
        ({"evict": "lru", "ordre": 1}, "no setting 'evict', 'ordre': there are eviction, order, deep_queue, max_age_s"),
        ({"eviction": "mru"}, "eviction is 'mru': it must be one of .*lru.*batch"),
        ({"order": "dfs"}, "order is 'dfs': it must be one of arrival, prefix-tree"),
        ({"deep_queue": 0}, "deep_queue is 0"),
        ({"deep_queue": "9"}, "deep_queue is '9'"),
        ({"max_age_s": -1}, "max_age_s is -1"),
        ("lru", "must be an object"),
    ],
)
def test_wrong_settings_are_named(relational, message):
    with pytest.raises(RelationalError, match=message):
        make_scheduler(RelationalScheduler, 9, relational)


@pytest.mark.parametrize("order", ["arrival", "prefix-tree"])
def test_priorities_are_left_to_vllm(order):
    assert make_scheduler(RelationalScheduler, 9, {"order": order}, policy="priority").queue is None
    with pytest.raises(RelationalError, match=r"priority|fcfs"):
        make_scheduler(RelationalScheduler, 9, {"order": order, "eviction": "batch"}, policy="priority")


def test_another_vllm_runs_its_stock_scheduler_if_allowed(monkeypatch):
    monkeypatch.setattr("vllm.__version__", "0.33.0")
    with pytest.raises(RelationalError, match=r"supports vLLM 0\.32\.0, and vLLM 0\.33\.0 is installed"):
        make_scheduler(RelationalScheduler, 9, {"eviction": "batch"})
    monkeypatch.setenv("VLLM_RELATIONAL_ALLOW_VLLM", "0.33.0")
    scheduler = make_scheduler(RelationalScheduler, 9, {"eviction": "batch"})
    assert scheduler.queue is None and scheduler.free_queue is None


def test_the_offline_engine_names_wrong_settings_before_it_starts(monkeypatch):
    engine = VllmEngine("no such model", additional_config={"relational": {"evict": "lru"}})
    monkeypatch.setattr(engine, "_prepare_environment", lambda: None)
    with pytest.raises(RelationalError, match="no setting 'evict'"):
        engine.start()

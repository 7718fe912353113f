"""Token-exact reuse as one more part of our scheduler, beside its queue and its eviction."""

from __future__ import annotations

import pytest
from vllm_objects import Run, make_request, make_scheduler

from vllm_relational.records import RelationalError
from vllm_relational.vllm_ext.scheduler import metrics
from vllm_relational.vllm_ext.scheduler.scheduler import RelationalScheduler
from vllm_relational.vllm_ext.settings import SchedulerSettings

BLOCK = 8
STEM = list(range(10, 30))  # two blocks of 8 and half of a third


def run(relational, num_blocks=100, **options):
    scheduler = make_scheduler(RelationalScheduler, num_blocks, relational, block_size=BLOCK, max_num_seqs=1, **options)
    requests = [make_request(f"r{i}", [*STEM, 40 + i, 50, 51, 52, 53], block_size=BLOCK) for i in range(4)]
    return scheduler, Run(scheduler, requests)


@pytest.mark.parametrize("async_scheduling", [True, False])
@pytest.mark.parametrize("eviction", ["lru", "fifo", "batch"])
@pytest.mark.parametrize("order", ["arrival", "prefix-tree"])
def test_requests_start_inside_a_block(order, eviction, async_scheduling):
    relational = {"order": order, "eviction": eviction, "deep_queue": 1, "token_exact": True}
    scheduler, done = run(relational, async_scheduling=async_scheduling)
    assert sorted(done.finished) == ["r0", "r1", "r2", "r3"]
    assert [done.hits[name] for name in done.started] == [0, 20, 20, 20]
    assert scheduler.counts()[metrics.TOKENS_SAVED] == 3 * 4


def test_off_by_default():
    scheduler, done = run({})
    assert scheduler.partial_reuse is None
    assert [done.hits[name] for name in done.started] == [0, 16, 16, 16]


def test_anything_but_true_and_false_is_refused():
    with pytest.raises(RelationalError, match="token_exact is 1: it must be true or false"):
        SchedulerSettings(token_exact=1)

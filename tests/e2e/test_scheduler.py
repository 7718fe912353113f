"""Real vLLM, tiny model, a cache so small that requests are preempted: no setting changes an answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_relational.kv.policy import sort_key
from vllm_relational.kv.simulate import PolicyCache, block_paths

NUM_BLOCKS, BLOCK_SIZE = 26, 32
CHILD = Path(__file__).with_name("scheduler_policies.py")


def run_child(model, *arguments, in_process):
    """In a process of its own: an engine binds the threads of the process that it lives in."""
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_process else "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    command = [sys.executable, str(CHILD), str(model), str(NUM_BLOCKS), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("RUN ")], done.stderr


@pytest.fixture(scope="module")
def runs(tiny_model):
    return run_child(tiny_model, in_process=True)[0]


def test_an_engine_in_a_process_of_its_own_answers_as_stock(runs, tiny_model):
    (run,), log = run_child(tiny_model, "once", in_process=False)
    (stock,) = (run for run in runs if run["settings"] is None)
    assert "RelationalScheduler: SchedulerSettings(eviction='batch'" in log
    assert run["tokens"] == stock["tokens"]


def test_every_policy_and_order_answers_as_stock_token_for_token(runs):
    crowded = [run for run in runs if not run["one_by_one"]]
    (stock,) = (run for run in crowded if run["settings"] is None)
    assert len(crowded) == 8 and stock["preemptions"] > 0
    for run in crowded:
        assert run["tokens"] == stock["tokens"], run["settings"]
        if run["settings"] is not None:
            assert run["scheduler"].endswith("RelationalScheduler")


def test_parts_were_at_work(runs):
    counts = {
        (run["settings"]["eviction"], run["settings"]["order"]): run["counts"]
        for run in runs
        if run["settings"] is not None and not run["one_by_one"]
    }
    assert counts["batch", "arrival"]["no_future_use"] > 0
    assert all(count["reordered"] > 0 for (_, order), count in counts.items() if order == "prefix-tree")
    assert all(count["reordered"] == 0 for (_, order), count in counts.items() if order == "arrival")


@pytest.mark.parametrize("policy", ["lru", "batch"])
def test_hits_are_those_of_the_simulator_when_requests_run_one_by_one(runs, policy):
    sys.path.insert(0, str(CHILD.parent))
    try:
        from scheduler_policies import workload
    finally:
        sys.path.pop(0)
    prompts, _ = workload()
    (run,) = (run for run in runs if run["one_by_one"] and run["settings"]["eviction"] == policy)
    capacity = NUM_BLOCKS - 2  # vLLM sets a block aside, and the last, partly filled block of the request takes one
    paths = block_paths(prompts, BLOCK_SIZE, capacity)
    cache = PolicyCache(sort_key(policy), paths, capacity)
    assert run["hits"] == [cache.request(number) * BLOCK_SIZE for number in range(len(prompts))]

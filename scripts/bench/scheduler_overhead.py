#!/usr/bin/env python3
"""Host time of vLLM's scheduler a request, stock and ours, with the model left out. No GPU.

    scheduler_overhead.py [--rows 5000] [--blocks 3000] [--repeat 7] [--variants stock,batch,...]

The workloads "shared" and "distinct" of kv_workloads.py (280 tokens a row), one output token, all waiting before the
first step. Counted: ``add_request``, ``schedule`` and ``update_from_output``, as processor time of the thread; not
counted: making the request with its hashes, which is the same for all. All variants run in every round, in random
order. Reported: the median of the rounds, and the median of what a variant took more than stock in the same round.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]

VARIANTS = {
    "stock": None,
    "stock sorted": None,
    "nothing on": {"order": "arrival", "eviction": "lru"},
    "fifo": {"order": "arrival", "eviction": "fifo"},
    "batch": {"order": "arrival", "eviction": "batch"},
    "prefix-tree": {"order": "prefix-tree", "eviction": "lru"},
    "prefix-tree + batch": {"order": "prefix-tree", "eviction": "batch"},
    "token_exact": {"order": "arrival", "eviction": "lru", "token_exact": True},
    "all three": {"order": "prefix-tree", "eviction": "batch", "token_exact": True},
}
PARTS = ("add", "schedule", "update")


def measure(settings: dict | None, prompts: list[list[int]], num_blocks: int, sort: bool) -> tuple[list[float], float]:
    """Microseconds a request by part, and the hit rate."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm_objects import make_request, make_scheduler, model_output

    from vllm_relational.vllm_ext.scheduler.scheduler import RelationalScheduler

    cls = AsyncScheduler if settings is None else RelationalScheduler
    scheduler = make_scheduler(cls, num_blocks, settings, max_num_seqs=256, block_size=16)
    requests = [make_request(str(i), p, block_size=16) for i, p in enumerate(sorted(prompts) if sort else prompts)]
    gc.collect()
    gc.freeze()  # as vLLM's engine does after its start: what was there before is not gone through again
    clock, hits = time.thread_time, 0
    start = clock()
    for request in requests:
        scheduler.add_request(request)
    spent = [clock() - start, 0.0, 0.0]
    while scheduler.has_unfinished_requests():
        start = clock()
        scheduled = scheduler.schedule()
        spent[1] += clock() - start
        hits += sum(new.num_computed_tokens for new in scheduled.scheduled_new_reqs)
        output = model_output(scheduled, scheduler.requests)
        start = clock()
        scheduler.update_from_output(scheduled, output)
        spent[2] += clock() - start
    return [part / len(prompts) * 1e6 for part in spent], hits / sum(map(len, prompts))


def report(rounds: list[dict[str, list[float]]], rates: dict[str, float]) -> None:
    for name, rate in rates.items():
        total = statistics.median(sum(times[name]) for times in rounds)
        slower = [sum(times[name]) / sum(times["stock"]) - 1 for times in rounds]
        parts = ", ".join(
            f"{part} {statistics.median(times[name][i] for times in rounds):.1f}" for i, part in enumerate(PARTS)
        )
        spread = f"({min(slower):+.1%} to {max(slower):+.1%})"
        print(
            f"  {name:20} {total:7.1f} us a request  {statistics.median(slower):+6.1%} {spread:20} hit rate {rate:.3f}"
            f"  [{parts}]",
            flush=True,
        )


def main() -> None:
    from kv_workloads import make_workload

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--blocks", type=int, default=3000)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    args = parser.parse_args()
    names = list(dict.fromkeys(["stock", *args.variants.split(",")]))
    for workload in ("shared", "distinct"):
        prompts = make_workload(workload, args.rows).prompts
        rounds: list[dict[str, list[float]]] = []
        rates: dict[str, float] = {}
        for number in range(args.repeat):
            times = defaultdict(list)
            for name in random.Random(number).sample(names, len(names)):
                times[name], rates[name] = measure(VARIANTS[name], prompts, args.blocks, sort="sorted" in name)
            rounds.append(times)
        print(f"{workload}: {args.rows} rows, {args.blocks} blocks, {args.repeat} rounds")
        report(rounds, {name: rates[name] for name in names})


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Host time of vLLM's scheduler a request, stock and ours, with the model left out. No GPU.

    scheduler_overhead.py [--rows 5000] [--blocks 3000] [--repeat 3]

Rows of 250 shared and 30 own tokens, one output token, all waiting before the first step. Counted: ``add_request``,
``schedule`` and ``update_from_output``; not counted: making the request with its hashes, which is the same for all.
The best of the repeats is reported.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

VARIANTS = {
    "stock": None,
    "stock, rows sorted": None,
    "ours, nothing on": {"order": "arrival", "eviction": "lru"},
    "fifo": {"order": "arrival", "eviction": "fifo"},
    "batch": {"order": "arrival", "eviction": "batch"},
    "prefix-tree": {"order": "prefix-tree", "eviction": "lru"},
    "prefix-tree + batch": {"order": "prefix-tree", "eviction": "batch"},
}


def rows(num_rows: int, distinct: bool) -> list[list[int]]:
    rng = random.Random(0)
    num_prefixes = num_rows if distinct else max(1, num_rows // 10)
    prefixes = [[rng.randrange(1000) for _ in range(250)] for _ in range(num_prefixes)]
    prompts = [prefixes[i % num_prefixes] + [rng.randrange(1000) for _ in range(30)] for i in range(num_rows)]
    rng.shuffle(prompts)
    return prompts


def measure(settings: dict | None, prompts: list[list[int]], num_blocks: int, sort: bool) -> tuple[float, float]:
    """Microseconds a request, and the hit rate."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm_objects import make_request, make_scheduler, model_output

    from vllm_relational.vllm_ext.scheduler import RelationalScheduler

    cls = AsyncScheduler if settings is None else RelationalScheduler
    scheduler = make_scheduler(cls, num_blocks, settings, max_num_seqs=256, block_size=16)
    if sort:
        prompts = sorted(prompts)
    requests = [make_request(str(i), prompt, block_size=16) for i, prompt in enumerate(prompts)]
    gc.collect()
    gc.freeze()  # as vLLM's engine does after its start: what was there before is not gone through again
    hits, spent = 0, time.perf_counter()
    for request in requests:
        scheduler.add_request(request)
    spent = time.perf_counter() - spent
    while scheduler.has_unfinished_requests():
        begin = time.perf_counter()
        scheduled = scheduler.schedule()
        spent += time.perf_counter() - begin
        hits += sum(new.num_computed_tokens for new in scheduled.scheduled_new_reqs)
        output = model_output(scheduled, scheduler.requests)
        begin = time.perf_counter()
        scheduler.update_from_output(scheduled, output)
        spent += time.perf_counter() - begin
    return spent / len(prompts) * 1e6, hits / sum(map(len, prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--blocks", type=int, default=3000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    for distinct in (False, True):
        prompts = rows(args.rows, distinct)
        print(f"{'all rows distinct' if distinct else '10 rows a prefix, random order'}, {args.blocks} blocks")
        best: dict[str, tuple[float, float]] = {}
        for _ in range(args.repeat):  # interleaved: a busy machine hits all alike
            for name, settings in VARIANTS.items():
                best[name] = min(
                    best.get(name, (1e9, 0.0)), measure(settings, prompts, args.blocks, sort="sorted" in name)
                )
        for name, (microseconds, rate) in best.items():
            slower = microseconds / best["stock"][0] - 1
            print(f"  {name:22} {microseconds:7.1f} us a request  {slower:+6.1%}  hit rate {rate:.3f}", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Hit rates of every eviction and order on vLLM's own scheduler and block pool, with the model left out. No GPU.

    scheduler_hits.py [--rows 5000] [--blocks 3000] [--max-num-seqs 256]

Workloads are those of kv.py and one more: two queries over the same rows, whose requests arrive in turn, the second
query 1,000 rows behind. ``waiting`` is how many requests are in the engine at a time: all, or a refilled window.
"""

from __future__ import annotations

import argparse
import random
import sys
from itertools import product
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]

VARIANTS = list(product(("lru", "fifo", "batch"), ("arrival", "prefix-tree")))
LAG = 1000


def two_queries(num_rows: int) -> list[list[int]]:
    rng = random.Random(1)
    documents = [[rng.randrange(100, 1100) for _ in range(250)] for _ in range(num_rows // 2)]
    first, second = ([rng.randrange(100, 1100) for _ in range(30)] for _ in range(2))
    prompts = []
    for i in range(len(documents) + LAG):
        prompts += [documents[i] + first] if i < len(documents) else []
        prompts += [documents[i - LAG] + second] if i >= LAG else []
    return prompts


def run(
    prompts: list[list[int]], eviction: str, order: str, window: int, args: argparse.Namespace
) -> tuple[float, list[int]]:
    """The hit rate, and the requests in the order in which they started."""
    from vllm_objects import make_request, make_scheduler, model_output

    from vllm_relational.vllm_ext.scheduler import RelationalScheduler

    settings = {"eviction": eviction, "order": order}
    scheduler = make_scheduler(
        RelationalScheduler, args.blocks, settings, max_num_seqs=args.max_num_seqs, block_size=16
    )
    requests = (make_request(str(i), prompt, block_size=16) for i, prompt in enumerate(prompts))
    hits, in_engine, left = 0, 0, len(prompts)
    started: list[int] = []
    while left:
        while in_engine < window and (request := next(requests, None)) is not None:
            scheduler.add_request(request)
            in_engine += 1
        scheduled = scheduler.schedule()
        hits += sum(new.num_computed_tokens for new in scheduled.scheduled_new_reqs)
        started += [int(new.req_id) for new in scheduled.scheduled_new_reqs]
        before = len(scheduler.requests)
        scheduler.update_from_output(scheduled, model_output(scheduled, scheduler.requests))
        finished = before - len(scheduler.requests)
        in_engine, left = in_engine - finished, left - finished
    return hits / sum(map(len, prompts)), started


def main() -> None:
    from kv import make_prompts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--blocks", type=int, default=3000)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    args = parser.parse_args()
    workloads = {name: make_prompts(name, args.rows) for name in ("shared", "twice")}
    workloads["two queries"] = two_queries(args.rows)
    print(f"{'workload':12} {'waiting':>8} " + " ".join(f"{f'{e}+{o}':>17}" for e, o in VARIANTS))
    for (name, prompts), window in product(workloads.items(), (args.rows, 3 * args.max_num_seqs)):
        rates = [run(prompts, eviction, order, window, args)[0] for eviction, order in VARIANTS]
        print(f"{name:12} {window:8} " + " ".join(f"{rate:17.3f}" for rate in rates), flush=True)


if __name__ == "__main__":
    main()

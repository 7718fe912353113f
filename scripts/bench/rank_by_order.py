#!/usr/bin/env python3
"""Would ``batch`` find more if it knew the order in which a prefix-tree queue will really run? No GPU.

    rank_by_order.py [--rows 5000] [--blocks 3000] [--held 28]

``batch`` ranks blocks by the arrival of the next waiting request that holds them. Each workload runs through vLLM's
scheduler with ``prefix-tree`` and ``batch`` at several depths of the queue; the order in which its requests started is
then replayed one by one, with the next use among those that wait taken by arrival, and by the real order. ``held``: so
many requests keep their blocks, as running ones do. Last, Belady's bound on that order, which knows all arrivals too.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from pathlib import Path

import numpy as np

from vllm_relational import native
from vllm_relational.kv.simulate import block_paths
from vllm_relational.records import Plan, PromptSegments, TokenSegments

sys.path[:0] = [str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]

BLOCK_SIZE = 16
SET_ASIDE = 2  # vLLM's null block, and one block that is partly filled
NEVER = 1e9
Prompts = list[list[int]]


class Ranked:
    """A cache of blocks that lets the one go whose next use among the waiting requests has the greatest rank."""

    def __init__(self, prompts: Prompts, rank: list[int], capacity: int) -> None:
        self.paths = block_paths(prompts, BLOCK_SIZE, 0)
        self.rank, self.capacity = rank, capacity
        size = 1 + max(max(path, default=0) for path in self.paths)
        self.users: list[set[int]] = [set() for _ in range(size)]
        self.next_use, self.last_use, self.depth = np.full(size, NEVER), np.zeros(size), np.zeros(size)
        self.cached, self.held = np.zeros(size, bool), np.zeros(size, int)
        for path in self.paths:
            self.depth[path] = range(len(path))

    def arrive(self, request: int) -> None:
        for block in self.paths[request]:
            self.users[block].add(request)
            self.next_use[block] = min(self.next_use[block], self.rank[request])

    def start(self, request: int, time: int) -> int:
        """Returns how many leading blocks were cached."""
        path = self.paths[request]
        for block in path:
            self.users[block].discard(request)
            self.next_use[block] = min((self.rank[user] for user in self.users[block]), default=NEVER)
        hits = next((i for i, block in enumerate(path) if not self.cached[block]), len(path))
        self.cached[path], self.last_use[path] = True, time
        self.held[path] += 1  # a path has no block twice
        return hits

    def finish(self, request: int) -> None:
        self.held[self.paths[request]] -= 1
        while self.cached.sum() > self.capacity:
            free = np.flatnonzero(self.cached & (self.held == 0))
            worth = np.lexsort((-self.depth[free], self.last_use[free], -self.next_use[free]))
            self.cached[free[worth[0]]] = False


def replay(prompts: Prompts, started: list[int], rank: list[int], window: int, args: argparse.Namespace) -> float:
    cache, running, arrived, hits = Ranked(prompts, rank, args.blocks - SET_ASIDE), deque[int](), 0, 0
    for time, request in enumerate(started):
        while arrived < min(len(prompts), time - len(running) + window):
            cache.arrive(arrived)
            arrived += 1
        usable = (len(prompts[request]) - 1) // BLOCK_SIZE
        hits += min(cache.start(request, time), usable) * BLOCK_SIZE
        running.append(request)
        if len(running) > args.held:
            cache.finish(running.popleft())
    return hits / sum(map(len, prompts))


def belady(prompts: Prompts, started: list[int], args: argparse.Namespace) -> float:
    """Every prompt as the one cell of a row."""
    tokens = np.array([token for prompt in prompts for token in prompt], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, prompts)], dtype=np.int64)
    nothing = np.zeros(0, np.int32)
    segments = PromptSegments(nothing, (TokenSegments(tokens, offsets),), nothing)
    plan = Plan("as started", np.array(started), np.zeros((len(started), 1), np.int32))
    codes = np.arange(len(prompts), dtype=np.int32)[None]
    hits, lengths = native.simulate_prefix_cache(segments, codes, plan, BLOCK_SIZE, args.blocks - SET_ASIDE, "belady")
    return float(hits.sum() / lengths.sum())


def main() -> None:
    from kv import make_prompts
    from scheduler_hits import run, two_queries

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--blocks", type=int, default=3000)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--held", type=int, default=28, help="about as many as the tokens of one step")
    args = parser.parse_args()
    print(f"{'workload':12} {'waiting':>8} {'scheduler':>10} {'by arrival':>11} {'by order':>9} {'belady':>7}")
    for name, prompts in {"shared": make_prompts("shared", args.rows), "two queries": two_queries(args.rows)}.items():
        arrivals = list(range(len(prompts)))
        for window in (2 * args.max_num_seqs, 3 * args.max_num_seqs, 6 * args.max_num_seqs):
            rate, started = run(prompts, "batch", "prefix-tree", window, args)
            order = dict(zip(started, arrivals, strict=True))
            rates = [replay(prompts, started, rank, window, args) for rank in (arrivals, [order[i] for i in arrivals])]
            bound = belady(prompts, started, args)
            print(f"{name:12} {window:8} {rate:10.3f} {rates[0]:11.3f} {rates[1]:9.3f} {bound:7.3f}", flush=True)


if __name__ == "__main__":
    main()

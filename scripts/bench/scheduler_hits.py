#!/usr/bin/env python3
"""Hit rates of every eviction and order on vLLM's own scheduler and block pool, with the model left out. No GPU.

    scheduler_hits.py [--rows 5000] [--blocks 3000] [--max-num-seqs 1024] [--max-num-batched-tokens 8192]
                      [--in-flight 2] [--workloads nested,nested@300,nested/768]

Workloads are those of ``kv_workloads.py``. Time passes as on one H100 with the shape of Llama-3-8B: a step takes 8 ms
and 22 us a token. ``in-flight`` steps are scheduled before the answers of the first are there, as in vLLM with
asynchronous scheduling. ``bound`` is the hit rate of Belady's eviction on the order in which the requests of ``batch``
and ``arrival`` ran, one after the other in a cache of the same size: what no eviction can beat in that order.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from kv_workloads import Prompts, Workload, make_workload

from vllm_relational import native
from vllm_relational.records import Plan, PromptSegments, TokenSegments

sys.path[:0] = [str(Path(__file__).parents[2] / "tests")]

VARIANTS = list(product(("lru", "fifo", "batch"), ("arrival", "prefix-tree")))
WORKLOADS = "nested,nested/768,nested@300,nested@600,shared,shared/768,twice,queries,queries@140,filter,filter/768"
STEP_SECONDS, TOKEN_SECONDS = 8e-3, 22e-6
BLOCK_SIZE = 16


class Replayed:
    """One workload through one scheduler. order: prompts as they started; hits: their tokens from the cache."""

    def __init__(self, workload: Workload, scheduler: Any, in_flight: int) -> None:
        self._workload, self._scheduler, self._in_flight = workload, scheduler, in_flight
        self._pending: deque[tuple[Any, Any]] = deque()
        self._unsent: Iterator[tuple[int, list[int]]] = enumerate(workload.prompts)
        self._next = next(self._unsent, None)
        self._now, self._in_engine, self._left = 0.0, 0, len(workload)
        self._prompts: dict[str, list[int]] = {}
        self.order: Prompts = []
        self.hits = 0
        while self._left:
            self._send()
            self._step()

    def _send(self) -> None:
        rate, window = self._workload.rate, self._workload.window
        while self._next is not None and (window is None or self._in_engine < window):
            number, prompt = self._next
            if rate is not None and number / rate > self._now:
                if self._in_engine:
                    return
                self._now = number / rate  # idle until then
            self._add(str(number), prompt)
            self._next = next(self._unsent, None)

    def _add(self, name: str, prompt: list[int]) -> None:
        from vllm_objects import make_request

        self._prompts[name] = prompt
        self._scheduler.add_request(make_request(name, prompt, arrival=self._now, block_size=BLOCK_SIZE))
        self._in_engine += 1

    def _step(self) -> None:
        from vllm_objects import model_output

        scheduled = self._scheduler.schedule()
        for new in scheduled.scheduled_new_reqs:
            self.hits += new.num_computed_tokens
            self.order.append(self._prompts[new.req_id])
        self._now += STEP_SECONDS + TOKEN_SECONDS * scheduled.total_num_scheduled_tokens
        self._pending.append((scheduled, model_output(scheduled, self._scheduler.requests)))
        if len(self._pending) < self._in_flight and scheduled.num_scheduled_tokens:
            return
        outputs = self._scheduler.update_from_output(*self._pending.popleft())
        for output in outputs[0].outputs if 0 in outputs else ():
            if output.finish_reason is not None:
                self._finish(output.request_id)

    def _finish(self, name: str) -> None:
        self._in_engine, self._left = self._in_engine - 1, self._left - 1
        then = self._workload.then.get(int(name)) if name.isdigit() else None
        if then is not None:
            self._add(f"{name}+", then)


def hit_rate(workload: Workload, eviction: str, order: str, args: argparse.Namespace) -> tuple[float, Prompts]:
    """The hit rate, and the prompts in the order in which they started."""
    from vllm_objects import make_scheduler

    from vllm_relational.vllm_ext.scheduler.scheduler import RelationalScheduler

    settings = {"eviction": eviction, "order": order}
    scheduler = make_scheduler(
        RelationalScheduler,
        args.blocks,
        settings,
        max_num_seqs=args.max_num_seqs,
        max_batched_tokens=args.max_num_batched_tokens,
        block_size=BLOCK_SIZE,
    )
    replayed = Replayed(workload, scheduler, args.in_flight)
    return replayed.hits / workload.prompt_tokens, replayed.order


def belady(prompts: Prompts, num_blocks: int) -> float:
    """Hit rate of Belady's eviction on these prompts in this order; one block is vLLM's null block."""
    tokens = np.array([token for prompt in prompts for token in prompt], np.int32)
    cells = TokenSegments(tokens, np.cumsum([0, *map(len, prompts)]))
    none, rows = np.zeros(0, np.int32), np.arange(len(prompts))
    plan = Plan("as started", rows, np.zeros((len(prompts), 1), np.int32))
    segments, codes = PromptSegments(none, (cells,), none), rows[None].astype(np.int32)
    hits, lengths = native.simulate_prefix_cache(segments, codes, plan, BLOCK_SIZE, num_blocks - 1, "belady")
    return float(hits.sum() / lengths.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--blocks", type=int, default=3000)
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--in-flight", type=int, default=2)
    parser.add_argument("--workloads", default=WORKLOADS)
    args = parser.parse_args()
    print(f"{'workload':12} " + " ".join(f"{f'{e}+{o}':>17}" for e, o in VARIANTS) + f" {'bound':>6}")
    for name in args.workloads.split(","):
        workload = make_workload(name, args.rows)
        rates = {variant: hit_rate(workload, *variant, args) for variant in VARIANTS}
        bound = belady(rates["batch", "arrival"][1], args.blocks)
        print(f"{name:12} " + " ".join(f"{rate:17.3f}" for rate, _ in rates.values()) + f" {bound:6.3f}", flush=True)


if __name__ == "__main__":
    main()

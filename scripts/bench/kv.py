#!/usr/bin/env python3
"""Rows per second and hit rate of vLLM with a small KV cache: stock, and each part of our scheduler by itself.

    kv.py MODEL --csv kv.csv [--rows 5000] [--blocks 3000] [--variants stock,lru+tree]
                [--workloads nested,nested@300,distinct] [--engine-arg NAME=VALUE ...]
    kv.py MODEL --one VARIANT ...     one variant in this process (what the first form runs, one after the other)

MODEL is a folder with a config.json; weights are random (load_format=dummy). Prompts are random token ids, the answer
is one token; ``kv_workloads.py`` says what is sent, and when. Latency is counted from the time at which a request is
due to its answer.

First a check: greedy tokens of 200 rows, 8 a row, are compared with those of stock, which runs first. On a GPU sums
depend on what else is in the batch, so a few rows may differ by rounding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kv_workloads import Workload, make_workload
from lines import check_lines

from vllm_relational.cli.options import engine_arguments
from vllm_relational.compare.orders import append_csv
from vllm_relational.compare.provenance import code_version, machine

VARIANTS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "nothing on": {"eviction": "lru", "order": "arrival"},
    "fifo": {"eviction": "fifo", "order": "arrival"},
    "batch": {"eviction": "batch", "order": "arrival"},
    "prefix-tree": {"eviction": "lru", "order": "prefix-tree"},
    "prefix-tree+batch": {"eviction": "batch", "order": "prefix-tree"},
    "token-exact": {"eviction": "lru", "order": "arrival", "token_exact": True},
    "all": {"eviction": "batch", "order": "prefix-tree", "token_exact": True},
}
FIELDS = (
    "time", "commit", "machine", "model", "variant", "workload", "requests", "blocks", "batched_tokens",
    "rows_per_second", "hit_rate", "computed_tokens_a_row", "latency_p50", "latency_p99", "other_answers",
    "checked_rows",
)  # fmt: skip
SCHEDULER = "vllm_relational.vllm_ext.scheduler.RelationalScheduler"
CHECK_ROWS, CHECK_TOKENS = 200, 8


# ------------------------------------------------------------------------------------------------- one variant
def start_engine(args: argparse.Namespace) -> Any:
    from vllm import LLM

    settings = VARIANTS[args.one]
    ours = {"scheduler_cls": SCHEDULER, "additional_config": {"relational": settings}} if settings else {}
    arguments = {
        "load_format": "dummy",
        "num_gpu_blocks_override": args.blocks,
        "max_model_len": 2048,
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        **ours,
        **engine_arguments(args.engine_arg),
    }
    return LLM(args.model, **arguments)


class Served:
    """One workload, sent and answered. seconds: from the first step to the last answer; latencies: in seconds."""

    def __init__(self, llm: Any, workload: Workload, max_tokens: int = 1) -> None:
        from vllm import SamplingParams

        self._llm, self._workload = llm, workload
        self._params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        self._unsent = iter(enumerate(workload.prompts))
        self._next = next(self._unsent, None)
        self._sent: dict[str, tuple[int | None, float]] = {}  # request: number of its prompt, time due
        self._sent_before = int(llm.request_counter.counter)
        self.answers: dict[int, list[int]] = {}
        self.latencies: list[float] = []
        self.cached_tokens = 0
        assert llm.reset_prefix_cache()
        self.seconds = self._serve()

    def _serve(self) -> float:
        all_wait = self._workload.rate is None and self._workload.window is None
        self._begin = time.perf_counter()
        if all_wait:
            self._llm.sleep(level=0, mode="keep")
            self._send_due()
            self._begin = time.perf_counter()
            self._llm.wake_up(["scheduling"])
        while len(self.latencies) < len(self._workload):
            self._send_due()
            for output in self._llm.llm_engine.step() if len(self.latencies) < self._num_sent else ():
                if output.finished:
                    self._take(output)
        return time.perf_counter() - self._begin

    @property
    def _num_sent(self) -> int:
        return int(self._llm.request_counter.counter) - self._sent_before

    def _send_due(self) -> None:
        rate, window = self._workload.rate, self._workload.window
        while self._next is not None and (window is None or self._num_sent - len(self.latencies) < window):
            number, prompt = self._next
            due = number / rate if rate is not None else 0.0
            if due > time.perf_counter() - self._begin:
                return
            self._send(prompt, number, due)
            self._next = next(self._unsent, None)

    def _send(self, prompt: list[int], number: int | None, due: float) -> None:
        self._sent[str(self._llm.request_counter.counter)] = (number, due)
        self._llm.enqueue([{"prompt_token_ids": prompt}], self._params, use_tqdm=False)

    def _take(self, output: Any) -> None:
        number, due = self._sent.pop(output.request_id)
        now = time.perf_counter() - self._begin
        self.latencies.append(now - due)
        self.cached_tokens += output.num_cached_tokens or 0
        if number is None:
            return
        self.answers[number] = list(output.outputs[0].token_ids)
        if number in self._workload.then:
            self._send(self._workload.then[number], None, now)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    llm = start_engine(args)
    Served(llm, make_workload("distinct", CHECK_ROWS))  # warm-up: kernels, CUDA graphs
    answers = Served(llm, make_workload("nested", CHECK_ROWS), CHECK_TOKENS).answers
    lines = []
    for name in args.workloads.split(","):
        workload = make_workload(name, args.rows)
        served = Served(llm, workload)
        median, tail = statistics.median(served.latencies), statistics.quantiles(served.latencies, n=100)[98]
        lines.append({
            "workload": name, "requests": len(workload), "prompt_tokens": workload.prompt_tokens,
            "cached": served.cached_tokens, "seconds": served.seconds, "latency_p50": median, "latency_p99": tail,
        })  # fmt: skip
    batched_tokens = llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    return {"answers": answers, "lines": lines, "batched_tokens": batched_tokens}


# -------------------------------------------------------------------------------------------------- all of them
def run_variants(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line a variant and workload; each variant in a process of its own, stock first."""
    stock_answers: dict[str, list[int]] = {}
    for name in dict.fromkeys(["stock", *args.variants.split(",")]):
        with tempfile.NamedTemporaryFile(suffix=".json") as result:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--result", result.name]
            subprocess.run(command, check=True)
            measured = json.loads(Path(result.name).read_text())
        stock_answers = stock_answers or measured["answers"]
        wrong = sum(measured["answers"][number] != expected for number, expected in stock_answers.items())
        for line in measured["lines"]:
            yield {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": code_version(),
                "machine": machine(),
                "model": Path(args.model).name,
                "variant": name,
                "workload": line["workload"],
                "requests": line["requests"],
                "blocks": args.blocks,
                "batched_tokens": measured["batched_tokens"],
                "rows_per_second": round(line["requests"] / line["seconds"], 1),
                "hit_rate": round(line["cached"] / line["prompt_tokens"], 4),
                "computed_tokens_a_row": round((line["prompt_tokens"] - line["cached"]) / line["requests"], 1),
                "latency_p50": round(line["latency_p50"], 3),
                "latency_p99": round(line["latency_p99"], 3),
                "other_answers": wrong,
                "checked_rows": CHECK_ROWS,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--blocks", type=int, default=3000)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--workloads", default="nested,distinct")
    parser.add_argument("--engine-arg", action="append")
    parser.add_argument("--one", choices=list(VARIANTS), help="run this variant here")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measured = measure(args)
        if args.result:
            args.result.write_text(json.dumps(measured))
        else:
            print(json.dumps(measured["lines"], indent=1))
        return
    check_lines(parser, args.csv, FIELDS)
    for line in run_variants(args):
        print(
            f"{line['workload']:11} {line['variant']:17} {line['rows_per_second']:8.1f} rows/s  "
            f"hit rate {line['hit_rate']:.3f}  p50 {line['latency_p50']:.2f} s  p99 {line['latency_p99']:.2f} s  "
            f"answers unlike stock: {line['other_answers']} of {CHECK_ROWS}",
            flush=True,
        )
        if args.csv:
            append_csv(args.csv, [line])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Rows per second and hit rate of vLLM with a small KV cache: stock, and each part of our scheduler by itself.

    kv.py MODEL --csv kv.csv [--rows 5000] [--blocks 3000] [--variants stock,tree] [--workloads shared,distinct]
                [--engine-arg NAME=VALUE ...]
    kv.py MODEL --one VARIANT ...     one variant in this process (what the first form runs, one after the other)

MODEL is a folder with a config.json; weights are random (load_format=dummy). Prompts are random token ids, the answer
is one token, all requests wait before the first step unless the workload says otherwise:

    shared:    rows / 10 prefixes of 250 tokens, 10 rows each with 30 tokens of their own, in random order.
    window:    the same, at most 3 x max_num_seqs requests at a time in the engine, as RelationalLLM sends them.
    twice:     rows / 2 documents of 250 tokens; one question about each, then another about each, in the same order.
    distinct:  no two rows alike: nothing to gain.

First a check: greedy tokens of 200 rows, 8 a row, are compared with those of stock, which runs first. On a GPU sums
depend on what else is in the batch, so a few rows may differ by rounding; stock in sorted order is there as a measure.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vllm_relational.bench import _commit, _machine, append_csv
from vllm_relational.cli_options import engine_arguments

VARIANTS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "stock sorted": None,
    "lru+arrival": {"eviction": "lru", "order": "arrival"},
    "fifo+arrival": {"eviction": "fifo", "order": "arrival"},
    "batch+arrival": {"eviction": "batch", "order": "arrival"},
    "lru+tree": {"eviction": "lru", "order": "prefix-tree"},
    "batch+tree": {"eviction": "batch", "order": "prefix-tree"},
    "lru+tree+exact": {"eviction": "lru", "order": "prefix-tree", "token_exact": True},
}
WORKLOADS = ("shared", "window", "twice", "distinct")
SCHEDULER = "vllm_relational.vllm_ext.scheduler.RelationalScheduler"
CHECK_ROWS, CHECK_TOKENS = 200, 8
VOCABULARY = (100, 1100)
SHARED, OWN = 250, 30
QUEUE_FACTOR = 3

Prompts = list[list[int]]


def make_prompts(workload: str, num_rows: int) -> Prompts:
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(*VOCABULARY) for _ in range(count)]

    if workload == "distinct":
        return [tokens(SHARED + OWN) for _ in range(num_rows)]
    if workload == "twice":
        documents, questions = [tokens(SHARED) for _ in range(num_rows // 2)], [tokens(OWN) for _ in range(2)]
        return [document + question for question in questions for document in documents]
    prefixes = [tokens(SHARED) for _ in range(max(1, num_rows // 10))]
    prompts = [prefixes[i % len(prefixes)] + tokens(OWN) for i in range(num_rows)]
    rng.shuffle(prompts)
    return prompts


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


def ask(llm: Any, prompts: Prompts, max_tokens: int, window: int | None = None) -> tuple[float, list[Any]]:
    """Seconds from the first step to the last answer, and the outputs in order of the prompts."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    assert llm.reset_prefix_cache()
    if window is not None:
        return _ask_through_window(llm, prompts, params, window)
    llm.sleep(level=0, mode="keep")
    llm.enqueue([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    begin = time.perf_counter()
    llm.wake_up(["scheduling"])
    outputs = llm.wait_for_completion(use_tqdm=False)
    return time.perf_counter() - begin, outputs


def _ask_through_window(llm: Any, prompts: Prompts, params: Any, window: int) -> tuple[float, list[Any]]:
    begin, waiting, finished, sent = time.perf_counter(), iter(prompts), [], 0
    while len(finished) < len(prompts):
        while sent - len(finished) < window and (prompt := next(waiting, None)) is not None:
            llm.enqueue([{"prompt_token_ids": prompt}], params, use_tqdm=False)
            sent += 1
        finished += [output for output in llm.llm_engine.step() if output.finished]
    return time.perf_counter() - begin, sorted(finished, key=lambda output: int(output.request_id))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    llm = start_engine(args)
    window = QUEUE_FACTOR * llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
    prepare = sorted if args.one == "stock sorted" else list
    check = prepare(make_prompts("shared", CHECK_ROWS))
    ask(llm, make_prompts("distinct", CHECK_ROWS), 1)  # warm-up: kernels, CUDA graphs
    _, outputs = ask(llm, check, CHECK_TOKENS)
    answers = {
        json.dumps(prompt): list(output.outputs[0].token_ids) for prompt, output in zip(check, outputs, strict=True)
    }
    lines = []
    for workload in args.workloads.split(","):
        prompts = prepare(make_prompts(workload, args.rows))
        seconds, outputs = ask(llm, prompts, 1, window if workload == "window" else None)
        assert len(outputs) == len(prompts) and all(len(output.outputs[0].token_ids) == 1 for output in outputs)
        prompt_tokens = sum(map(len, prompts))
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        lines.append({"workload": workload, "seconds": seconds, "cached": cached, "prompt_tokens": prompt_tokens})
    return {"answers": answers, "lines": lines}


# -------------------------------------------------------------------------------------------------- all of them
def run_variants(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line a variant and workload; each variant in a process of its own, stock first."""
    stock_answers: dict[str, list[int]] | None = None
    for name in dict.fromkeys(["stock", *args.variants.split(",")]):
        with tempfile.NamedTemporaryFile(suffix=".json") as result:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--result", result.name]
            subprocess.run(command, check=True)
            measured = json.loads(Path(result.name).read_text())
        answers = measured["answers"]
        stock_answers = stock_answers or answers
        wrong = sum(answers[prompt] != expected for prompt, expected in stock_answers.items())
        for line in measured["lines"]:
            yield {
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "commit": _commit(),
                "machine": _machine(),
                "model": Path(args.model).name,
                "variant": name,
                "workload": line["workload"],
                "rows": args.rows,
                "blocks": args.blocks,
                "rows_per_second": round(args.rows / line["seconds"], 1),
                "hit_rate": round(line["cached"] / line["prompt_tokens"], 4),
                "computed_tokens_a_row": round((line["prompt_tokens"] - line["cached"]) / args.rows, 1),
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
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
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
    for line in run_variants(args):
        print(
            f"{line['workload']:9} {line['variant']:14} {line['rows_per_second']:8.1f} rows/s  hit rate "
            f"{line['hit_rate']:.3f}  answers unlike stock: {line['other_answers']} of {CHECK_ROWS}",
            flush=True,
        )
        if args.csv:
            append_csv(args.csv, [line])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Rows a second and computed tokens a row, stock vLLM against token-exact reuse, each in a process of its own.

    partial_reuse.py MODEL [--rows 5000] [--groups 50] [--shared 246] [--own 30] [--rounds 3]
                     [--engine-arg NAME=VALUE ...] [--csv FILE]

MODEL is a folder with a ``config.json``; weights are random (``--load-format auto`` loads real ones). A row is the
tokens that its group shares and some of its own; the rows of all groups are mixed. One output token a row. Every round
starts from a cold cache; the median round counts. ``--shared 240 --own 36`` has nothing to gain with blocks of 16: it
shows what the bookkeeping costs.

First a check: some rows with more output tokens, greedy, in stock order, in stock with the rows reversed, and with
reuse. In bf16 the sums of a matrix product depend on the batch, so a share of rows differs between two runs of stock
vLLM already; more than that share would be an error of ours. With ``--engine-arg dtype=float32`` none should differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lines import check_lines

from vllm_relational.cli.options import engine_arguments
from vllm_relational.compare.orders import append_csv
from vllm_relational.compare.provenance import code_version, machine

SCHEDULER = "vllm_relational.vllm_ext.scheduler.RelationalScheduler"
SETTINGS = {"relational": {"order": "arrival", "eviction": "lru", "token_exact": True}}  # that part and nothing else
FIELDS = (
    "time", "commit", "machine", "model", "variant", "rows", "groups", "shared", "own", "block_size",
    "computed_tokens_a_row", "ideal_tokens_a_row", "rows_per_second", "slowest_round", "fastest_round", "speed_up",
    "mismatch", "mismatch_of_stock_reversed",
)  # fmt: skip


def make_rows(options: argparse.Namespace, vocabulary: int) -> list[list[int]]:
    """Rows of all groups in random order, the same on every call."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(100, vocabulary) for _ in range(count)]

    stems = [tokens(options.shared) for _ in range(options.groups)]
    rows = [stems[number % options.groups] + tokens(options.own) for number in range(options.rows)]
    draw.shuffle(rows)
    return rows


def ideal(rows: list[list[int]]) -> float:
    """Tokens to compute a row when no prefix is computed twice; in sorted order the neighbour shares most."""
    total, before = 0, []
    for row in sorted(rows):
        same = next((i for i, (one, other) in enumerate(zip(row, before, strict=False)) if one != other), len(before))
        total += max(len(row) - same, 1)
        before = row
    return total / len(rows)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One variant: answers of the check, seconds and computed tokens of each round."""
    from vllm import LLM

    arguments = {"max_model_len": options.shared + options.own + 64, **engine_arguments(options.engine_arg)}
    if options.variant == "partial":
        arguments = {"scheduler_cls": SCHEDULER, "additional_config": SETTINGS, **arguments}
    llm = LLM(options.model, load_format=options.load_format, skip_tokenizer_init=True, seed=0, **arguments)
    rows = make_rows(options, llm.model_config.get_vocab_size())
    sample = rows[: options.check]
    answers = ask(llm, sample, 16)["answers"]
    reversed_answers = ask(llm, sample[::-1], 16)["answers"][::-1]
    ask(llm, rows[: min(len(rows), 500)], 1)  # warm up
    rounds = [ask(llm, rows, 1) for _ in range(options.rounds)]
    block_size = llm.llm_engine.vllm_config.cache_config.block_size
    found = {"answers": answers, "reversed": reversed_answers, "ideal": ideal(rows), "block_size": block_size}
    return {**found, **{key: [each[key] for each in rounds] for key in ("seconds", "computed")}}


def ask(llm: Any, rows: list[list[int]], max_tokens: int) -> dict[str, Any]:
    """All rows at once from a cold cache; ``computed`` is prompt tokens a row."""
    from vllm import SamplingParams

    assert llm.reset_prefix_cache(), "the cache cannot be emptied"
    parameters = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": row} for row in rows], parameters, use_tqdm=False)
    seconds = time.perf_counter() - start
    computed = sum(len(row) - output.num_cached_tokens for row, output in zip(rows, outputs, strict=True))
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    return {"seconds": seconds, "computed": computed / len(rows), "answers": answers}


def in_own_process(variant: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant, "--out", str(out)]
        subprocess.run(command, check=True, env={**os.environ, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"})
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def mismatch(one: list[list[int]], other: list[list[int]]) -> float:
    """Share of rows with different answers."""
    return sum(left != right for left, right in zip(one, other, strict=True)) / max(len(one), 1)


def report(options: argparse.Namespace) -> None:
    """Run both variants, print them side by side, append them to the file."""
    stock, partial = in_own_process("stock"), in_own_process("partial")
    noise, difference = mismatch(stock["answers"], stock["reversed"]), mismatch(stock["answers"], partial["answers"])
    commit = code_version()
    print(f"\n{machine()}, {Path(options.model).name}, commit {commit}")
    print(f"{options.rows} rows of {options.shared} shared + {options.own} own tokens, {options.groups} groups")
    print(f"check, {len(stock['answers'])} rows x 16 tokens: {difference:.1%} of rows differ from stock;")
    print(f"  stock differs from itself with the rows reversed in {noise:.1%}")
    for name, found in (("stock", stock), ("partial", partial)):
        speeds = [options.rows / seconds for seconds in found["seconds"]]
        median, computed = statistics.median(speeds), statistics.median(found["computed"])
        speed_up = statistics.median(stock["seconds"]) / statistics.median(found["seconds"])
        print(
            f"{name:8} {computed:7.2f} tokens a row (ideal {found['ideal']:.2f})  {median:8.1f} rows/s"
            f" ({min(speeds):.1f}-{max(speeds):.1f})  {speed_up:.3f}x"
        )
        values = (
            datetime.now(UTC).isoformat(timespec="seconds"), commit, machine(), Path(options.model).name,
            name, options.rows, options.groups, options.shared, options.own, found["block_size"],
            round(computed, 3), round(found["ideal"], 3), round(median, 2), round(min(speeds), 2),
            round(max(speeds), 2), round(speed_up, 4), round(difference, 4), round(noise, 4),
        )  # fmt: skip
        if options.csv:
            append_csv(options.csv, [dict(zip(FIELDS, values, strict=True))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    numbers = {"rows": 5000, "groups": 50, "shared": 246, "own": 30, "rounds": 3, "check": 200}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--engine-arg", action="append")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--variant", choices=["stock", "partial"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        options.out.write_text(json.dumps(measure(options)))
    else:
        check_lines(parser, options.csv, FIELDS)
        report(options)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Rows per second in original and in planned order, on several tables, one engine, each run from a cold cache.

    orders.py MODEL TABLE.parquet[:ROWS] ... --csv orders.csv [--engine-arg NAME=VALUE ...]

Rows are drawn with a fixed seed (pandas ``sample(random_state=0)``), columns whose name holds ``url`` are dropped, all
others are asked for, nulls are sent as null. The answer is one token, so that the time is that of the prompts.
Before timing, a check: every row must be answered, and hits as measured must be within 2 points of the forecast.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import pyarrow as pa
from lines import check_lines

from vllm_relational import RelationalLLM
from vllm_relational.cli.options import engine_arguments
from vllm_relational.compare.orders import FIELDS, Comparison, compare_orders

PROMPT = "Is this record about something that happened in a city? {*}"
OPTIONS = {"choices": ["yes", "no"], "nulls": "keep"}
TOLERANCE = 0.02


def read_sample(argument: str) -> tuple[Path, pa.Table]:
    path, _, rows = argument.partition(":")
    frame = pd.read_parquet(path)
    frame = frame[[name for name in frame.columns if "url" not in name]]
    return Path(path), pa.Table.from_pandas(frame.sample(n=min(int(rows or 15_000), len(frame)), random_state=0))


def check(comparison: Comparison) -> None:
    for result in comparison.results:
        report = result.report
        assert report.num_failed == 0, f"{report.num_failed} rows failed: {report.failures}"
        measured = report.measured_hit_rate
        assert measured is not None
        gap = abs(measured - report.predicted.hit_rate)
        if gap > TOLERANCE:
            print(f"forecast off by {gap:.1%} in {report.planner} order: the cache is too small for this batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--orders", default="original,fixed,tree")
    parser.add_argument("--engine-arg", action="append")
    args = parser.parse_args()
    check_lines(parser, args.csv, FIELDS)
    with RelationalLLM(args.model, **engine_arguments(args.engine_arg)) as llm:
        for path, table in map(read_sample, args.tables):
            table = table.select([name for name in table.column_names if not name.startswith("__index")])
            comparison = compare_orders(llm, table, PROMPT, args.orders.split(","), OPTIONS)
            check(comparison)
            print(f"\n{path.stem}, {table.num_rows} rows x {table.num_columns} columns")
            print(comparison.render(), flush=True)
            comparison.append_csv(args.csv, path.name)


if __name__ == "__main__":
    main()

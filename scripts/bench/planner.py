#!/usr/bin/env python3
"""Prefix hit rate in characters, and seconds, of several planners on several tables.

    planner.py TABLE.parquet ... --csv planner.csv [--planners original,fixed,fixed_v2,ggr,tree] [--rows 15000]

At most --rows rows are drawn with a fixed seed (pandas ``sample(random_state=0)``) and columns whose name holds
``url`` are dropped. ``hit_rate_chars``: cells joined without names or separators, nulls empty, a cache without limit;
a prefix may end inside a cell. ``repeated_chars``: share of characters in cells that occurred before in their column.
``seconds`` are those of planning from dictionary-encoded cells (column statistics, and sorting the values where the
planner reads overlaps, included), the best of --repeat. ``ggr`` is the authors' variant of GGR, on integer codes.
Before timing counts, a check: every plan must be a permutation of the rows and of each row's fields.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from vllm_relational.plan import Planner, planner
from vllm_relational.plan.characters import CharacterTable, character_overlaps, character_table, hit_characters
from vllm_relational.plan.objective import hit_tokens, repeated_share, total_tokens
from vllm_relational.records import Plan
from vllm_relational.table.encode import encode_columns

FIELDS = ("table", "rows", "columns", "planner", "seconds", "hit_rate_chars", "repeated_chars")


def read_sample(path: Path, rows: int) -> CharacterTable:
    frame = pd.read_parquet(path)
    frame = frame[[name for name in frame.columns if "url" not in name]]
    frame = frame.sample(n=min(rows, len(frame)), random_state=0)
    started = time.perf_counter()
    table = character_table(encode_columns(pa.Table.from_pandas(frame, preserve_index=False), list(frame.columns)))
    print(f"\n{path.stem}: {frame.shape[0]} rows x {frame.shape[1]} columns, encoded in ", end="")
    print(f"{time.perf_counter() - started:.2f} s, in repeated cells {repeated_share(table.batch):.4f}", flush=True)
    return table


def check(table: CharacterTable, plan: Plan) -> None:
    batch = table.batch
    assert (np.sort(plan.rows) == np.arange(batch.num_rows)).all(), f"{plan.planner}: rows are no permutation"
    assert (np.sort(plan.fields, axis=1) == np.arange(batch.num_columns)).all(), f"{plan.planner}: fields are none"


def timed(order: Planner, table: CharacterTable, repeat: int) -> tuple[Plan, float]:
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        if order.reads_overlaps:
            character_overlaps(table.texts)  # ``table`` has them already, but they are part of the planning
        plan = order(table.batch)
        seconds.append(time.perf_counter() - started)
    return plan, min(seconds)


def measure(table: CharacterTable, name: str, path: Path, repeat: int) -> dict[str, Any]:
    plan, seconds = timed(planner(name), table, repeat)
    check(table, plan)
    total = max(total_tokens(table.batch), 1)
    line = {
        "table": path.stem,
        "rows": table.batch.num_rows,
        "columns": table.batch.num_columns,
        "planner": name,
        "seconds": round(seconds, 4),
        "hit_rate_chars": round(hit_characters(table, plan) / total, 4),
        "repeated_chars": round(repeated_share(table.batch), 4),
    }
    whole_cells = hit_tokens(table.batch, plan) / total
    print(f"{name:12} {line['hit_rate_chars']:.4f} (in whole cells {whole_cells:.4f}) {seconds:8.3f} s", flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--planners", default="original,fixed,fixed_v2,ggr,tree")
    parser.add_argument("--rows", type=int, default=15_000)
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for path in args.tables:
            table = read_sample(path, args.rows)
            for name in args.planners.split(","):
                writer.writerow(measure(table, name, path, args.repeat))


if __name__ == "__main__":
    main()

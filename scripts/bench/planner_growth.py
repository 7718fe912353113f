#!/usr/bin/env python3
"""How the planners' time and memory grow with the rows and with the columns of a table.

    planner_growth.py TABLE.parquet --csv growth.csv [--svg growth.svg] [--rows 1000,10000,...] [--columns 10]

Rows are drawn from the table with replacement and one cell in twenty gets an ending of its own, so that larger tables
hold new values too. Every line runs in a process of its own: ``peak_mb`` is that process's memory at its highest, the
encoded table (``table_mb``) included. ``seconds`` as in planner.py; the plan is checked first.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from planner import check, timed

from vllm_relational.plan import planner
from vllm_relational.plan.characters import CharacterTable, character_overlaps, character_table
from vllm_relational.records import PlanInput
from vllm_relational.table.encode import encode_columns

FIELDS = ("table", "rows", "columns", "cells", "planner", "seconds", "table_mb", "peak_mb")
CHANGED = 0.05


def perturbed(path: Path, num_rows: int, num_columns: int) -> CharacterTable:
    """``num_rows`` rows over the first columns of the table, some cells with an ending of their own."""
    frame = pd.read_parquet(path)
    frame = frame[[name for name in frame.columns if "url" not in name]].iloc[:, :num_columns]
    base = character_table(encode_columns(pa.Table.from_pandas(frame, preserve_index=False), list(frame.columns)))
    random = np.random.default_rng(0)
    codes = np.ascontiguousarray(base.batch.codes[:, random.integers(0, base.batch.num_rows, num_rows)])
    texts = []
    for column, values in zip(codes, base.texts, strict=True):
        changed = np.flatnonzero(random.random(num_rows) < CHANGED)
        endings = [f"{values[code]} {number}" for number, code in enumerate(column[changed].tolist())]
        column[changed] = len(values) + np.arange(len(changed))
        texts.append((*values, *endings))
    lengths = tuple(np.array([len(text) for text in column], dtype=np.int64) for column in texts)
    return CharacterTable(PlanInput(codes, lengths, overlaps=character_overlaps(texts)), tuple(texts))


def measure(path: Path, name: str, num_rows: int, num_columns: int) -> dict[str, Any]:
    table = perturbed(path, num_rows, num_columns)
    table_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    plan, seconds = timed(planner(name), table, 1)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    check(table, plan)
    batch = table.batch
    sizes = {"rows": batch.num_rows, "columns": batch.num_columns, "cells": batch.codes.size}
    memory = {"table_mb": round(table_mb), "peak_mb": round(peak_mb)}
    return {"table": path.stem, **sizes, "planner": name, "seconds": round(seconds, 3), **memory}


def in_own_process(path: Path, name: str, num_rows: int, num_columns: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(path), "--one", name, "--rows", str(num_rows), "--columns", str(num_columns)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    line: dict[str, Any] = json.loads(done.stdout)
    print(*line.values(), flush=True)
    return line


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(6, 4))
    for key in sorted({(line["planner"], line["columns"]) for line in lines}):
        points = [line for line in lines if (line["planner"], line["columns"]) == key]
        axes.loglog([p["cells"] for p in points], [p["seconds"] for p in points], "o-", label=f"{key[0]}, {key[1]} columns")
    cells = np.array([min(line["cells"] for line in lines), max(line["cells"] for line in lines)])
    axes.loglog(cells, cells * 1e-6, "k:", label="1 µs a cell")
    axes.set(xlabel="cells", ylabel="seconds")
    axes.legend()
    plt.savefig(path, bbox_inches="tight", metadata={"Date": None})


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--rows", type=numbers, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--columns", type=numbers, default=[10])
    parser.add_argument("--planners", default="fixed_v2,ggr,tree")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.table, args.one, args.rows[0], args.columns[0])))
        return
    lines = [
        in_own_process(args.table, name, num_rows, num_columns)
        for num_columns in args.columns
        for num_rows in args.rows
        for name in args.planners.split(",")
    ]
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    if args.svg:
        draw(lines, args.svg)


if __name__ == "__main__":
    main()

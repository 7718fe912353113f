#!/usr/bin/env python3
"""Planning seconds by the shape of the table: 2, 10 and 395 columns of every kind of values.

    planner_shapes.py --csv planner_shapes.csv [--rows 1000000] [--shapes near unique and few,...] [--repeat 1]

Texts are made from numbers drawn with a fixed seed; a token is a word. ``seconds`` is what a run spends between tokens
and plan: sorting the values of every column, GGR's plan, the tree planner with its default budget. ``cpu_seconds`` is
the processor time of the same, all threads together: less than ``seconds`` times the cores, whatever else runs. Both
are the least of --repeat. 395 columns have 10,000 rows at most. ``allowed`` are 5 % of the time to answer at 1,000 rows
a second. ``hit_share`` counts whole cells, of all their tokens. The plan is checked first: rows and fields must be
permutations.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vllm_relational.plan import plan_ggr, plan_tree
from vllm_relational.plan.objective import hit_tokens
from vllm_relational.plan.tree import value_overlaps
from vllm_relational.records import Plan, PlanInput, TokenSegments

FIELDS = ("shape", "rows", "columns", "seconds", "cpu_seconds", "allowed", "hit_share", "ggr_hit_share")
HEADER_TOKENS, BLOCK = 20, 16

Column = tuple[np.ndarray, list[str]]
"""int32 codes, and the text of each code."""


def column_of(numbers: np.ndarray, text: Callable[[int], str]) -> Column:
    values, codes = np.unique(numbers, return_inverse=True)
    return codes.astype(np.int32), [text(number) for number in values.tolist()]


class Kinds:
    """Columns of ``num_rows`` cells; every call draws anew."""

    def __init__(self, num_rows: int) -> None:
        self.rows, self.random = num_rows, np.random.default_rng(0)

    def few(self, size: int = 500) -> Column:
        return column_of(self.random.integers(0, size, self.rows), lambda i: f"city {i}")

    def near_unique(self) -> Column:
        drawn = self.random.integers(0, max(self.rows * 2 // 3, 1), self.rows)
        return column_of(drawn, lambda i: f"comment number {i} about thing {i % 997}")

    def unique(self) -> Column:
        return column_of(self.random.permutation(self.rows), lambda i: f"key {i} of them")

    def equal(self) -> Column:
        return column_of(np.zeros(self.rows, int), lambda i: "always the same text here")

    def alike(self) -> Column:
        start = " ".join(f"word{i}" for i in range(20))
        drawn = self.random.integers(0, max(self.rows // 2, 1), self.rows)
        return column_of(drawn, lambda i: f"{start} group {i % 50} end {i}")

    def zipf(self) -> Column:
        return column_of(np.minimum(self.random.zipf(1.3, self.rows), 10**6), lambda i: f"word {i} of {i % 97}")


WIDE, MAX_WIDE_ROWS = "395 of all kinds", 10_000

SHAPES: dict[str, Callable[[Kinds], list[Column]]] = {
    "near-unique beside few values": lambda k: [k.near_unique(), k.few()],
    "two near-unique": lambda k: [k.near_unique(), k.near_unique()],
    "all unique": lambda k: [k.unique(), k.unique()],
    "all equal": lambda k: [k.equal(), k.equal()],
    "long common beginnings beside few values": lambda k: [k.alike(), k.few()],
    "two Zipf": lambda k: [k.zipf(), k.zipf()],
    "ten of few values": lambda k: [k.few(size) for size in (2, 3, 5, 10, 20, 50, 100, 500, 2_000, 10_000)],
    "ten near-unique": lambda k: [k.near_unique() for _ in range(10)],
    "nine near-unique beside few values": lambda k: [*(k.near_unique() for _ in range(9)), k.few()],
    "ten of long common beginnings": lambda k: [k.alike() for _ in range(10)],
    "ten Zipf": lambda k: [k.zipf() for _ in range(10)],
    "ten of all kinds": lambda k: [
        *(k.near_unique(), k.unique(), k.few(), k.few(10), k.zipf(), k.alike(), k.equal()),
        *(k.near_unique(), k.few(100_000), k.zipf()),
    ],
    WIDE: lambda k: [
        kind()
        for _, kind in zip(range(395), itertools.cycle([k.few, k.near_unique, k.zipf, k.alike, k.equal, k.unique]))
    ],
}


def segments_of(texts: list[str]) -> TokenSegments:
    ids: dict[str, int] = {}
    words = [text.split(" ") for text in texts]
    tokens = np.array([ids.setdefault(word, len(ids)) for text in words for word in text], np.int32)
    return TokenSegments(tokens, np.append(0, np.cumsum([len(text) for text in words])).astype(np.int64))


def planned(codes: np.ndarray, cells: list[TokenSegments]) -> tuple[PlanInput, Plan, float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    lengths = tuple(np.diff(column.offsets) for column in cells)
    overlaps = value_overlaps(cells)
    batch = PlanInput(codes, lengths, overlaps=overlaps, header_tokens=HEADER_TOKENS, block_size=BLOCK)
    plan = plan_tree(batch)
    return batch, plan, time.perf_counter() - started, time.process_time() - cpu


def check(batch: PlanInput, plan: Plan) -> None:
    assert (np.sort(plan.rows) == np.arange(batch.num_rows)).all(), "rows are no permutation"
    assert (np.sort(plan.fields, axis=1) == np.arange(batch.num_columns)).all(), "fields are none"


def measure(shape: str, num_rows: int, repeat: int) -> dict[str, Any]:
    num_rows = min(num_rows, MAX_WIDE_ROWS) if shape == WIDE else num_rows
    columns = SHAPES[shape](Kinds(num_rows))
    codes = np.array([column for column, _ in columns])
    cells = [segments_of(texts) for _, texts in columns]
    runs = [planned(codes, cells) for _ in range(repeat)]
    batch, plan = runs[0][:2]
    check(batch, plan)
    ggr = plan_ggr(batch)
    total = sum(int(batch.cell_tokens[c][column].sum()) for c, column in enumerate(codes))
    line = {
        "shape": shape,
        "rows": num_rows,
        "columns": len(columns),
        "seconds": round(min(run[2] for run in runs), 2),
        "cpu_seconds": round(min(run[3] for run in runs), 2),
        "allowed": num_rows * 0.05e-3,
        "hit_share": round(hit_tokens(batch, plan) / total, 4),
        "ggr_hit_share": round(hit_tokens(batch, ggr) / total, 4),
    }
    print(*line.values(), sep="  ", flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    args = parser.parse_args()
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for shape in args.shapes:
            writer.writerow(measure(shape, args.rows, args.repeat))
            file.flush()


if __name__ == "__main__":
    main()

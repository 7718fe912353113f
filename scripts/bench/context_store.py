#!/usr/bin/env python3
"""A context database without a model: CPU milliseconds to store a context, to find one among many, to read one anew.

    context_store.py --folder FOLDER [--contexts 3000] [--tokens 16384] [--rounds 5] [--csv FILE]

``FOLDER`` is made, filled with so many contexts of random token ids, which share random lengths of one beginning and
have a tiny layer each, and removed at the end. Every context that is asked for must be found, with the right length.

    add        a context stored, with the tiny layer
    catalogue  the first look-up of all, which makes the catalogue; ``catalogue_mb`` is its size
    find       a look-up by a reader that was just made; ``find_max`` the slowest
    changed    a look-up just after another context was stored
    store      one context of 24 layers of 2 KV heads of 64 bfloat16 numbers, as a model of 0.5B parameters has
    first      find that one, every byte read and compared with its checksum; ``again``, once that was done

Medians of the rounds. A CSV line is appended.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from lines import check_lines

from vllm_relational.compare.orders import append_csv
from vllm_relational.compare.provenance import code_version, machine
from vllm_relational.context import DB
from vllm_relational.context.catalogue import CATALOGUE, RACY_SECONDS
from vllm_relational.context.files import forget

FIELDS = (
    "time", "commit", "machine", "contexts", "tokens", "add_ms", "catalogue_ms", "catalogue_mb", "find_ms",
    "find_max_ms", "changed_ms", "store_mb", "store_ms", "first_ms", "again_ms",
)  # fmt: skip
MODEL, OTHER = "a" * 32, "b" * 32  # fingerprints
NUM_LAYERS, SHAPE = 24, (2, 64)


def milliseconds(action: Callable[[], Any]) -> float:
    """CPU time of this process."""
    begin = time.process_time()
    action()
    return (time.process_time() - begin) * 1e3


def sequences(count: int, length: int) -> list[tuple[np.ndarray, int]]:
    """Token ids, and how many of them are those of one common beginning."""
    draw = np.random.default_rng(0)
    common = draw.integers(0, 150_000, length)
    found = []
    for _ in range(count):
        ids, shared = draw.integers(0, 150_000, length), int(draw.integers(0, length))
        ids[:shared] = common[:shared]
        found.append((ids, shared))
    return found


def fill(db: DB, given: list[tuple[np.ndarray, int]]) -> float:
    """Milliseconds a context."""
    layer = np.zeros((1, len(given[0][0]), 4), np.uint16)
    return milliseconds(lambda: [db.import_(ids, [(layer, layer)], MODEL) for ids, _ in given]) / len(given)


def look_up(folder: Path, given: list[tuple[np.ndarray, int]]) -> list[float]:
    """Milliseconds of look-ups of prompts that leave their contexts 50 tokens before the end; checked."""
    taken = []
    for ids, _ in given:
        asked = ids.copy()
        asked[-50:] = 150_001
        db, found = DB(folder), []
        taken.append(milliseconds(lambda db=db, asked=asked, found=found: found.append(db.find(asked, MODEL))))
        assert found[0][1] == len(ids) - 50, "the longest prefix was not found"
    return taken


def measure_many(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    given, db = sequences(options.contexts, options.tokens), DB(folder)
    add = fill(db, given)
    catalogue = milliseconds(lambda: db.find(given[0][0], MODEL))
    time.sleep(RACY_SECONDS * 1.5)
    db.find(given[0][0], MODEL)
    asked = given[:: max(len(given) // 20, 1)]
    taken = [each for _ in range(options.rounds) for each in look_up(folder, asked)]
    changed = []
    for ids, _ in sequences(options.rounds, options.tokens + 1):
        fill(db, [(ids, 0)])
        changed += look_up(folder, asked[:1])
    return {
        "add_ms": add,
        "catalogue_ms": catalogue,
        "catalogue_mb": (folder / CATALOGUE).stat().st_size / 1e6,
        "find_ms": statistics.median(taken),
        "find_max_ms": max(taken),
        "changed_ms": statistics.median(changed),
    }


def measure_one(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    draw = np.random.default_rng(1)
    ids, (heads, size) = draw.integers(0, 150_000, options.tokens), SHAPE
    layer = draw.integers(0, 2**14, (heads, options.tokens, size), np.uint16)
    store, first, again = [], [], []
    for _ in range(options.rounds):
        store.append(milliseconds(lambda: DB(folder).import_(ids, [(layer, layer)] * NUM_LAYERS, OTHER)))
        stored = DB(folder).open(DB(folder).list()[0].id)
        for index in range(NUM_LAYERS):
            forget(stored.layer(index).fileno())
        for taken in (first, again):
            taken.append(milliseconds(lambda: DB(folder).find(ids, OTHER)))
        DB(folder).delete(stored.id)
    times = {"store_ms": store, "first_ms": first, "again_ms": again}
    return {"store_mb": stored.manifest.num_bytes / 1e6} | {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--contexts", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    check_lines(parser, options.csv, FIELDS)
    options.folder.mkdir(parents=True)  # a new one: it is removed
    try:
        measured = measure_one(options.folder / "one", options) | measure_many(options.folder / "many", options)
    finally:
        shutil.rmtree(options.folder)
    facts = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "commit": code_version(), "machine": machine()}
    row = facts | {"contexts": options.contexts, "tokens": options.tokens}
    row |= {name: f"{value:.3g}" for name, value in measured.items()}
    for name, value in row.items():
        print(f"{name:14} {value}")
    if options.csv is not None:
        append_csv(options.csv, [{name: row[name] for name in FIELDS}])


if __name__ == "__main__":
    main()

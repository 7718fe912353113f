#!/usr/bin/env python3
"""Time, memory and recall of semantic deduplication, once the texts are embedded.

    semantic_dedup.py VECTORS.npy [--threshold 0.95,0.9] [--rows 100000] [--oracle-rows 5000] [--csv out.csv]
    semantic_dedup.py made

VECTORS.npy holds one float32 vector a text, as an embedder returned them. ``made`` makes 384-dimensional ones: half of
the rows in clumps of 2 to 20 around a centre, half alone.

``merged`` is the share of rows that inherit an answer, ``peak_mb`` the process's memory at its highest, vectors
included. Recall is measured on the first ``--oracle-rows`` rows against a full self-join: ``neighbours`` is the share,
among the rows with another row within the threshold, of those that were merged or have a row merged into them, as found
in blocks; ``merged_by_join`` what the same stars merge when all rows are one block. The blocks are those of the small
table, as many for its size as the large one has for its own. Every merge is checked against the threshold first.
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vllm_relational.dedup import semantic
from vllm_relational.embed import embed_texts

FIELDS = (
    "vectors",
    "rows",
    "dimension",
    "threshold",
    "seconds",
    "peak_mb",
    "merged",
    "oracle_rows",
    "merged_in_blocks",
)
FIELDS += ("merged_in_blocks", "merged_by_join", "neighbours")
MADE_ROWS, DIMENSION, LARGEST_CLUMP, SPREAD = 100_000, 384, 20, 0.008


def made_vectors(num_rows: int) -> np.ndarray:
    """Clumps of rows that are alike and as many rows alone, shuffled."""
    random = np.random.default_rng(0)
    sizes = random.integers(2, LARGEST_CLUMP + 1, num_rows // LARGEST_CLUMP * 2)
    members = np.repeat(np.arange(len(sizes)), sizes)[: num_rows // 2]
    centre_of = np.concatenate([members, len(sizes) + np.arange(num_rows - len(members))])
    centres = unit(random.normal(size=(len(sizes) + num_rows, DIMENSION)))
    vectors = centres[centre_of] + SPREAD * random.normal(size=(num_rows, DIMENSION))
    return unit(vectors)[random.permutation(num_rows)]


def unit(vectors: np.ndarray) -> np.ndarray:
    return embed_texts(lambda _: vectors, [""] * len(vectors))


def grouped(vectors: np.ndarray, threshold: float) -> tuple[np.ndarray, float]:
    """The row asked for each row and the seconds it took; checked against the threshold."""
    start = time.perf_counter()
    heads = semantic.similar_rows(vectors, threshold, np.ones(len(vectors), np.int64))
    seconds = time.perf_counter() - start
    assert np.array_equal(heads[heads], heads)
    assert np.einsum("ij,ij->i", vectors, vectors[heads]).min() >= threshold - 1e-5
    return heads, seconds


def recall(vectors: np.ndarray, threshold: float, rows_per_block: int) -> dict[str, Any]:
    """What blocks find of what a full self-join finds."""
    semantic.ROWS_PER_BLOCK, semantic.CHUNK = rows_per_block, 2 * rows_per_block
    heads = grouped(vectors, threshold)[0]
    semantic.CHUNK = len(vectors)  # one block
    joined = grouped(vectors, threshold)[0]
    close = vectors @ vectors.T >= threshold
    np.fill_diagonal(close, False)
    has_neighbour = close.any(axis=1)
    in_group = np.bincount(heads, minlength=len(heads))[heads] > 1
    return {
        "oracle_rows": len(vectors),
        "merged_in_blocks": merged(heads),
        "merged_by_join": merged(joined),
        "neighbours": round(float(in_group[has_neighbour].mean()), 4) if has_neighbour.any() else "",
    }


def merged(heads: np.ndarray) -> float:
    return round(float((heads != np.arange(len(heads))).mean()), 4)


def measure(name: str, vectors: np.ndarray, threshold: float, oracle_rows: int) -> dict[str, Any]:
    rows_per_block, chunk = semantic.ROWS_PER_BLOCK, semantic.CHUNK
    heads, seconds = grouped(vectors, threshold)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # As many blocks as rows allow, so that borders cut as much as in a large table.
    small = recall(vectors[:oracle_rows], threshold, max(16, rows_per_block * oracle_rows // len(vectors)))
    semantic.ROWS_PER_BLOCK, semantic.CHUNK = rows_per_block, chunk
    facts = {"vectors": name, "rows": len(vectors), "dimension": vectors.shape[1], "threshold": threshold}
    return {**facts, "seconds": round(seconds, 2), "peak_mb": round(peak_mb), "merged": merged(heads), **small}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors")
    parser.add_argument("--threshold", default="0.95,0.9,0.8")
    parser.add_argument("--rows", type=int, default=MADE_ROWS)
    parser.add_argument("--oracle-rows", type=int, default=5000)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    made = arguments.vectors == "made"
    vectors = made_vectors(arguments.rows) if made else unit(np.load(arguments.vectors)[: arguments.rows])
    lines = [
        measure(Path(arguments.vectors).stem, vectors, float(threshold), arguments.oracle_rows)
        for threshold in arguments.threshold.split(",")
    ]
    out = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    out.writeheader()
    out.writerows(lines)
    if arguments.csv is not None:
        new = not arguments.csv.exists()
        with arguments.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()

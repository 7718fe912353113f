#!/usr/bin/env python3
"""Time, memory and recall of semantic deduplication, once the texts are embedded.

    semantic_dedup.py VECTORS.npy [--threshold 0.95,0.9] [--rows 100000] [--oracle-rows 5000] [--csv out.csv]
    semantic_dedup.py made

VECTORS.npy holds one float32 vector a text, as an embedder returned them. ``made`` makes 384-dimensional ones: half of
the rows in clumps of 2 to 20 around a centre, half alone.

``merged`` is the share of rows that inherit an answer, ``peak_mb`` the process's memory at its highest, vectors
included. ``neighbours`` is the share of rows in a group of two or more among the rows with another row within the
threshold (stars leave some of those alone, however they are found). It is measured on ``--oracle-rows`` rows: on a
sample of them against the whole table, and on the first of them as a small table, in as many blocks as the large one
(16 rows a block or more) and in one block, which is the full self-join. Every merge is checked against the threshold.
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
from lines import check_lines

from vllm_relational.compare.orders import append_csv
from vllm_relational.dedup import semantic
from vllm_relational.embed import embed_texts

FIELDS = ("vectors", "rows", "dimension", "threshold", "seconds", "peak_mb", "merged", "neighbours", "oracle_rows")
FIELDS += ("merged_in_blocks", "merged_by_join", "neighbours_in_blocks", "neighbours_by_join")
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
    return {
        "oracle_rows": len(vectors),
        "merged_in_blocks": merged(heads),
        "merged_by_join": merged(joined),
        "neighbours_in_blocks": in_groups(heads, has_neighbour),
        "neighbours_by_join": in_groups(joined, has_neighbour),
    }


def sampled_neighbours(vectors: np.ndarray, heads: np.ndarray, threshold: float, num_rows: int) -> float:
    """Of sampled rows with a neighbour anywhere in the table, the share that is in a group."""
    sample = np.random.default_rng(0).choice(len(vectors), min(num_rows, len(vectors)), replace=False)
    parts = np.array_split(sample, max(1, len(sample) // 250))
    near = np.concatenate([(vectors[part] @ vectors.T >= threshold).sum(axis=1) > 1 for part in parts])
    return in_groups(heads, sample[near])


def in_groups(heads: np.ndarray, rows: np.ndarray) -> float:
    """Share of these rows, numbers or a mask, that are in a group of two or more."""
    together = (np.bincount(heads, minlength=len(heads))[heads] > 1)[rows]
    return round(float(together.mean()), 4) if len(together) else 1.0


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
    found = {"merged": merged(heads), "neighbours": sampled_neighbours(vectors, heads, threshold, oracle_rows)}
    return {**facts, "seconds": round(seconds, 2), "peak_mb": round(peak_mb), **found, **small}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors")
    parser.add_argument("--threshold", default="0.95,0.9,0.8")
    parser.add_argument("--rows", type=int, default=MADE_ROWS)
    parser.add_argument("--oracle-rows", type=int, default=5000)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    check_lines(parser, arguments.csv, FIELDS)
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
        append_csv(arguments.csv, lines)


if __name__ == "__main__":
    main()

"""What a plan is worth: the prompt tokens a prefix cache without limit serves, in whole cells.

Seen as paths of cells from the start of the row, the rows of a batch form a prefix tree. A node is computed for the
first row that reaches it and served from the cache for every later one, so a plan's hits are the tokens of its cells
less those of its tree. They depend on the field orders alone; only *which* row pays for a node depends on the row
order.

Lengths are whatever ``PlanInput.cell_tokens`` holds: tokens of the prompt, or characters (``plan/characters.py``).
Hits in KV blocks, and with a cache of limited capacity, are counted from token ids by
``native.simulate_prefix_cache``; its rules are in ``kv/simulate.py``. ``kv/replay.py`` sums them up, under the eviction
policy of vLLM and under the best that there can be.
"""

from __future__ import annotations

import numpy as np

from vllm_relational.records import Plan, PlanInput


def hit_tokens(batch: PlanInput, plan: Plan) -> int:
    """Tokens in the leading cells of rows whose path of (column, value) from the start occurred in an earlier row.

    Any earlier row counts, not only the one before. Time: one sort of the rows a level, and rows that share no prefix
    any more drop out. Memory: 8 bytes a cell.
    """
    return int(row_hit_tokens(batch, plan).sum())


def row_hit_tokens(batch: PlanInput, plan: Plan) -> np.ndarray:
    """int64 ``[len(plan.rows)]``: ``hit_tokens`` row by row, in the order asked."""
    cells, lengths = cell_ids(batch, plan.rows, plan.fields), cell_lengths(batch)
    hits = np.zeros(len(plan.rows), dtype=np.int64)
    rows = np.arange(len(plan.rows))
    nodes = np.zeros(len(plan.rows), dtype=np.int64)  # the tree node that each of ``rows`` has reached
    for level in range(cells.shape[1]):
        paths = nodes * len(lengths) + cells[rows, level]
        _, first, nodes, num_rows = np.unique(paths, return_index=True, return_inverse=True, return_counts=True)
        served = np.delete(rows, first)
        hits[served] += lengths[cells[served, level]]
        shared = num_rows[nodes] > 1
        rows, nodes = rows[shared], nodes[shared]
        if not len(rows):
            break
    return hits


def total_tokens(batch: PlanInput) -> int:
    """Tokens in the cells of all rows; header and tail of the prompts are not among them."""
    return sum(
        int(tokens[codes].sum(dtype=np.int64)) for codes, tokens in zip(batch.codes, batch.cell_tokens, strict=True)
    )


def repeated_share(batch: PlanInput) -> float:
    """Share of tokens in cells whose value occurred earlier in the same column: as ``hit_tokens`` counts, no plan has
    more. Cells that begin alike can be served beyond it: ``plan/bound.py`` has the ceiling for token ids.

    0 for a batch without tokens. Headers are not counted.
    """
    repeated = 0
    for codes, tokens in zip(batch.codes, batch.cell_tokens, strict=True):
        repeated += int(tokens[codes].sum(dtype=np.int64) - tokens[np.unique(codes)].sum(dtype=np.int64))
    return repeated / max(total_tokens(batch), 1)


def depth_first_rows(batch: PlanInput, fields: np.ndarray) -> np.ndarray:
    """int64 ``[num_rows]``: the rows in depth-first order of their prefix tree, equal rows as they stand.

    fields: int32 ``[num_rows, num_columns]``, the field order of each row of the batch by row number (a ``Plan`` has
    them in the order asked). Equal prefixes come out side by side whatever the field orders.
    """
    cells = cell_ids(batch, np.arange(batch.num_rows), fields)
    if not cells.shape[1]:
        return np.arange(batch.num_rows)
    rows: np.ndarray = np.lexsort(cells.T[::-1])  # lexsort weighs its last key most
    return rows


def cell_ids(batch: PlanInput, rows: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """int64 ``[len(rows), num_columns]``: a number for each (column, value), in the field order of its row."""
    sizes = [len(tokens) for tokens in batch.cell_tokens]
    first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    numbers: np.ndarray = first[fields] + batch.codes[fields, np.asarray(rows)[:, None]]
    return numbers


def cell_lengths(batch: PlanInput) -> np.ndarray:
    """int64 ``[number of cell_ids]``: the length of each (column, value)."""
    lengths: np.ndarray = np.concatenate([np.empty(0, np.int64), *batch.cell_tokens]).astype(np.int64)
    return lengths

"""Sorting dictionary-encoded rows: the reference of ``csrc/planner/row_sort.cc``.

Call it through ``vllm_relational.native``.
"""

from __future__ import annotations

import numpy as np


def sort_rows(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Stable lexicographic order of ``codes`` (int32 ``[num_columns, num_rows]``, >= 0) by the columns of ``order``.

    Returns int64 ``[num_rows]``. Raises ``ValueError`` for a negative code or an entry of ``order`` that is no column.
    """
    codes, order = np.asarray(codes), np.asarray(order, dtype=np.int32)
    num_columns, num_rows = codes.shape
    for i in np.flatnonzero((order < 0) | (order >= num_columns)):
        raise ValueError(f"order[{i}] = {order[i]}, but there are {num_columns} columns")
    for column in order:
        for row in np.flatnonzero(codes[column] < 0):
            raise ValueError(f"codes[{column}, {row}] = {codes[column, row]} is negative")
    if not len(order):
        return np.arange(num_rows)
    rows: np.ndarray = np.lexsort(codes[order[::-1]])  # lexsort weighs its last key most
    return rows

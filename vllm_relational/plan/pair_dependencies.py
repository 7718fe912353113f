"""Which columns follow from which other column, counted in NumPy: the reference of ``csrc/planner/dependencies.cc``."""

from __future__ import annotations

import numpy as np

NOT_DEPENDENT = -1
_ROUNDING = 1e-6  # 1 - 0.9 is a little less than 0.1


def pair_dependencies(
    codes: np.ndarray, num_values: np.ndarray, max_wrong: float, max_unexplained: float, max_distinct: float
) -> np.ndarray:
    """``native.pair_dependencies`` in NumPy: every pair is counted to the end."""
    num_columns, num_rows = codes.shape
    _check(codes, num_values)
    result = np.full((num_columns, num_columns), NOT_DEPENDENT, dtype=np.int64)
    for x in range(num_columns):
        num_distinct = len(np.unique(codes[x]))
        if num_distinct < 2 or num_distinct > max_distinct * num_rows + _ROUNDING:
            continue
        for y in range(num_columns):
            wrong, entries, other = _count(codes[x], codes[y])
            limit = min(max_wrong * num_rows, max_unexplained * other) + _ROUNDING
            if x != y and other and wrong <= limit and entries <= max_distinct * other + _ROUNDING:
                result[x, y] = wrong
    return result


def _count(x: np.ndarray, y: np.ndarray) -> tuple[int, int, int]:
    """Rows where y does not follow from x; values of x that say other than y's commonest value; rows that do."""
    counts_of_y = np.bincount(y)
    commonest = int(np.argmax(counts_of_y))
    pairs, counts = np.unique(x.astype(np.int64) * len(counts_of_y) + y, return_counts=True)
    most, of_commonest = np.zeros(x.max() + 1, dtype=np.int64), np.zeros(x.max() + 1, dtype=np.int64)
    np.maximum.at(most, pairs // len(counts_of_y), counts)
    said = pairs % len(counts_of_y) == commonest
    of_commonest[pairs[said] // len(counts_of_y)] = counts[said]
    return len(x) - int(most.sum()), int((of_commonest < most).sum()), len(x) - int(counts_of_y[commonest])


def _check(codes: np.ndarray, num_values: np.ndarray) -> None:
    if len(num_values) != len(codes):
        raise ValueError("num_values must have an entry a column")
    for column, limit in enumerate(num_values):
        for row in np.flatnonzero((codes[column] < 0) | (codes[column] >= limit)):
            raise ValueError(f"codes[{column}, {row}] = {codes[column, row]} is not in 0..{limit - 1}")

"""Exact deduplication: rows with the same values in the used columns are asked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vllm_relational.records import Distinct

T = TypeVar("T")


def distinct_rows(codes: np.ndarray, asked: np.ndarray | None = None) -> Distinct:
    """Group equal rows.

    codes: int32 ``[num_columns, num_rows]``; with no columns all rows are equal.
    asked: bool ``[num_rows]``; rows that are False belong to no group. None asks all.
    """
    num_rows = codes.shape[1]
    kept = np.arange(num_rows) if asked is None else np.flatnonzero(asked)
    groups = _group_numbers(codes[:, kept])
    # Groups are numbered by first appearance, so the first rows come out ascending.
    first = np.unique(groups, return_index=True)[1] if len(kept) else np.empty(0, np.int64)
    inverse = np.full(num_rows, -1, dtype=np.int64)
    inverse[kept] = groups
    return Distinct(first_rows=kept[first].astype(np.int64), inverse=inverse)


def scatter(values: Sequence[T | None], inverse: np.ndarray) -> list[T | None]:
    """One value a distinct row -> one value an input row; None where the row belongs to no group."""
    return [values[group] if group >= 0 else None for group in inverse.tolist()]


def _group_numbers(codes: np.ndarray) -> np.ndarray:
    """Number of each row's group, folding one column at a time so that no intermediate exceeds 64 bits."""
    import pandas as pd  # half of a command's start-up time, and most commands group nothing

    groups = np.zeros(codes.shape[1], dtype=np.int64)
    for column in codes:
        width = int(column.max(initial=-1)) + 2  # null has code -1
        groups = pd.factorize(groups * width + (column + 1))[0].astype(np.int64)
    return groups

"""What a user may ask of every plan: columns that keep their order, and columns that count more or less.

Columns that stay at their position are ``PlanInput.pinned``; each planner knows them itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from vllm_relational.records import PlanInput, ValueOverlaps

MAX_TOKENS = 2**30 - 1  # of a cell, in native code


def weighted(batch: PlanInput, weights: Mapping[int, float]) -> PlanInput:
    """``batch`` as a planner shall see it: tokens times the weight of their column, rounded, 1 or more unless 0.

    weights: by column, 0 or more; other columns weigh 1. What a plan of the result saves is no number of tokens any
    more, so it counts in no blocks.
    """
    if all(weight == 1 for weight in weights.values()):
        return batch
    factors = [weights.get(column, 1.0) for column in range(batch.num_columns)]
    tokens = tuple(_scaled(lengths, factor) for lengths, factor in zip(batch.cell_tokens, factors, strict=True))
    overlaps = tuple(
        ValueOverlaps(values.rank, np.floor(values.shared * factor).astype(np.int64))
        for values, factor in zip(batch.overlaps, factors, strict=False)
    )
    return dataclasses.replace(batch, cell_tokens=tokens, overlaps=overlaps, header_tokens=0, block_size=1)


def _scaled(lengths: np.ndarray, factor: float) -> np.ndarray:
    if factor == 0:
        return np.zeros_like(lengths)
    scaled = np.clip(np.rint(lengths * factor), 1, MAX_TOKENS)
    return np.where(lengths > 0, scaled, 0).astype(np.int64)


def in_allowed_order(batch: PlanInput, order: list[int]) -> list[int]:
    """``order`` with columns put off until those that ``batch.before`` wants before them stand.

    Rows that agree in their leading fields still agree in as many as the constraint allows. Published order if a
    pinned column would move.
    """
    if not batch.before:
        return order
    result = _put_off(batch, order)
    original = list(range(batch.num_columns))
    return result if all(result[column] == column for column in batch.pinned) else original


def in_allowed_orders(batch: PlanInput, fields: np.ndarray) -> np.ndarray:
    """``in_allowed_order`` for the field order of each row; int32 ``[num_rows, num_columns]``."""
    if not batch.before or not len(fields):
        return fields
    orders, row_of = np.unique(fields, axis=0, return_inverse=True)
    allowed = np.array([in_allowed_order(batch, order) for order in orders.tolist()], dtype=np.int32)
    repaired: np.ndarray = allowed[row_of.reshape(-1)]
    return repaired


def _put_off(batch: PlanInput, order: list[int]) -> list[int]:
    needs: list[set[int]] = [set() for _ in order]
    for first, second in batch.before:
        needs[second].add(first)
    waiting, result, done = list(order), [], set[int]()
    while waiting:
        column = next(column for column in waiting if needs[column] <= done)
        waiting.remove(column)
        result.append(column)
        done.add(column)
    return result

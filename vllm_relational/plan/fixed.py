"""The fixed field order (arXiv 2403.05821 v1, section 3.2): one column order for all rows, then sorted rows.

A column goes first when its cells are long and few distinct ones occur: score = average length / cardinality, here
with lengths in tokens of the real prompt. Sorting the rows in that column order puts equal prefixes side by side.
"""

from __future__ import annotations

import numpy as np

from vllm_relational import native
from vllm_relational.plan.published import same_fields
from vllm_relational.records import Plan, PlanInput


def plan_fixed(batch: PlanInput) -> Plan:
    """Columns by average tokens a cell / cardinality, descending; ties and pinned columns as published."""
    order = fixed_field_order(batch)
    return same_fields("fixed", native.sort_rows(batch.codes, np.asarray(order, dtype=np.int32)), order)


def fixed_field_order(batch: PlanInput) -> list[int]:
    """Column numbers in planned order; pinned columns keep their published position."""
    scores = column_scores(batch)
    movable = [column for column in range(batch.num_columns) if column not in batch.pinned]
    ranked = iter(sorted(movable, key=lambda column: (-scores[column], column)))
    return [column if column in batch.pinned else next(ranked) for column in range(batch.num_columns)]


def column_scores(batch: PlanInput) -> np.ndarray:
    """float64 ``[num_columns]``: average tokens a cell over the rows / number of distinct values among them."""
    scores = np.zeros(batch.num_columns)
    for column, (codes, tokens) in enumerate(zip(batch.codes, batch.cell_tokens, strict=True)):
        counts = np.bincount(codes, minlength=len(tokens))
        cardinality = np.count_nonzero(counts)
        if cardinality:
            scores[column] = float(counts @ tokens) / len(codes) / cardinality
    return scores

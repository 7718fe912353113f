"""One column order for all rows, then sorted rows; two scores for the columns.

``fixed`` (arXiv 2403.05821 v1, section 3.2): a column goes first when its cells are long and few distinct ones occur:
score = average length / cardinality, here with lengths in tokens of the real prompt.

``fixed_v2`` uses the score that the authors' published code of v2 falls back to: squared average length x expected
repeats, average length^2 x (rows / cardinality - 1). It is 0 for a column without repeats.

Sorting the rows in that column order puts equal prefixes side by side.
"""

from __future__ import annotations

import numpy as np

from vllm_relational import native
from vllm_relational.plan.constraints import in_allowed_order
from vllm_relational.plan.original import same_fields
from vllm_relational.records import Plan, PlanInput


def plan_fixed(batch: PlanInput) -> Plan:
    """Columns by average tokens a cell / cardinality, descending; ties and pinned columns in original order."""
    return _plan("fixed", batch, column_scores(batch))


def plan_fixed_v2(batch: PlanInput) -> Plan:
    """Columns by average tokens^2 x (rows / cardinality - 1), descending; ties and pinned columns in original order."""
    return _plan("fixed_v2", batch, repeat_scores(batch))


def _plan(name: str, batch: PlanInput, scores: np.ndarray) -> Plan:
    order = in_allowed_order(batch, fixed_field_order(batch, scores))
    return same_fields(name, native.sort_rows(batch.codes, np.asarray(order, dtype=np.int32)), order)


def fixed_field_order(batch: PlanInput, scores: np.ndarray | None = None) -> list[int]:
    """Column numbers by descending score (default: ``column_scores``); pinned columns keep their original position."""
    ranks = column_scores(batch) if scores is None else scores
    movable = [column for column in range(batch.num_columns) if column not in batch.pinned]
    ranked = iter(sorted(movable, key=lambda column: (-ranks[column], column)))
    return [column if column in batch.pinned else next(ranked) for column in range(batch.num_columns)]


def column_scores(batch: PlanInput) -> np.ndarray:
    """float64 ``[num_columns]``: average tokens a cell over the rows / number of distinct values among them."""
    scores = np.zeros(batch.num_columns)
    for column, (codes, tokens) in enumerate(zip(batch.codes, batch.cell_tokens, strict=True)):
        average, cardinality = _average_and_cardinality(codes, tokens)
        if cardinality:
            scores[column] = average / cardinality
    return scores


def repeat_scores(batch: PlanInput) -> np.ndarray:
    """float64 ``[num_columns]``: the ``repeat_score`` of each column."""
    pairs = zip(batch.codes, batch.cell_tokens, strict=True)
    return np.array([repeat_score(codes, tokens) for codes, tokens in pairs], dtype=np.float64)


def repeat_score(codes: np.ndarray, tokens: np.ndarray) -> float:
    """Average tokens^2 x (rows / cardinality - 1) of one column over some rows; 0 for no rows."""
    average, cardinality = _average_and_cardinality(codes, tokens)
    return average**2 * (len(codes) / cardinality - 1) if cardinality else 0.0


def _average_and_cardinality(codes: np.ndarray, tokens: np.ndarray) -> tuple[float, int]:
    counts = np.bincount(codes, minlength=len(tokens))
    return float(counts @ tokens) / max(len(codes), 1), int(np.count_nonzero(counts))

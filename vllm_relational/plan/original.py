"""The order in which the table and the question stand: the baseline of every comparison."""

from __future__ import annotations

import numpy as np

from vllm_relational.records import Plan, PlanInput


def plan_original(batch: PlanInput) -> Plan:
    """Rows in input order, fields in original order."""
    return same_fields("original", np.arange(batch.num_rows, dtype=np.int64), list(range(batch.num_columns)))


def same_fields(planner: str, rows: np.ndarray, order: list[int]) -> Plan:
    """A plan in which all rows share one field order; the order is stored once."""
    fields = np.broadcast_to(np.asarray(order, dtype=np.int32), (len(rows), len(order)))
    return Plan(planner=planner, rows=rows, fields=fields)

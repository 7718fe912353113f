"""The tree planner: every row has its own field order, chosen so that all rows together form the smallest prefix tree.

The search is native code (csrc/planner/tree_planner.h explains it). Its plan never serves less than the original
order, the fixed orders and GGR's plan, counted in whole blocks of what each row shares with the row before; with
``PlanInput.overlaps`` also the tokens that differing cells begin with alike: a few hits in whole cells may go for more
of those.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vllm_relational import native
from vllm_relational.plan.fixed import plan_fixed, plan_fixed_v2
from vllm_relational.plan.ggr import ggr_fields, plan_ggr
from vllm_relational.plan.objective import hit_tokens
from vllm_relational.plan.original import plan_original
from vllm_relational.records import Plan, PlanInput, TokenSegments, ValueOverlaps

# One pass of the local search compares a row with a few others for each of its cells, and a comparison reads a row.
MIN_SECONDS, SECONDS_PER_READ, COLUMNS_WORTH_A_ROW = 0.1, 5e-8, 16
# Large tables settle for less.
SECONDS, SECONDS_PER_CELL = 0.5, 7e-7
# Others may search longer where that pays: answering 1,000 rows a second takes 1 ms a row, of which planning may take
# 5 %, or a second where the rows are few. No search takes longer than the last.
ALLOWED_SECONDS, ALLOWED_A_ROW, MAX_SECONDS = 1.0, 0.05e-3, 3.0
# Computing a token takes 0.1 ms (8 billion parameters on a mid-sized GPU): a search that gains less than this many a
# second does not pay.
TOKENS_PER_SECOND = 10_000.0


def default_budget(batch: PlanInput) -> float:
    """Seconds of local search on one core that it may take at most; all cores share the work.

    For most tables enough to settle. Where it gains little it ends earlier, see ``TOKENS_PER_SECOND``.
    """
    cells = batch.codes.size
    passes = SECONDS_PER_READ * cells * (batch.num_columns + COLUMNS_WORTH_A_ROW)
    settled = min(MIN_SECONDS + passes, SECONDS + SECONDS_PER_CELL * cells)
    allowed = max(ALLOWED_SECONDS, ALLOWED_A_ROW * batch.num_rows)
    return min(max(settled, allowed), MAX_SECONDS)


def value_overlaps(cells: Iterable[TokenSegments]) -> tuple[ValueOverlaps, ...]:
    """``PlanInput.overlaps`` for the token ids of the cells, per column; empty without native code."""
    if not native.AVAILABLE:
        return ()
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # sorting holds no lock
        return tuple(threads.map(lambda column: native.sort_values(column.tokens, column.offsets), cells))


def plan_tree(batch: PlanInput, budget_seconds: float | None = None, seed: int = 0) -> Plan:
    """Fields in an order per row, rows in depth-first order of the prefix tree.

    ``budget_seconds`` is for the local search (default: ``default_budget``); the starting trees come on top. It is
    counted in work, not in time: the same batch, budget and seed give the same plan on every machine.
    With columns pinned in the middle of the row all rows get one field order, the best that hill climbing finds, or
    GGR's. Without native code there is no search: the best of ``fixed``, ``fixed_v2``, ``ggr`` and ``original`` is
    taken, under its own name.
    """
    if not native.AVAILABLE:
        plans = [plan_fixed(batch), plan_fixed_v2(batch), plan_ggr(batch), plan_original(batch)]
        return max(plans, key=lambda plan: hit_tokens(batch, plan))
    budget, min_gain = budget_seconds, 0.0
    if budget is None:
        budget, min_gain = default_budget(batch), TOKENS_PER_SECOND
    rows, fields = native.plan_tree(batch, budget, seed, others=[_ggr(batch)], min_gain=min_gain)
    return Plan(planner="tree", rows=rows, fields=fields)


def _ggr(batch: PlanInput) -> Plan:
    """GGR's field orders, rows as they stand: native code sorts them by itself."""
    return Plan("ggr", np.arange(batch.num_rows), ggr_fields(batch))

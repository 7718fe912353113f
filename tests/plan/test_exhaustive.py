"""The best plan: by brute force on tiny tables, and never below any planner."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from how_many import examples
from hypothesis import given, settings
from plan_oracles import trie_hit_tokens
from random_batches import assert_valid, batch_of, batches

from vllm_relational.plan import PLANNERS, plan_exhaustive
from vllm_relational.plan.ggr import GgrOptions, plan_ggr
from vllm_relational.plan.objective import hit_tokens
from vllm_relational.records import Plan, PlanInput, RelationalError


def best_by_brute_force(batch: PlanInput) -> int:
    """All field orders of all rows: (columns!) ^ rows plans."""
    orders = [
        order
        for order in itertools.permutations(range(batch.num_columns))
        if all(order[column] == column for column in batch.pinned)
    ]
    plans = itertools.product(orders, repeat=batch.num_rows)
    rows = np.arange(batch.num_rows)
    fields = (np.array(plan, np.int32).reshape(-1, batch.num_columns) for plan in plans)
    return max(trie_hit_tokens(batch, Plan("all", rows, order)) for order in fields)


@settings(max_examples=examples(40))
@given(batches(max_rows=4, max_columns=3))
def test_it_is_the_optimum(batch):
    assert hit_tokens(batch, plan_exhaustive(batch)) == best_by_brute_force(batch)


@given(batches(max_rows=6, max_columns=4, lengths=(0, 50)))
def test_no_planner_is_better(batch):
    best = hit_tokens(batch, plan_exhaustive(batch))
    for name, plan in PLANNERS.items():
        assert hit_tokens(batch, plan(batch)) <= best, name
    assert hit_tokens(batch, plan_ggr(batch, GgrOptions(early_stop=0, distinct_threshold=1))) <= best


@given(batches())
def test_plans_are_valid(batch):
    assert_valid(batch, plan_exhaustive(batch))


def test_rows_that_share_different_columns_take_different_orders():
    # Rows 0, 1 share column 0, rows 2, 3 column 1: no fixed order serves both.
    batch = batch_of([[0, 0, 1, 2], [0, 1, 2, 2]], [[9, 9, 9], [9, 9, 9]])
    plan = plan_exhaustive(batch)
    assert hit_tokens(batch, plan) == 18
    assert {tuple(fields) for fields in plan.fields.tolist()} == {(0, 1), (1, 0)}


def test_equal_rows_count_once_toward_the_limit():
    batch = batch_of([[0] * 100, [0, 1] * 50], [[3], [1, 2]])
    assert hit_tokens(batch, plan_exhaustive(batch)) == 99 * 3 + 49 * 3


@pytest.mark.parametrize("shape", [(7, 2), (2, 11)])
def test_larger_tables_are_refused_with_the_way_out(shape):
    batch = batch_of([list(range(shape[1]))] * shape[0], [[1] * shape[1]] * shape[0])
    with pytest.raises(RelationalError, match=r"exponential time.*exceed 10 x 6; use another order"):
        plan_exhaustive(batch)


def test_no_rows_and_no_columns():
    assert plan_exhaustive(batch_of([[], []], [[], []])).fields.shape == (0, 2)
    assert plan_exhaustive(PlanInput(np.empty((0, 3), np.int32), ())).rows.tolist() == [0, 1, 2]

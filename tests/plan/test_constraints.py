"""Columns that keep their order, and columns that count more or less."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_batches import batch_of, batches

from vllm_relational import native
from vllm_relational.plan import PLANNERS, plan_exhaustive, plan_fixed, plan_ggr, plan_tree, weighted
from vllm_relational.plan.constraints import in_allowed_order
from vllm_relational.plan.objective import hit_tokens
from vllm_relational.records import PlanInput, ValueOverlaps


@st.composite
def constrained(draw: st.DrawFn) -> PlanInput:
    batch = draw(batches(max_rows=6, max_columns=5))
    column = st.integers(0, batch.num_columns - 1)
    pairs = draw(st.sets(st.tuples(column, column).filter(lambda pair: pair[0] < pair[1]), max_size=4))
    return dataclasses.replace(batch, before=tuple(sorted(pairs)))


@given(constrained())
def test_every_planner_keeps_the_order_and_the_pins(batch):
    for name, plan in PLANNERS.items():
        for fields in plan(batch).fields.tolist():
            assert all(fields.index(first) < fields.index(second) for first, second in batch.before), name
            assert all(fields[column] == column for column in batch.pinned), name


@given(constrained())
def test_no_planner_beats_the_exhaustive_one_under_constraints(batch):
    best = hit_tokens(batch, plan_exhaustive(batch))
    for name, plan in PLANNERS.items():
        assert hit_tokens(batch, plan(batch)) <= best, name


@pytest.mark.skipif(not native.AVAILABLE, reason="native code was not built")
@given(constrained())
def test_tree_is_never_below_the_others_under_constraints(batch):
    tree = hit_tokens(batch, plan_tree(batch))
    assert tree >= max(hit_tokens(batch, plan(batch)) for plan in (plan_fixed, plan_ggr))


@given(constrained(), st.randoms())
def test_columns_are_put_off_and_no_other_changes_its_place_among_the_rest(batch, random):
    order = random.sample(range(batch.num_columns), batch.num_columns)
    free = dataclasses.replace(batch, pinned=frozenset())
    result = in_allowed_order(free, order)
    assert sorted(result) == sorted(order)
    unbound = [column for column in range(batch.num_columns) if all(column not in pair for pair in batch.before)]
    assert [c for c in result if c in unbound] == [c for c in order if c in unbound]
    assert in_allowed_order(free, result) == result


@pytest.mark.skipif(not native.AVAILABLE, reason="native code was not built")
def test_rows_still_choose_their_own_order_of_the_rest():
    # Column 0 must stand before column 1; columns 2 and 3 share for different rows.
    batch = batch_of([[0] * 4, [0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 2, 2]], [[5], [1] * 4, [9] * 3, [9] * 3])
    plan = plan_tree(dataclasses.replace(batch, before=((0, 1), (0, 2), (0, 3))))
    assert (plan.fields[:, 0] == 0).all()
    assert hit_tokens(batch, plan) == 3 * 5 + 9 + 9


# -------------------------------------------------------------------------------------------------------- weights
def test_a_weight_draws_a_column_to_the_front_and_zero_sends_it_back():
    batch = batch_of([[0, 0, 1, 1], [0, 1, 0, 1]], [[10, 10], [9, 9]])
    assert plan_fixed(batch).fields[0].tolist() == [0, 1]
    assert plan_fixed(weighted(batch, {1: 2.0})).fields[0].tolist() == [1, 0]
    assert plan_fixed(weighted(batch, {0: 0.0})).fields[0].tolist() == [1, 0]


def test_weighted_tokens_stay_whole_and_none_vanishes():
    batch = dataclasses.replace(
        batch_of([[0, 1, 2]], [[0, 1, 10]]), header_tokens=5, block_size=16,
        overlaps=(ValueOverlaps(np.arange(3, dtype=np.int32), np.array([0, 0, 1])),),
    )  # fmt: skip
    light = weighted(batch, {0: 0.25})
    assert light.cell_tokens[0].tolist() == [0, 1, 2]
    assert light.overlaps[0].shared.tolist() == [0, 0, 0]
    assert (light.header_tokens, light.block_size) == (0, 1)
    assert weighted(batch, {0: 1.0}) is batch


def test_a_long_cell_times_a_great_weight_stays_what_native_code_takes():
    batch = batch_of([[0, 1]], [[5_000_000, 1]])
    assert weighted(batch, {0: 1000.0}).cell_tokens[0].tolist() == [2**30 - 1, 1000]

"""Greedy Group Recursion: the choices of Algorithm 1, the early stops, validity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_batches import assert_valid, batch_of, batches

from vllm_relational.plan import plan_fixed, plan_fixed_v2, plan_ggr
from vllm_relational.plan.fixed import repeat_scores
from vllm_relational.plan.ggr import ALGORITHM_1, GgrOptions, _Recursion, dependent_units, ggr_fields
from vllm_relational.plan.objective import depth_first_rows, hit_tokens
from vllm_relational.records import PlanInput

UNLIMITED = GgrOptions(early_stop=0, row_stop=10**9, col_stop=10**9, distinct_threshold=1.0)
options = st.builds(
    GgrOptions,
    early_stop=st.sampled_from([0, 10, 100, 100_000]),
    row_stop=st.integers(1, 5),
    col_stop=st.integers(1, 3),
    distinct_threshold=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    split_rows=st.sampled_from([None, 1, 3]),
)


def orders(batch: PlanInput, options: GgrOptions = UNLIMITED) -> list[list[int]]:
    """The field order of each row, by row number."""
    plan = plan_ggr(batch, options)
    return plan.fields[np.argsort(plan.rows)].tolist()


@given(batches(), options)
def test_plans_are_valid(batch, options):
    assert_valid(batch, plan_ggr(batch, options))
    assert_valid(batch, plan_ggr(batch, UNLIMITED))


@given(batches(), options)
def test_the_same_batch_gives_the_same_plan(batch, options):
    one, two = plan_ggr(batch, options), plan_ggr(batch, options)
    assert np.array_equal(one.rows, two.rows) and np.array_equal(one.fields, two.fields)


@given(batches(), options)
def test_rows_come_out_in_depth_first_order(batch, options):
    plan = plan_ggr(batch, options)
    by_row = plan.fields[np.argsort(plan.rows)]
    assert np.array_equal(plan.rows, depth_first_rows(batch, by_row))


def test_the_value_with_the_greatest_hit_count_goes_first_for_its_rows():
    # Column 0, value 0: 3^2 x 2 = 18. Column 1, value 0: 5^2 x 1 = 25, rows 0 and 3, then column 0 for rows 1 and 2.
    batch = batch_of([[0, 0, 0, 1], [0, 1, 2, 0]], [[3, 3], [5, 5, 5]])
    assert orders(batch) == [[1, 0], [0, 1], [0, 1], [1, 0]]


def test_hits_are_squared_lengths_times_repeats():
    # One repeat of length 9 (81) beats eight of length 3 (72): rows 0 and 9 lead with column 1.
    batch = batch_of([[0] * 9 + [1], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]], [[3, 3], [9] + [1] * 8])
    assert [order[0] for order in orders(batch)] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_dependent_columns_go_together_and_count_together():
    # Columns 0 and 2 map one to one: 3^2 + 3^2 = 18 > 4^2 = 16 of column 1.
    batch = batch_of([[0, 0, 1, 2], [0, 1, 1, 2], [1, 1, 2, 0]], [[3, 3, 3], [4, 4, 4], [3, 3, 3]])
    assert orders(batch)[:2] == [[0, 2, 1], [0, 2, 1]]


@pytest.mark.parametrize(
    ("columns", "units"),
    [
        ([[0, 0, 1], [5, 5, 2]], [(0, 1)]),
        ([[0, 0, 1], [0, 1, 2]], [(0,), (1,)]),  # one way only
        ([[0, 0], [1, 1], [0, 1]], [(0, 1), (2,)]),  # constants
        ([[0, 1], [0, 0], [1, 0]], [(0, 2), (1,)]),
    ],
)
def test_dependence_is_exactly_one_to_one(columns, units):
    batch = batch_of(columns, [[1] * 6] * len(columns))
    assert dependent_units(batch, range(len(columns))) == units


def test_a_hit_count_below_the_early_stop_ends_in_the_fixed_order_with_the_v2_score():
    batch = batch_of([[0, 0, 0, 1], [0, 1, 2, 0]], [[3, 3], [5, 5, 5]])
    fixed = plan_fixed_v2(batch).fields[0].tolist()
    assert orders(batch, GgrOptions(early_stop=26, distinct_threshold=1)) == [fixed] * 4
    assert orders(batch, GgrOptions(early_stop=25, distinct_threshold=1)) != [fixed] * 4


def test_row_depth_ends_the_recursion():
    batch = batch_of([[0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]], [[3, 4, 5], [9] * 6])
    first = [order[0] for order in orders(batch, GgrOptions(early_stop=0, row_stop=1, distinct_threshold=1))]
    assert first[4:] == [0, 0]  # value 2 is the longest; the others fall back


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, [1, 0]), (1.0, [0, 1])])
def test_columns_with_too_many_distinct_values_go_last(threshold, expected):
    # Column 0: 3 distinct values of 4, but one long repeat; column 1: 2 distinct values.
    batch = batch_of([[0, 0, 1, 2], [0, 0, 1, 1]], [[90, 1, 1], [2, 2]])
    assert orders(batch, GgrOptions(early_stop=0, distinct_threshold=threshold))[0] == expected


def test_split_tables_are_planned_part_by_part():
    # The whole leads with column 1 (5^2 x 1 > 3^2 x 2); in the halves no value of column 1 repeats.
    batch = batch_of([[0, 0, 0, 1], [0, 1, 2, 0]], [[3, 3], [5, 5, 5]])
    split = GgrOptions(early_stop=0, distinct_threshold=1, split_rows=2)
    assert orders(batch)[0] == [1, 0]
    assert orders(batch, split)[:2] == [[0, 1], [0, 1]]


def test_the_default_options_are_the_published_ones():
    published = {"early_stop": 100_000, "row_stop": 4, "col_stop": 2, "distinct_threshold": 0.7}
    assert GgrOptions() == GgrOptions(**published, split_rows=2_000)
    assert GgrOptions(**published, split_rows=None) == ALGORITHM_1


def repeats_in_few_rows(num_rows: int) -> PlanInput:
    """A key of 12 values, and beside it a long text for each 100 rows: too many for a stop after four values."""
    rows = np.arange(num_rows)
    few, many = rows % 12, rows // 100
    return PlanInput(
        np.array([few, many], np.int32), (np.full(12, 3, np.int64), np.full(num_rows // 100 + 1, 50, np.int64))
    )


@pytest.mark.parametrize(("num_rows", "parts"), [(2_000, 1), (2_001, 2), (4_000, 2), (4_001, 3)])
def test_the_authors_variant_cuts_the_sorted_rows_in_halves_of_at_most_2000(num_rows, parts):
    recursion = _Recursion(repeats_in_few_rows(num_rows), GgrOptions())
    cut = recursion._parts()
    assert len(cut) == parts and max(map(len, cut)) <= 2_000
    assert sorted(np.concatenate(cut).tolist()) == list(range(num_rows))
    if parts > 1:
        keys = recursion.batch.codes[recursion.sorted_by][:, np.concatenate(cut)].T.tolist()
        assert keys == sorted(keys)


@given(batches(), options)
def test_the_fields_by_row_number_are_those_of_the_plan(batch, options):
    plan = plan_ggr(batch, options)
    assert np.array_equal(ggr_fields(batch, options)[plan.rows], plan.fields)


def test_columns_are_one_unit_if_they_split_the_rows_alike_whatever_their_codes():
    # Columns 0 and 2 split the rows alike, under other codes; some codes have no row.
    batch = batch_of([[4, 1, 4, 0, 1], [0, 0, 1, 1, 1], [0, 3, 0, 2, 3]], [[1] * 6, [1] * 3, [1] * 4])
    assert dependent_units(batch, [0, 1, 2]) == [(0, 2), (1,)]


@given(batches(), options)
def test_up_to_2000_rows_it_is_algorithm_1(batch, options):
    whole, cut = replace(options, split_rows=None), replace(options, split_rows=2_000)
    one, two = plan_ggr(batch, whole), plan_ggr(batch, cut)
    assert np.array_equal(one.rows, two.rows) and np.array_equal(one.fields, two.fields)


def test_parts_reach_the_groups_that_the_row_depth_hides_from_the_whole():
    # 16 kinds of 1,000 rows; in even kinds the second column repeats, in odd ones the third. Row depth 4 leaves twelve
    # kinds of the whole to one order for all; a part of at most 2,000 sorted rows holds two or three kinds.
    kind, within = np.arange(16_000) // 1_000, np.arange(16_000) % 1_000
    own = 20 + np.arange(16_000) % 7_000
    second, third = (np.where(kind % 2 == odd, within % 20, own) for odd in (0, 1))
    codes = np.array([kind, second, third], np.int32)
    batch = PlanInput(codes, tuple(np.full(size, 60, np.int64) for size in (16, 7_020, 7_020)))
    whole, parts = (hit_tokens(batch, plan_ggr(batch, given)) for given in (ALGORITHM_1, GgrOptions()))
    assert parts > 1.1 * whole


def test_different_orders_beat_one_order_for_all():
    batch = batch_of([[0, 0, 1, 2], [0, 1, 2, 2]], [[9, 9, 9], [9, 9, 9]])
    fixed = max(hit_tokens(batch, plan_fixed(batch)), hit_tokens(batch, plan_fixed_v2(batch)))
    assert hit_tokens(batch, plan_ggr(batch, UNLIMITED)) == 18 > fixed


def test_the_v2_score_is_squared_average_length_times_expected_repeats():
    batch = batch_of([[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]], [[2, 6], [8] * 4, [1]])
    assert repeat_scores(batch).tolist() == [9.0, 0.0, 3.0]
    assert plan_fixed_v2(batch).fields[0].tolist() == [0, 2, 1]


def test_no_rows_one_row_one_column():
    assert plan_ggr(batch_of([[], []], [[], []])).fields.shape == (0, 2)
    assert plan_ggr(batch_of([[0], [0]], [[1], [2]])).fields.tolist() == [[0, 1]]
    assert plan_ggr(batch_of([[1, 0, 1]], [[1, 1]])).rows.tolist() == [1, 0, 2]
    assert plan_ggr(PlanInput(np.empty((0, 2), np.int32), ())).rows.tolist() == [0, 1]

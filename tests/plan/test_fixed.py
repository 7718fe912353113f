"""The fixed order: long, repetitive columns first, equal prefixes side by side."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_batches import segments_of

from vllm_relational import native
from vllm_relational.plan import PLANNERS, plan_fixed, plan_original, planner
from vllm_relational.records import PlanInput, PromptSegments, RelationalError


def batch_of(columns: list[list[int]], tokens: list[list[int]], pinned: tuple[int, ...] = ()) -> PlanInput:
    codes = np.array(columns, np.int32).reshape(len(columns), len(columns[0]) if columns else 0)
    return PlanInput(codes, tuple(np.array(lengths, np.int64) for lengths in tokens), frozenset(pinned))


def field_order(batch: PlanInput) -> list[int]:
    return plan_fixed(batch).fields[0].tolist()


@st.composite
def batches(draw):
    """A batch and its segments: every cell has tokens of its own, so only equal cells share tokens."""
    num_rows = draw(st.integers(1, 10))
    num_columns = draw(st.integers(1, 4))
    cell = st.integers(0, 3)
    columns = [draw(st.lists(cell, min_size=num_rows, max_size=num_rows)) for _ in range(num_columns)]
    tokens = [draw(st.lists(st.integers(1, 5), min_size=4, max_size=4)) for _ in range(num_columns)]
    pinned = draw(st.sets(st.integers(0, num_columns - 1)))
    return batch_of(columns, tokens, tuple(pinned))


def test_longer_columns_first_at_equal_cardinality():
    assert field_order(batch_of([[0, 1], [0, 1]], [[1, 1], [9, 9]])) == [1, 0]


def test_repetitive_columns_first_at_equal_length():
    assert field_order(batch_of([[0, 1, 2], [0, 0, 1]], [[5, 5, 5], [5, 5]])) == [1, 0]


def test_average_is_over_rows_not_over_values():
    # Column 0: lengths 9, 1, 1, 1 (average 3); column 1: 1, 1, 1, 9 by value but 9 in three rows (average 7).
    assert field_order(batch_of([[0, 1, 1, 1], [0, 1, 1, 1]], [[9, 1], [1, 9]])) == [1, 0]


def test_values_outside_the_batch_do_not_count():
    assert field_order(batch_of([[0, 1], [0, 0]], [[3, 3], [2, 999]])) == [1, 0]


def test_ties_stay_original_order():
    assert field_order(batch_of([[0, 1]] * 3, [[4, 4]] * 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("pinned", "expected"), [((), [2, 1, 0]), ((0,), [0, 2, 1]), ((1,), [2, 1, 0]), ((2,), [1, 0, 2])]
)
def test_pinned_columns_keep_their_position(pinned, expected):
    assert field_order(batch_of([[0, 1]] * 3, [[1, 1], [2, 2], [3, 3]], pinned)) == expected


@given(batches())
def test_equal_prefixes_are_adjacent(batch):
    plan = plan_fixed(batch)
    rows = [tuple(batch.codes[plan.fields[0], row]) for row in plan.rows]
    for depth in range(1, batch.num_columns + 1):
        prefixes = [row[:depth] for row in rows]
        runs = 1 + sum(a != b for a, b in itertools.pairwise(prefixes))
        assert runs == len(set(prefixes))


@given(batches(), st.sampled_from(sorted(PLANNERS)))
def test_every_plan_is_valid(batch, name):
    plan = planner(name)(batch)
    assert plan.planner == name
    assert sorted(plan.rows.tolist()) == list(range(batch.num_rows))
    assert plan.fields.shape == (batch.num_rows, batch.num_columns)
    for fields in plan.fields.tolist():
        assert sorted(fields) == list(range(batch.num_columns))
        assert all(fields[column] == column for column in batch.pinned)


@given(batches())
def test_rows_with_equal_values_keep_their_order(batch):
    plan = plan_fixed(batch)
    for a, b in zip(plan.rows, plan.rows[1:], strict=False):
        if (batch.codes[:, a] == batch.codes[:, b]).all():
            assert a < b


@given(batches())
def test_with_an_endless_cache_each_distinct_prefix_is_computed_once(batch):
    plan = plan_fixed(batch)
    segments = segments_of(batch, header=(1, 2), tail=(3,))
    hits, lengths = native.simulate_prefix_cache(segments, batch.codes, plan, block_size=1, capacity_blocks=0)
    prompts = [
        tuple(token for column in fields for token in cell_of(segments, column, batch.codes[column, row]))
        for row, fields in zip(plan.rows, plan.fields.tolist(), strict=True)
    ]
    prefixes = {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}
    # The header once, every row prefix once; the tail after each distinct row; the last token of every prompt always.
    repeats = len(prompts) - len(set(prompts))
    assert int((lengths - hits).sum()) == len(segments.header) + len(prefixes) + len(set(prompts)) + repeats


def cell_of(segments: PromptSegments, column: int, code: int) -> list[int]:
    cells = segments.cells[column]
    return cells.tokens[cells.offsets[code] : cells.offsets[code + 1]].tolist()


def test_no_rows():
    batch = batch_of([[], []], [[], []])
    assert plan_fixed(batch).rows.tolist() == []
    assert plan_original(batch).fields.shape == (0, 2)


def test_original_is_the_input_order():
    plan = plan_original(batch_of([[1, 0], [0, 1]], [[1, 1], [9, 9]]))
    assert plan.rows.tolist() == [0, 1]
    assert plan.fields.tolist() == [[0, 1], [0, 1]]


def test_an_unknown_planner_lists_those_there_are():
    with pytest.raises(RelationalError, match=f"no order 'best': use one of {', '.join(PLANNERS)}"):
        planner("best")


def test_a_budget_goes_to_the_planner_that_searches():
    batch = batch_of([[0, 1, 0], [0, 1, 2]], [[5, 7], [1, 1, 1]])
    assert planner("tree", 0.01)(batch).rows.tolist() == planner("tree")(batch).rows.tolist()
    assert planner("tree", 0.01).reads_overlaps and not planner("fixed").reads_overlaps


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e12])
def test_a_budget_that_cannot_be_kept_is_refused(seconds):
    with pytest.raises(RelationalError, match="give 0 to 86,400"):
        planner("tree", seconds)


def test_a_planner_that_does_not_search_takes_no_budget():
    with pytest.raises(RelationalError, match=r"order 'fixed' does not search and takes no budget: .* 'tree'"):
        planner("fixed", 1.0)

"""Groups of groups keep their rows, and each row knows by which step it came."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.dedup import distinct_rows, origins, part_of, regrouped, row_counts, source_rows
from vllm_relational.records import Distinct, Grouping


@st.composite
def groupings(draw):
    """Exact groups, joined twice at random."""
    codes = np.array([draw(st.lists(st.integers(0, 5), min_size=1, max_size=14))], np.int32)
    asked = np.array([draw(st.booleans()) for _ in codes[0]], bool)
    level = distinct_rows(codes, asked)
    levels = {"exact": level.inverse}
    for name in ("normalized", "semantic"):
        level = joined(level, [draw(st.integers(0, 2)) for _ in range(level.num_distinct)])
        levels[name] = level.inverse
    return Grouping(level, levels)


def joined(fine: Distinct, wanted: list[int]) -> Distinct:
    kept, group = np.unique(np.array(wanted, np.int64), return_inverse=True)
    rows = [fine.first_rows[np.flatnonzero(group == place)[-1]] for place in range(len(kept))]
    return regrouped(fine, group, np.array(rows, np.int64))


@given(groupings())
def test_each_row_belongs_to_the_group_of_the_row_asked_for_it(grouping):
    distinct, source = grouping.distinct, source_rows(grouping.distinct)
    assert (np.diff(distinct.first_rows) > 0).all()
    assert np.array_equal(distinct.inverse[distinct.first_rows], np.arange(distinct.num_distinct))
    for row, group in enumerate(distinct.inverse.tolist()):
        assert source[row] == (-1 if group == -1 else distinct.first_rows[group])
    assert row_counts(distinct).sum() == (distinct.inverse >= 0).sum()


@given(groupings())
def test_a_row_is_joined_by_the_first_step_after_which_it_is_with_the_row_asked(grouping):
    source = source_rows(grouping.distinct)
    for row, place in enumerate(origins(grouping).tolist()):
        together = [level[row] == level[source[row]] for level in grouping.levels.values()]
        expected = -1 if source[row] in (-1, row) else together.index(True)
        assert place == expected


@given(groupings(), st.sets(st.integers(0, 13)))
def test_some_rows_keep_their_groups(grouping, chosen):
    rows = np.array(sorted(row for row in chosen if row < len(grouping.distinct.inverse)), np.int64)
    part = part_of(grouping, rows)
    before, after = grouping.distinct.inverse[rows], part.distinct.inverse
    assert np.array_equal(before == -1, after == -1)
    assert np.array_equal(before[:, None] == before, after[:, None] == after)
    asked = rows[part.distinct.first_rows]
    assert set(grouping.distinct.first_rows) & set(rows) <= set(asked)
    assert all(np.array_equal(level[rows], part.levels[name]) for name, level in grouping.levels.items())


@pytest.mark.parametrize("num_rows", [0, 3])
def test_rows_that_are_all_left_out(num_rows):
    exact = distinct_rows(np.zeros((1, num_rows), np.int32), np.zeros(num_rows, bool))
    grouping = Grouping(exact, {"exact": exact.inverse})
    assert source_rows(exact).tolist() == origins(grouping).tolist() == [-1] * num_rows

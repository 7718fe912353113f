"""Equal rows form one group; what is known of a group goes back to all its rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.dedup import distinct_rows, scatter


@st.composite
def tables(draw):
    """Codes as a list of columns; -1 is null."""
    num_rows = draw(st.integers(0, 12))
    column = st.lists(st.integers(-1, 3), min_size=num_rows, max_size=num_rows)
    columns = draw(st.lists(column, max_size=4))
    return np.array(columns, dtype=np.int32).reshape(len(columns), num_rows)


@given(tables(), st.data())
def test_groups_are_the_equal_rows_among_those_asked(codes, data):
    num_rows = codes.shape[1]
    asked = np.array(data.draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)), dtype=bool)
    rows = [tuple(row) for row in codes.T.tolist()]
    distinct = distinct_rows(codes, asked)
    seen = list(dict.fromkeys(row for row, kept in zip(rows, asked, strict=True) if kept))
    assert [rows[first] for first in distinct.first_rows] == seen
    assert distinct.inverse.tolist() == [seen.index(row) if kept else -1 for row, kept in zip(rows, asked, strict=True)]
    assert (np.diff(distinct.first_rows) > 0).all()
    assert asked[distinct.first_rows].all()


@given(tables())
def test_scattering_the_first_rows_gives_the_table(codes):
    rows = [tuple(row) for row in codes.T.tolist()]
    distinct = distinct_rows(codes)
    assert scatter([rows[first] for first in distinct.first_rows], distinct.inverse) == rows
    assert distinct.num_distinct == len(set(rows))


def test_without_columns_all_rows_are_equal():
    distinct = distinct_rows(np.empty((0, 3), np.int32))
    assert distinct.first_rows.tolist() == [0]
    assert distinct.inverse.tolist() == [0, 0, 0]


def test_rows_outside_every_group_get_none():
    distinct = distinct_rows(np.array([[5, 7, 5]], np.int32), np.array([False, True, True]))
    assert scatter(["seven", "five"], distinct.inverse) == [None, "seven", "five"]


def test_many_wide_columns_do_not_overflow():
    codes = np.tile(np.array([2**31 - 2, 2**31 - 2, 0], np.int32), (40, 1))
    assert distinct_rows(codes).inverse.tolist() == [0, 0, 1]

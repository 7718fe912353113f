"""Rows are equal where the forms of all their columns are; everything else stays as it was."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.dedup import (
    column_rules,
    distinct_rows,
    most_frequent,
    normal_codes,
    normalizer,
    regrouped,
    row_counts,
)
from vllm_relational.dedup.normalize import DEFAULT_RULES
from vllm_relational.records import NULL_CODE, EncodedTable, RelationalError
from vllm_relational.table import encode_columns

INJECTIONS = ['"; DROP TABLE x', "{braces} {{", "<|im_start|>system", "\x00\x1f", 'a"\n,b', "null", "1", "[]"]
cells = st.none() | st.sampled_from(["x", "X", " x", "x!", "y", "", " ", "é", "e\u0301", *INJECTIONS])
tables = st.integers(0, 14).flatmap(
    lambda n: st.fixed_dictionaries({name: st.lists(cells, min_size=n, max_size=n) for name in "ab"})
)
NORMAL = normalizer(DEFAULT_RULES)


def encoded(columns: dict):
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
    return encode_columns(table, list(columns))


def groups(table, rules):
    asked = (table.codes != NULL_CODE).all(axis=0)
    exact = distinct_rows(table.codes, asked)
    normal = distinct_rows(normal_codes(table, rules), asked)
    return exact, regrouped(exact, normal.inverse[exact.first_rows], most_frequent(exact, normal))


@given(tables)
def test_groups_are_the_rows_with_equal_forms(columns):
    table = encoded(columns)
    _, merged = groups(table, dict.fromkeys("ab", DEFAULT_RULES))
    rows = list(zip(columns["a"], columns["b"], strict=True))
    forms = [None if None in row else tuple(map(NORMAL, row)) for row in rows]
    for row, form in enumerate(forms):
        same = {other for other, found in enumerate(forms) if found == form} if form else set()
        inverse = merged.inverse[row]
        assert (inverse == -1) == (form is None)
        assert form is None or set(np.flatnonzero(merged.inverse == inverse)) == same


@given(tables)
def test_exact_groups_are_a_refinement(columns):
    exact, merged = groups(encoded(columns), dict.fromkeys("ab", DEFAULT_RULES))
    for group in range(exact.num_distinct):
        assert len(set(merged.inverse[exact.inverse == group])) == 1


@given(tables)
def test_the_row_asked_is_the_most_frequent_of_its_group(columns):
    exact, merged = groups(encoded(columns), dict.fromkeys("ab", DEFAULT_RULES))
    counts = row_counts(exact)
    assert (np.diff(merged.first_rows) > 0).all()
    for group, row in enumerate(merged.first_rows.tolist()):
        assert merged.inverse[row] == group
        members = np.unique(exact.inverse[merged.inverse == group])
        best = min(members, key=lambda member: (-counts[member], exact.first_rows[member]))
        assert row == exact.first_rows[best]


@given(tables)
def test_without_rules_codes_stay(columns):
    table = encoded(columns)
    assert np.array_equal(normal_codes(table, {"a": (), "b": ()}), table.codes)


def test_nulls_numbers_dates_and_lists_are_as_they_are():
    day = datetime.date(2024, 1, 2)
    table = pa.table(
        {"number": [1, None, 1], "list": [["A"], ["a"], None], "day": [day, None, day], "text": ["1", "null", None]}
    )
    encoded_table = encode_columns(table, table.column_names)
    codes = normal_codes(encoded_table, dict.fromkeys(table.column_names, DEFAULT_RULES))
    assert np.array_equal(codes, encoded_table.codes)


@pytest.mark.parametrize(
    ("chosen", "rules"),
    [
        ({}, {"a": DEFAULT_RULES, "b": DEFAULT_RULES}),
        ({"a": ("case",)}, {"a": ("case",), "b": ()}),
        ({"*": ("case",)}, {"a": ("case",), "b": ("case",)}),
        ({"*": ("default", "stem"), "b": ("exact",)}, {"a": (*DEFAULT_RULES, "stem"), "b": ()}),
    ],
)
def test_rules_by_column(chosen, rules):
    assert column_rules(("a", "b"), chosen) == rules


def test_a_column_that_the_prompt_does_not_use_is_refused():
    with pytest.raises(RelationalError, match="'c', which the prompt does not use"):
        column_rules(("a", "b"), {"c": ("case",)})


def test_what_is_quoted_in_json_but_no_text_stays_as_it_is():
    written = EncodedTable(("day",), np.array([[0, 1]], np.int32), (('"2020-01-01T00Z"', '"2020-01-01t00z"'),))
    assert normal_codes(written, {"day": DEFAULT_RULES}).tolist() == [[0, 0]]
    table = replace(written, is_text=(False,))
    assert np.array_equal(normal_codes(table, {"day": DEFAULT_RULES}), table.codes)

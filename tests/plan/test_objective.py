"""What a plan is worth, against slow and plain counts."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_oracles import phc, trie_hit_tokens
from random_batches import batch_of, planned_batches, segments_of

from vllm_relational import native
from vllm_relational.plan import plan_fixed, plan_original
from vllm_relational.plan.characters import character_table, hit_characters, joined_rows
from vllm_relational.plan.objective import (
    depth_first_rows,
    hit_tokens,
    repeated_share,
    row_hit_tokens,
    total_tokens,
)
from vllm_relational.records import Plan, PlanInput
from vllm_relational.table.encode import encode_columns


@given(planned_batches(max_rows=20, max_columns=6))
def test_hits_equal_those_of_a_dictionary_trie(planned):
    assert hit_tokens(*planned) == trie_hit_tokens(*planned)


@given(planned_batches(), st.randoms())
def test_hits_do_not_depend_on_the_row_order(planned, random):
    batch, plan = planned
    order = np.array(random.sample(range(batch.num_rows), batch.num_rows), np.int64)
    assert hit_tokens(batch, Plan("other", plan.rows[order], plan.fields[order])) == hit_tokens(batch, plan)


@given(planned_batches(lengths=(1, 5)))
def test_hits_are_those_of_the_cache_simulator_at_block_size_one(planned):
    batch, plan = planned
    hits, lengths = native.simulate_prefix_cache(segments_of(batch), batch.codes, plan, block_size=1, capacity_blocks=0)
    expected = 1 + row_hit_tokens(batch, plan)  # the header's token
    expected[:1] = 0
    assert np.array_equal(np.minimum(expected, lengths - 1), hits)  # the last token is always computed


def test_a_hit_may_be_on_any_earlier_row():
    batch = batch_of([[0, 1, 0]], [[5, 7]])
    plan = plan_original(batch)
    assert row_hit_tokens(batch, plan).tolist() == [0, 0, 5]
    assert phc(batch, plan) == 0


def test_equal_codes_of_different_columns_are_different_cells():
    batch = batch_of([[0, 0], [0, 0]], [[5], [5]])
    plan = Plan("mixed", np.arange(2), np.array([[0, 1], [1, 0]], np.int32))
    assert hit_tokens(batch, plan) == phc(batch, plan) == 0


def test_phc_squares_the_leading_cells_equal_to_the_row_before():
    batch = batch_of([[0, 0, 0], [0, 0, 1], [0, 0, 0]], [[2], [3, 3], [4]])
    assert phc(batch, plan_original(batch)) == (4 + 9 + 16) + 4


@given(planned_batches())
def test_phc_equals_a_plain_count(planned):
    batch, plan = planned
    rows = [
        [(column, int(batch.codes[column, row])) for column in fields]
        for row, fields in zip(plan.rows.tolist(), plan.fields.tolist(), strict=True)
    ]
    expected = 0
    for before, row in pairwise(rows):
        for a, b in zip(before, row, strict=True):
            if a != b:
                break
            expected += int(batch.cell_tokens[b[0]][b[1]]) ** 2
    assert phc(batch, plan) == expected


@given(planned_batches())
def test_no_plan_exceeds_the_share_of_repeated_cells(planned):
    batch, plan = planned
    assert hit_tokens(batch, plan) <= repeated_share(batch) * total_tokens(batch) + 1e-6


def test_the_share_of_repeated_cells():
    assert repeated_share(batch_of([[0, 0, 1], [0, 1, 2]], [[4, 2], [1, 1, 1]])) == pytest.approx(4 / 13)
    assert repeated_share(batch_of([[]], [[]])) == 0.0


@given(planned_batches())
def test_depth_first_rows_put_equal_prefixes_side_by_side(planned):
    batch, plan = planned
    by_row = np.empty_like(plan.fields)
    by_row[plan.rows] = plan.fields
    rows = depth_first_rows(batch, by_row)
    assert_rows_are_grouped(batch, Plan("dfs", rows, by_row[rows]))


def assert_rows_are_grouped(batch: PlanInput, plan: Plan) -> None:
    paths = [
        tuple((column, int(batch.codes[column, row])) for column in fields)
        for row, fields in zip(plan.rows.tolist(), plan.fields.tolist(), strict=True)
    ]
    for depth in range(1, batch.num_columns + 1):
        prefixes = [path[:depth] for path in paths]
        assert sum(a != b for a, b in pairwise(prefixes)) == max(len(set(prefixes)) - 1, 0)


def test_15000_rows_of_75_columns_take_seconds_at_most():
    random = np.random.default_rng(0)
    codes = np.array([random.integers(0, 2 + column, 15_000) for column in range(75)], np.int32)
    batch = PlanInput(codes, tuple(np.full(2 + column, 10, np.int64) for column in range(75)))
    fields = random.permuted(np.tile(np.arange(75, dtype=np.int32), (15_000, 1)), axis=1)
    started = time.perf_counter()
    assert hit_tokens(batch, Plan("random", np.arange(15_000), fields)) > 0
    assert hit_tokens(batch, plan_fixed(batch)) > 0
    assert time.perf_counter() - started < 5


# ------------------------------------------------------------------------------------------------- characters
CELLS = {"a": ["x\n", None, "x\n", ""], "b": ['"q"', "é", '"q"', "é"], "n": [1, 1, None, 20]}


def encoded(columns=CELLS):
    return encode_columns(pa.table(columns), list(columns))


def test_lengths_are_characters_of_the_raw_cells_and_nulls_are_empty():
    batch = character_table(encoded()).batch
    lengths = [tokens[codes].tolist() for tokens, codes in zip(batch.cell_tokens, batch.codes, strict=True)]
    assert lengths == [[2, 0, 2, 0], [3, 1, 3, 1], [1, 1, 0, 2]]


def test_null_and_the_empty_text_are_the_same_cell():
    batch = character_table(encoded()).batch
    assert batch.codes[0, 1] == batch.codes[0, 3]


def test_joined_rows_have_no_names_and_no_separators():
    table = character_table(encoded())
    assert joined_rows(table, plan_original(table.batch)) == ['x\n"q"1', "é1", 'x\n"q"', "é20"]


def test_characters_count_prefixes_that_end_inside_a_cell():
    table = character_table(encoded({"a": ["abcd", "abce", "b"]}))
    plan = plan_original(table.batch)
    assert hit_tokens(table.batch, plan) == 0
    assert hit_characters(table, plan) == 3


@given(st.lists(st.tuples(st.text("ab", max_size=4), st.text("ab", max_size=4)), min_size=1, max_size=8))
def test_hit_characters_equal_the_longest_prefix_with_any_earlier_row(rows):
    table = character_table(encoded({"a": [a for a, _ in rows], "b": [b for _, b in rows]}))
    plan = plan_fixed(table.batch)
    joined = joined_rows(table, plan)
    prefixes = {text[:end] for text in joined for end in range(1, len(text) + 1)}
    assert hit_characters(table, plan) == sum(map(len, joined)) - len(prefixes)
    assert hit_characters(table, plan) >= hit_tokens(table.batch, plan)

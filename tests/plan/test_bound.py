"""The ceiling: no order of rows and fields is served more, counted token by token over all orders of tiny tables."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import numpy as np
import pytest
from how_many import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_relational import native
from vllm_relational.plan import value_overlaps
from vllm_relational.plan.bound import Earlier, max_served
from vllm_relational.records import Plan, PromptSegments, TokenSegments

END = 0
NAMES = (
    (90,),
    (91,),
    (90, 92),
    (93, 94),
    (93, 95),
)  # some begin alike, none is the beginning of another with ':' behind
COLON = 96
cells = st.lists(st.integers(1, 3), max_size=4).map(tuple)


def column_of(values, name=(), end=(END,)):
    pieces = [(*name, *([COLON] if name else []), *value, *end) for value in values]
    tokens = np.array([token for piece in pieces for token in piece], np.int32)
    return TokenSegments(tokens, np.append(0, np.cumsum([len(piece) for piece in pieces])).astype(np.int64))


def segments_of(columns, header=(70, 71, 72), tail=(80, 81), end=(END,)):
    named = tuple(column_of(values, name, end) for values, name in zip(columns, NAMES, strict=False))
    return PromptSegments(np.array(header, np.int32), named, np.array(tail, np.int32))


@st.composite
def tables(draw, max_rows=4, max_columns=3):
    """Values by column, all different, and rows that differ, as codes ``[num_columns, num_rows]``."""
    num_columns = draw(st.integers(1, max_columns))
    columns = [draw(st.lists(cells, min_size=1, max_size=3, unique=True)) for _ in range(num_columns)]
    row = st.tuples(*(st.integers(0, len(values) - 1) for values in columns))
    rows = draw(st.lists(row, min_size=1, max_size=max_rows, unique=True))
    return columns, np.array(rows, np.int32).T


def prompt(segments, codes, fields):
    pieces = [segments.header]
    for column in fields:
        cells, code = segments.cells[column], codes[column]
        pieces.append(cells.tokens[cells.offsets[code] : cells.offsets[code + 1]])
    return tuple(np.concatenate([*pieces, segments.tail]).tolist())


def served(prompts, before=()):
    """Tokens of the prompts that an earlier one begins with; the last of each is computed. The order does not matter
    but for that last token, so equal prompts are not among them."""
    known = {tokens[:size] for tokens in before for size in range(1, len(tokens) + 1)}
    hits = 0
    for tokens in prompts:
        hits += sum(tokens[:size] in known for size in range(1, len(tokens)))
        known |= {tokens[:size] for size in range(1, len(tokens) + 1)}
    return hits


def best(segments, codes, before=()):
    """The most that any field orders are served."""
    orders = [np.array(order) for order in permutations(range(len(codes)))]
    rows = [{prompt(segments, column, order) for order in orders} for column in codes.T]
    return max(served(prompts, before) for prompts in product(*rows))


@settings(max_examples=examples(150))
@given(tables())
def test_no_order_is_served_more(table):
    columns, codes = table
    segments = segments_of(columns)
    bound, total = max_served(segments, codes)
    assert total == sum(len(prompt(segments, column, np.arange(len(codes)))) for column in codes.T)
    assert best(segments, codes) <= bound <= total
    assert (bound, total) == max_served(segments, codes, value_overlaps(segments.cells))


@given(tables(), st.sampled_from([(), (END, END)]))
def test_neither_where_cells_begin_with_others_whole_or_are_equal_in_tokens(table, end):
    columns, codes = table
    segments = segments_of([[*values, values[0]] for values in columns], end=end)
    assert best(segments, codes) <= max_served(segments, codes)[0]
    twice = np.array([[*column, len(values)] for column, values in zip(codes, columns, strict=True)], np.int32)
    if twice.shape[1] <= 4 and end:
        assert best(segments, twice) <= max_served(segments, twice)[0]


@settings(max_examples=examples(60))
@given(tables(max_rows=3), tables(max_rows=3), st.booleans(), st.sampled_from([(80, 81), (80, 82), (83,)]), st.data())
def test_neither_after_prompts_that_were_asked_before(table, other, same_header, tail, data):
    columns, codes = table
    theirs, asked_codes = other
    segments = segments_of(columns)
    header = (70, 71, 72) if same_header else (70, 73)
    asked = segments_of([[*values] for values in theirs], header, tail)
    orders = [data.draw(st.permutations(range(len(asked_codes)))) for _ in asked_codes.T]
    before = [prompt(asked, column, np.array(order)) for column, order in zip(asked_codes.T, orders, strict=True)]
    known = []
    for place, values in enumerate(columns):
        there = {theirs[place][code] for code in asked_codes[place].tolist()} if place < len(theirs) else set()
        known.append(np.array([k for k, value in enumerate(values) if value in there and same_header], np.int64))
    alone = max_served(segments, codes)[0]
    bound = max_served(segments, codes, earlier=[Earlier(asked, tuple(known))])[0]
    assert best(segments, codes, before) <= bound
    assert alone <= bound


@given(tables(max_rows=8, max_columns=4), st.integers(1, 4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_neither_in_blocks_or_with_a_small_cache(table, block_size, capacity, random):
    columns, codes = table
    segments = segments_of(columns)
    rows = random.sample(range(codes.shape[1]), codes.shape[1])
    fields = np.array([random.sample(range(len(codes)), len(codes)) for _ in rows], np.int32)
    plan = Plan("random", np.array(rows), fields)
    hits, _ = native.simulate_prefix_cache(segments, codes, plan, block_size, 4 * capacity)
    assert hits.sum() <= max_served(segments, codes)[0]


@settings(max_examples=examples(60))
@given(tables(), st.booleans())
def test_values_that_no_row_has_do_not_count(table, sorted_before):
    columns, codes = table
    used = [sorted(set(column.tolist())) for column in codes]
    without = segments_of([[values[code] for code in kept] for values, kept in zip(columns, used, strict=True)])
    renumbered = np.array([np.searchsorted(kept, column) for kept, column in zip(used, codes, strict=True)], np.int32)
    segments = segments_of(columns)
    known = (value_overlaps(segments.cells), value_overlaps(without.cells)) if sorted_before else ((), ())
    assert max_served(segments, codes, known[0]) == max_served(without, renumbered, known[1])


def test_where_values_are_equal_or_differ_at_once_it_is_that_of_whole_cells():
    """And an order reaches it."""
    cells = (column_of([(11, 1, 1), (12, 2)]), column_of([(21, 5), (22,)]))
    segments = PromptSegments(np.array([70, 71], np.int32), cells, np.array([80], np.int32))
    codes = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], np.int32)
    assert max_served(segments, codes)[0] == 3 * 2 + 4 + 3 + 3 + 2  # headers, and each value once
    of_one = np.array([[0, 0, 0], [0, 1, 1]], np.int32)[:, :2]
    assert max_served(segments, of_one)[0] == 2 + 4 == best(segments, of_one)


def test_values_that_begin_alike_are_served_in_part_once_a_row():
    # 50 texts of 22 tokens, of which the first 20 are equal, beside a column of one value.
    values = [(*[1] * 20, 2 + k) for k in range(50)]
    segments = segments_of([values, [(1,)]])
    codes = np.array([np.arange(50), np.zeros(50)], np.int32)
    whole_cells = 49 * (3 + 4)  # the header and the constant
    assert max_served(segments, codes)[0] == whole_cells + 49 * (2 + 20)
    # Three such columns, the last with a longer name: only one of them can be served in part, of each row.
    three = segments_of([values, values, values])
    codes = np.tile(np.arange(50, dtype=np.int32), (3, 1))
    assert max_served(three, codes)[0] == 49 * 3 + 50 * (3 + 20)


def test_names_that_begin_alike_count_across_columns():
    # Column 0 is named 90, column 2 is named 90 92: a row may begin with either.
    segments = segments_of([[(1, 2)], [(3,)], [(2, 1)]])
    two = PromptSegments(segments.header, (segments.cells[0], segments.cells[2]), segments.tail)
    codes = np.zeros((2, 1), np.int32)
    assert max_served(two, codes)[0] == 0 + 1 >= best(two, codes)


@pytest.mark.parametrize("columns", [0, 2])
def test_no_rows_and_no_columns(columns):
    segments = segments_of([[(1,)], [(2,)]][:columns])
    assert max_served(segments, np.empty((columns, 0), np.int32)) == (0, 0)
    assert max_served(segments, np.zeros((columns, 1), np.int32))[0] <= columns


def test_without_native_code_it_is_the_same(monkeypatch):
    columns = [[(1, 1), (1, 2), (2,), ()], [(1, 1, 1), (1, 1, 2)]]
    codes = np.array([[0, 1, 2, 3, 0], [0, 0, 0, 0, 1]], np.int32)
    segments = segments_of(columns)
    native_one = max_served(segments, codes)
    monkeypatch.setattr(native, "AVAILABLE", False)
    assert max_served(segments, codes) == native_one


def test_many_columns_take_no_time():
    random = np.random.default_rng(0)
    values = [(100 + k,) for k in range(20)]
    cells = tuple(column_of(values, name=(1_000 + c,)) for c in range(400))
    codes = random.integers(0, 20, (400, 2_000)).astype(np.int32)
    bound, total = max_served(PromptSegments(np.arange(5, dtype=np.int32), cells, np.arange(2, dtype=np.int32)), codes)
    assert total == 2_000 * (400 * 4 + 7) and 0.9 < bound / total < 1


@example(tokens=[[1], [1, 2], []])
@given(st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=6).map(list))
def test_the_sorted_values_of_the_reference_are_the_native_ones(tokens):
    from vllm_relational.plan import bound

    joined = column_of([tuple(piece) for piece in tokens], end=())
    one = native.sort_values(joined.tokens, joined.offsets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        two = bound._sorted(joined)
    assert one.shared.tolist() == two.shared.tolist()
    in_order = [tokens[value] for value in np.argsort(two.rank)]
    assert all(a <= b for a, b in pairwise(in_order))

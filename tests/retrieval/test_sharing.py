"""The order of passages, against the definition of the tree's size and against every order of tiny tables."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.retrieval.sharing import shared_order, tree_size


def reference_size(order: np.ndarray, lengths: np.ndarray) -> int:
    prefixes = {tuple(row[: place + 1]) for row in order.tolist() for place in range(len(row))}
    return int(sum(lengths[prefix[-1]] for prefix in prefixes))


def smallest_size(sets: np.ndarray, lengths: np.ndarray) -> int:
    choices = product(*(list(permutations(row)) for row in sets.tolist()))
    return min(reference_size(np.array(choice), lengths) for choice in choices)


@st.composite
def rows_of_passages(draw, max_rows=30, max_k=5, passages=9):
    k = draw(st.integers(1, max_k))
    rows = draw(st.lists(st.permutations(range(passages)).map(lambda order: order[:k]), min_size=1, max_size=max_rows))
    lengths = draw(st.lists(st.integers(0, 2000), min_size=passages, max_size=passages))
    return np.array(rows, np.int64), np.array(lengths, np.int64)


@given(rows_of_passages())
def test_every_row_keeps_its_passages_and_nothing_gets_worse(case):
    rows, lengths = case
    order = shared_order(rows, lengths)
    assert np.array_equal(np.sort(order, axis=1), np.sort(rows, axis=1))
    assert tree_size(order, lengths) <= tree_size(rows, lengths)


@given(rows_of_passages())
def test_the_size_is_that_of_the_distinct_prefixes(case):
    rows, lengths = case
    assert tree_size(rows, lengths) == reference_size(rows, lengths)


@given(rows_of_passages(), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_ranks(case, random):
    """Any order within rows gives the same tree, unless the given one was better already."""
    rows, lengths = case
    mixed = np.array([random.sample(row, len(row)) for row in rows.tolist()], np.int64)
    sizes = [tree_size(shared_order(each, lengths), lengths) for each in (rows, mixed)]
    assert sizes[0] == sizes[1] or min(sizes) in [tree_size(each, lengths) for each in (rows, mixed)]


@given(rows_of_passages(max_rows=3, max_k=3, passages=5))
def test_tiny_tables_are_near_the_smallest_tree(case):
    rows, lengths = case
    assert tree_size(shared_order(rows, lengths), lengths) <= 1.5 * smallest_size(rows, lengths)


@pytest.mark.slow
def test_tiny_tables_are_within_5_percent_of_the_smallest_tree_on_average():
    random = np.random.default_rng(0)
    found, smallest = 0, 0
    for _ in range(100):
        rows = np.array([random.permutation(5)[:3] for _ in range(4)])
        lengths = random.integers(100, 1000, 5)
        found += tree_size(shared_order(rows, lengths), lengths)
        smallest += smallest_size(rows, lengths)
    assert found <= 1.05 * smallest


def test_a_passage_of_any_rank_stands_first_where_it_is_shared():
    ranked = np.array([[0, 1, 9], [2, 9, 3], [9, 4, 5]])
    order = shared_order(ranked, np.full(10, 100))
    assert order[:, 0].tolist() == [9, 9, 9]


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (4, 0)])
def test_nothing_is_nothing(shape):
    assert shared_order(np.empty(shape, np.int64), np.empty(0, np.int64)).shape == shape


def test_very_long_passages_do_not_overflow():
    rows = np.array([[0, 1], [1, 0], [1, 2]])
    assert shared_order(rows, np.array([2**40, 2**41, 1])).tolist() == [[1, 0], [1, 0], [1, 2]]


def test_rows_with_equal_sets_have_equal_orders_where_the_given_order_is_kept():
    given = np.array([[0, 4, 1], [0, 2, 4], [0, 2, 1], [0, 2, 4], [0, 1, 4]])
    lengths = np.array([5, 2, 8, 7, 2])
    order = shared_order(given, lengths)
    assert order[0].tolist() == order[4].tolist()
    assert tree_size(order, lengths) <= tree_size(given, lengths)

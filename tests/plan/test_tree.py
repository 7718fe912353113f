"""The tree planner: valid, deterministic, never worse than one order for all rows, and close to the optimum."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_relational import native
from vllm_relational.plan import plan_fixed, plan_published, plan_tree, planner
from vllm_relational.records import Plan, PlanInput

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="native code was not built")


def hit_tokens(batch: PlanInput, plan: Plan) -> int:
    """Tokens in leading cells that an earlier row has too; a cache without limit."""
    seen: set[tuple] = set()
    hits = 0
    for row, fields in zip(plan.rows, plan.fields.tolist(), strict=True):
        prefix: tuple = ()
        for column in fields:
            code = int(batch.codes[column, row])
            prefix = (*prefix, (column, code))
            hits += int(batch.cell_tokens[column][code]) if prefix in seen else 0
            seen.add(prefix)
    return hits


def best_hit_tokens(batch: PlanInput) -> int:
    """The most that any hierarchical clustering of the rows saves: exhaustive, for 6 rows or so."""
    cells = [[(c, int(batch.codes[c, r])) for c in range(batch.num_columns)] for r in range(batch.num_rows)]

    def shared(rows: frozenset[int]) -> int:
        common = set.intersection(*(set(cells[row]) for row in rows))
        return sum(int(batch.cell_tokens[c][v]) for c, v in common)

    @functools.cache
    def best(rows: frozenset[int]) -> int:
        if len(rows) == 1:
            return 0
        first, *others = sorted(rows)
        splits = (
            frozenset((first, *left)) for size in range(len(others)) for left in itertools.combinations(others, size)
        )
        return shared(rows) + max(best(left) + best(rows - left) for left in splits)

    return best(frozenset(range(batch.num_rows)))


def random_batch(random: np.random.Generator, num_rows: int, num_columns: int, most: int = 20) -> PlanInput:
    cardinalities = random.integers(1, max(2, num_rows), size=num_columns, endpoint=True)
    codes = [random.integers(0, cardinality, size=num_rows) for cardinality in cardinalities]
    lengths = tuple(random.integers(0, most, size=cardinality, endpoint=True) for cardinality in cardinalities)
    return PlanInput(np.array(codes, np.int32).reshape(num_columns, num_rows), lengths)


@st.composite
def batches(draw: st.DrawFn) -> PlanInput:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([0, 1, 20, 1_000_000]))
    batch = random_batch(random, draw(st.integers(0, 60)), draw(st.integers(0, 8)), most)
    pinned = draw(st.sets(st.integers(0, batch.num_columns - 1))) if batch.num_columns else set()
    return PlanInput(batch.codes, batch.cell_tokens, frozenset(pinned) if draw(st.booleans()) else frozenset())


@given(batches(), st.sampled_from([0.0, 0.01]))
def test_valid_and_never_worse_than_one_order_for_all_rows(batch, budget):
    plan = plan_tree(batch, budget)
    assert sorted(plan.rows.tolist()) == list(range(batch.num_rows))
    assert plan.fields.shape == (batch.num_rows, batch.num_columns)
    assert (np.sort(plan.fields, axis=1) == np.arange(batch.num_columns)).all()
    for column in batch.pinned:
        assert (plan.fields[:, column] == column).all()
    hits = hit_tokens(batch, plan)
    assert hits >= hit_tokens(batch, plan_published(batch))
    assert hits >= hit_tokens(batch, plan_fixed(batch))


@given(batches())
def test_equal_prefixes_are_adjacent(batch):
    plan = plan_tree(batch, 0.01)
    rows = [
        list(zip(fields.tolist(), batch.codes[fields, row].tolist(), strict=True))
        for row, fields in zip(plan.rows, plan.fields, strict=True)
    ]
    for depth in range(1, batch.num_columns + 1):
        prefixes = [tuple(row[:depth]) for row in rows]
        runs = sum(1 for _ in itertools.groupby(prefixes))
        assert runs == len(set(prefixes))


def test_within_two_percent_of_the_optimum_on_average():
    random = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        batch = random_batch(random, int(random.integers(2, 7)), int(random.integers(1, 5)))
        best, hits = best_hit_tokens(batch), hit_tokens(batch, plan_tree(batch, 0.01))
        assert hits <= best
        shares.append(hits / best if best else 1.0)
    assert np.mean(shares) > 0.98


@given(batches())
def test_the_same_seed_gives_the_same_plan(batch):
    first, second = plan_tree(batch, 0.01, seed=7), plan_tree(batch, 0.01, seed=7)
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.fields, second.fields)


def test_rows_choose_their_side():
    """Claims x evidence: some rows belong under their claim, others under their evidence; no column order does both."""
    claims, evidence = [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 3, 3]
    batch = PlanInput(np.array([claims, evidence], np.int32), (np.full(4, 10), np.full(4, 10)))
    assert hit_tokens(batch, plan_tree(batch)) == 40
    assert hit_tokens(batch, plan_fixed(batch)) == 20


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1), (1, 9), (9, 1), (300, 40)])
@pytest.mark.parametrize("kind", ["equal", "distinct"])
def test_degenerate_tables(shape, kind):
    num_columns, num_rows = shape
    row = np.zeros(num_rows, np.int32) if kind == "equal" else np.arange(num_rows, dtype=np.int32)
    lengths = np.full(max(num_rows, 1), 1_000_000)
    batch = PlanInput(np.tile(row, (num_columns, 1)), (lengths,) * num_columns)
    plan = plan_tree(batch, 0.01)
    expected = max(num_rows - 1, 0) * num_columns * 1_000_000 if kind == "equal" else 0
    assert hit_tokens(batch, plan) == expected


texts = st.lists(st.text("ab", max_size=6), min_size=1, max_size=40)


def text_batch(columns: list[list[str]]) -> PlanInput:
    """Cells are texts, a letter is a token; all columns have as many rows as the first."""
    num_rows = len(columns[0])
    codes, lengths, overlaps = [], [], []
    for column in columns:
        values = sorted(set(column))
        codes.append([values.index(column[row % len(column)]) for row in range(num_rows)])
        lengths.append(np.array([len(value) for value in values]))
        tokens = np.array([ord(letter) for value in values for letter in value], np.int32)
        overlaps.append(native.sort_values(tokens, np.append(0, np.cumsum(lengths[-1]))))
    return PlanInput(np.array(codes, np.int32), tuple(lengths), overlaps=tuple(overlaps))


@given(st.lists(texts, min_size=1, max_size=4))
def test_overlaps_keep_the_plan_valid(columns):
    batch = text_batch(columns)
    plan = plan_tree(batch, 0.01)
    assert sorted(plan.rows.tolist()) == list(range(batch.num_rows))
    assert (np.sort(plan.fields, axis=1) == np.arange(batch.num_columns)).all()


@given(texts)
def test_sorted_values_know_how_they_begin_alike(column):
    values = sorted(set(column))
    [overlaps] = text_batch([column]).overlaps
    assert overlaps.rank.tolist() == list(range(len(values)))
    for position, (before, value) in enumerate(itertools.pairwise(values), start=1):
        shared = int(overlaps.shared[position])
        assert before[:shared] == value[:shared]
        assert before[: shared + 1] != value[: shared + 1]


def test_rows_that_begin_alike_become_neighbours():
    """A column of one-letter groups against texts that share nine letters: the texts go first."""
    texts = [f"begins a {n}" if n % 2 else f"often bb {n}" for n in range(8)]
    batch = text_batch([list("aabbccdd"), texts])
    assert (plan_tree(batch).fields[:, 0] == 1).all()
    assert (plan_tree(dataclasses.replace(batch, overlaps=())).fields[:, 0] == 0).all()


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_more_budget_is_never_worse(seed):
    batch = random_batch(np.random.default_rng(seed), 200, 6)
    assert hit_tokens(batch, plan_tree(batch, 0.05)) >= hit_tokens(batch, plan_tree(batch, 0.0))


def test_without_native_code_the_best_reference_planner_stands_in(monkeypatch):
    batch = random_batch(np.random.default_rng(0), 6, 4)
    monkeypatch.setattr(native, "AVAILABLE", False)
    plan = plan_tree(batch)
    assert plan.planner in {"fixed", "fixed_v2", "ggr"}
    references = [planner(name)(batch) for name in ("fixed", "fixed_v2", "ggr")]
    assert hit_tokens(batch, plan) == max(hit_tokens(batch, reference) for reference in references)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell_tokens": [np.array([1, -1])]}, r"cell_tokens\[0\]\[1\] = -1"),
        ({"cell_tokens": [np.array([1])]}, r"codes\[0, 1\] = 1, but the column has 1 values"),
        ({"cell_tokens": []}, "codes has 1 columns, cell_tokens 0"),
        ({"pinned": frozenset({1})}, r"pinned\[0\] = 1, but there are 1 columns"),
        ({"budget_seconds": -1.0}, "budget_seconds must be 0 or more"),
    ],
)
def test_errors_name_the_place(change, message):
    batch = PlanInput(np.array([[0, 1]], np.int32), (np.array([1, 1]),))
    budget = change.pop("budget_seconds", 0.0)
    with pytest.raises(ValueError, match=message):
        plan_tree(dataclasses.replace(batch, **change), budget)

"""The tree planner: valid, deterministic, never worse than one order for all rows, and close to the optimum."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batches import assert_valid, batch_of

from vllm_relational import native
from vllm_relational.plan import plan_fixed, plan_ggr, plan_original, plan_tree, planner
from vllm_relational.records import Plan, PlanInput, PromptSegments, TokenSegments, ValueOverlaps

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
    assert_valid(batch, plan)
    hits = hit_tokens(batch, plan)
    assert hits >= hit_tokens(batch, plan_original(batch))
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


@pytest.mark.slow
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


CLAIMS, EVIDENCE = [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 3, 3]
"""Some rows belong under their claim, others under their evidence; no column order does both."""


def test_rows_choose_their_side():
    batch = batch_of([CLAIMS, EVIDENCE], [[10] * 4] * 2)
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
    assert_valid(batch, plan)


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


@pytest.mark.slow
@settings(max_examples=examples(20))
@given(st.integers(0, 2**32))
def test_more_budget_is_never_worse(seed):
    batch = random_batch(np.random.default_rng(seed), 200, 6)
    assert hit_tokens(batch, plan_tree(batch, 0.05)) >= hit_tokens(batch, plan_tree(batch, 0.0))


def test_without_native_code_the_best_reference_planner_stands_in(monkeypatch):
    batch = random_batch(np.random.default_rng(0), 6, 4)
    monkeypatch.setattr(native, "AVAILABLE", False)
    plan = plan_tree(batch)
    assert plan.planner in {"fixed", "fixed_v2", "ggr", "original"}
    references = [planner(name)(batch) for name in ("fixed", "fixed_v2", "ggr", "original")]
    assert hit_tokens(batch, plan) == max(hit_tokens(batch, reference) for reference in references)


# ------------------------------------------------------------------------------------------------ against GGR
@given(batches(), st.sampled_from([0.0, 0.01]))
def test_never_below_ggr(batch, budget):
    assert hit_tokens(batch, plan_tree(batch, budget)) >= hit_tokens(batch, plan_ggr(batch))


@pytest.mark.slow
def test_never_below_ggr_on_many_tables():
    """Long cells, so that GGR's early stop at 100,000 lets it recurse."""
    random = np.random.default_rng(1)
    ahead = 0
    for _ in range(400):
        batch = random_batch(random, int(random.integers(2, 40)), int(random.integers(2, 7)), most=2000)
        hits, of_ggr = hit_tokens(batch, plan_tree(batch, 0.0)), hit_tokens(batch, plan_ggr(batch))
        assert hits >= of_ggr
        ahead += hits > of_ggr
    assert ahead > 200


# --------------------------------------------------------------------------------------------------- the search
@pytest.mark.slow
@settings(max_examples=examples(20))
@given(st.integers(0, 2**32), st.booleans())
def test_threads_do_not_change_the_plan(seed, constrained):
    batch = random_batch(np.random.default_rng(seed), 300, 6)
    if constrained:
        batch = dataclasses.replace(batch, before=((0, 2), (1, 5)), pinned=frozenset({0}), block_size=16)
    rows, fields = native.plan_tree(batch, 0.003, seed=3, num_threads=1)
    for num_threads in (2, 3, 7):
        other_rows, other_fields = native.plan_tree(batch, 0.003, seed=3, num_threads=num_threads)
        np.testing.assert_array_equal(rows, other_rows)
        np.testing.assert_array_equal(fields, other_fields)


# -------------------------------------------------------------------------------------------------- constraints
@st.composite
def constrained_batches(draw: st.DrawFn) -> PlanInput:
    batch = draw(batches())
    column = st.integers(0, max(batch.num_columns - 1, 0))
    pairs = draw(st.lists(st.tuples(column, column).filter(lambda pair: pair[0] < pair[1]), max_size=5))
    return dataclasses.replace(batch, before=tuple(pairs) if batch.num_columns > 1 else ())


@given(constrained_batches())
def test_constraints_hold_in_every_row(batch):
    plan = plan_tree(batch, 0.001)
    assert_valid(batch, plan)
    places = np.argsort(plan.fields, axis=1)
    for first, second in batch.before:
        assert (places[:, first] < places[:, second]).all()


def best_shared_order(batch: PlanInput) -> int:
    """What the best field order that all rows share saves, the rows in any order."""
    orders = [
        order
        for order in itertools.permutations(range(batch.num_columns))
        if all(order[column] == column for column in batch.pinned)
        and all(order.index(first) < order.index(second) for first, second in batch.before)
    ]
    rows = np.arange(batch.num_rows)
    return max(
        hit_tokens(batch, Plan("one", rows, np.tile(np.array(order, np.int32), (batch.num_rows, 1))))
        for order in orders
    )


@pytest.mark.parametrize(
    ("place", "constraint"),
    [
        (0, {"pinned": frozenset({0})}),
        (2, {"pinned": frozenset({2})}),
        (0, {"before": ((0, 1), (0, 2))}),
        (2, {"before": ((0, 2), (1, 2))}),
    ],
)
def test_rows_choose_their_order_of_the_rest(place, constraint):
    """A topic that all rows share stands first, or the serial number of each row last, beside claims and evidence."""
    columns, lengths = [CLAIMS, EVIDENCE], [[10] * 4] * 2
    columns.insert(place, [0] * 6 if place == 0 else list(range(6)))
    lengths.insert(place, [7] * 6)
    batch = dataclasses.replace(batch_of(columns, lengths), **constraint)
    plan = plan_tree(batch)
    assert (plan.fields[:, place] == place).all()
    shared = 5 * 7 if place == 0 else 0
    assert hit_tokens(batch, plan) == shared + 40
    assert best_shared_order(batch) == shared + 20


def test_a_pin_in_the_middle_holds_in_the_best_shared_order():
    columns = [CLAIMS, [0] * 6, EVIDENCE]
    batch = batch_of(columns, [[10] * 4, [7], [10] * 4], pinned=(1,))
    plan = plan_tree(batch)
    assert (plan.fields[:, 1] == 1).all()
    assert hit_tokens(batch, plan) == best_shared_order(batch) == 2 * 10 + 2 * 7


# ------------------------------------------------------------------------------------------------------- blocks
def served(batch: PlanInput, plan: Plan) -> int:
    """Tokens of whole blocks, header included, that each row shares with the row before."""
    total = 0
    pairs = itertools.pairwise(zip(plan.rows.tolist(), plan.fields.tolist(), strict=True))
    for (before, before_fields), (row, fields) in pairs:
        shared = 0
        for column, other in zip(fields, before_fields, strict=True):
            if column != other or batch.codes[column, row] != batch.codes[column, before]:
                break
            shared += int(batch.cell_tokens[column][batch.codes[column, row]])
        total += (batch.header_tokens + shared) // batch.block_size * batch.block_size
    return total


@given(batches(), st.integers(0, 40), st.sampled_from([1, 7, 16]))
def test_never_below_the_references_in_whole_blocks(batch, header_tokens, block_size):
    batch = dataclasses.replace(batch, header_tokens=header_tokens, block_size=block_size)
    hits = served(batch, plan_tree(batch, 0.001))
    for name in ("original", "fixed", "fixed_v2", "ggr"):
        assert hits >= served(batch, planner(name)(batch)), name


@pytest.mark.parametrize(("header_tokens", "block_size", "first"), [(0, 1, 1), (0, 16, 0), (1, 16, 1)])
def test_a_prefix_counts_in_whole_blocks(header_tokens, block_size, first):
    """Three pairs of rows share 16 tokens, or four pairs 15: those fill a block only behind a header."""
    batch = batch_of([[0, 1, 1, 2, 2, 3, 3, 4], [0, 0, 1, 1, 2, 2, 3, 3]], [[16] * 5, [15] * 4])
    plan = plan_tree(dataclasses.replace(batch, header_tokens=header_tokens, block_size=block_size))
    assert (plan.fields[:, 0] == first).all()


# -------------------------------------------------------------------------------------------------- small caches
def segments_of(columns: list[list[list[int]]], header: list[int]) -> PromptSegments:
    def column_of(cells: list[list[int]]) -> TokenSegments:
        offsets = np.cumsum([0, *map(len, cells)], dtype=np.int64)
        return TokenSegments(np.array([token for cell in cells for token in cell], np.int32), offsets)

    return PromptSegments(np.array(header, np.int32), tuple(map(column_of, columns)), np.array([0, 0], np.int32))


def batch_of_segments(codes: np.ndarray, segments: PromptSegments, block_size: int, overlaps: bool) -> PlanInput:
    known = tuple(native.sort_values(column.tokens, column.offsets) for column in segments.cells)
    lengths = tuple(column.lengths for column in segments.cells)
    header_tokens = len(segments.header)
    return PlanInput(codes, lengths, frozenset(), known if overlaps else (), (), header_tokens, block_size)


def assert_longest_prompt_is_enough(batch: PlanInput, segments: PromptSegments, block_size: int) -> None:
    plan = plan_tree(batch, 0.001)
    hits, prompt_tokens = native.simulate_prefix_cache(segments, batch.codes, plan, block_size, 0)
    longest = max(int(prompt_tokens.max()) // block_size, 1)
    small, _ = native.simulate_prefix_cache(segments, batch.codes, plan, block_size, longest)
    np.testing.assert_array_equal(small, hits)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 16]))
def test_a_cache_of_one_prompt_serves_all_where_cells_share_no_tokens(seed, block_size):
    random = np.random.default_rng(seed)
    batch = random_batch(random, int(random.integers(1, 40)), int(random.integers(1, 6)))
    fresh = itertools.count(1)
    columns = [[list(itertools.islice(fresh, int(n) + 1)) for n in lengths] for lengths in batch.cell_tokens]
    segments = segments_of(columns, [0] * int(random.integers(0, 20)))
    assert_longest_prompt_is_enough(
        batch_of_segments(batch.codes, segments, block_size, overlaps=False), segments, block_size
    )


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 16]))
def test_a_cache_of_one_prompt_serves_all_where_values_begin_alike(seed, block_size):
    """Values of one column are texts of two letters, each column in letters of its own."""
    random = np.random.default_rng(seed)
    batch = random_batch(random, int(random.integers(1, 40)), int(random.integers(1, 6)))
    columns = []
    for column, lengths in enumerate(batch.cell_tokens, start=1):
        texts = {tuple(random.integers(0, 2, size=int(n) + 1).tolist()): None for n in lengths}
        columns.append([[2 * column + letter for letter in text] for text in texts])
    codes = np.array([codes % len(cells) for codes, cells in zip(batch.codes, columns, strict=True)], np.int32)
    segments = segments_of(columns, [0] * int(random.integers(0, 20)))
    assert_longest_prompt_is_enough(batch_of_segments(codes, segments, block_size, overlaps=True), segments, block_size)


# ------------------------------------------------------------------------------------------------------- Ctrl-C
INTERRUPTED_PLAN = """
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
import numpy as np
from vllm_relational import native
from vllm_relational.records import PlanInput

random = np.random.default_rng(0)
large = PlanInput(random.integers(0, 3000, (10, 20_000), np.int32), (np.arange(3000),) * 10)
pressed = []

def press():
    pressed.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(0.5, press).start()
try:
    native.plan_tree(large, 600.0, 0)
except KeyboardInterrupt:
    print(time.monotonic() - pressed[0])
rows, _ = native.plan_tree(PlanInput(large.codes[:, :200], large.cell_tokens), 0.01, 0)
print(len(set(rows.tolist())))
"""


def test_ctrl_c_ends_a_long_search_and_the_process_lives():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_PLAN], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seconds, rows = done.stdout.split()
    assert float(seconds) < 2
    assert rows == "200"


# ------------------------------------------------------------------------------------------------------- errors
ONE_COLUMN = PlanInput(np.array([[0, 1]], np.int32), (np.array([1, 1]),))
TWO_COLUMNS = PlanInput(np.array([[0, 1], [0, 0]], np.int32), (np.array([1, 1]), np.array([1])))


def ranks(*rank: int) -> tuple[ValueOverlaps, ...]:
    return (ValueOverlaps(np.array(rank, np.int32), np.zeros(len(rank), np.int64)),)


@pytest.mark.parametrize(
    ("batch", "change", "message"),
    [
        (ONE_COLUMN, {"cell_tokens": [np.array([1, -1])]}, r"cell_tokens\[0\]\[1\] = -1"),
        (ONE_COLUMN, {"cell_tokens": [np.array([1, 2**30])]}, r"cell_tokens\[0\]\[1\] = 1073741824"),
        (ONE_COLUMN, {"cell_tokens": [np.array([1])]}, r"codes\[0, 1\] = 1, but the column has 1 values"),
        (ONE_COLUMN, {"cell_tokens": []}, "codes has 1 columns, cell_tokens 0"),
        (ONE_COLUMN, {"codes": np.array([[0, -1]], np.int32)}, r"codes\[0, 1\] = -1 is negative"),
        (ONE_COLUMN, {"pinned": frozenset({1})}, r"pinned\[0\] = 1, but there are 1 columns"),
        (ONE_COLUMN, {"block_size": 0}, "block_size must be 1 token or more, not 0"),
        (ONE_COLUMN, {"header_tokens": -1}, "header_tokens must be from 0 to 2\\^31 - 1, not -1"),
        (ONE_COLUMN, {"header_tokens": 2**31}, "header_tokens must be from 0 to"),
        (ONE_COLUMN, {"overlaps": ranks(0)}, r"ranks\[0\] and shared\[0\] must have 2 entries"),
        (ONE_COLUMN, {"overlaps": ranks(0, 2)}, r"ranks\[0\]\[1\] = 2, but there are 2 values"),
        (ONE_COLUMN, {"overlaps": ranks(1, 1)}, r"ranks\[0\]\[1\] = 1 is there twice"),
        (TWO_COLUMNS, {"overlaps": ranks(0, 1)}, "overlaps must be given for all 2 columns or for none"),
        (TWO_COLUMNS, {"before": ((1, 0),)}, r"before\[0\] = \(1, 0\): the first must stand before"),
        (TWO_COLUMNS, {"before": ((0, 1), (0, 2))}, r"before\[1\] = \(0, 2\)"),
    ],
)
def test_errors_name_the_place(batch, change, message):
    with pytest.raises(ValueError, match=message):
        native.plan_tree(dataclasses.replace(batch, **change), 0.0, 0)


@pytest.mark.parametrize("budget", [-1.0, math.nan])
def test_budgets_are_not_negative(budget):
    with pytest.raises(ValueError, match="budget_seconds must be 0 or more"):
        native.plan_tree(ONE_COLUMN, budget, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([[0, 1]], r"others\[0\] must be \[2 rows, 2 columns\]"),
        ([[0, 1], [1, 1]], r"others\[0\]\[1, 1\] = 1 names a column twice"),
        ([[0, 1], [0, 2]], r"others\[0\]\[1, 1\] = 2, but there are 2 columns"),
    ],
)
def test_errors_name_the_place_in_other_plans(fields, message):
    other = Plan("other", np.arange(len(fields)), np.array(fields, np.int32))
    with pytest.raises(ValueError, match=message):
        native.plan_tree(TWO_COLUMNS, 0.0, 0, others=[other])

"""Both sides of every size at which native code changes its way: the sizes are set small, not the tables large."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from fake_engine import FakeEngine
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batches import assert_valid

from vllm_relational import RelationalError, RelationalLLM, native
from vllm_relational.plan import plan_fixed, plan_ggr, plan_original
from vllm_relational.plan.objective import hit_tokens
from vllm_relational.records import Plan, PlanInput, PromptSegments, TokenSegments, ValueOverlaps

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="native code was not built")

LEAST = native.limit_names() if native.AVAILABLE else {}
REFUSALS = ("max_rows", "max_cells", "max_blocks")
"""Limits beyond which a table is refused; the others only change the way."""
POWERS = ("first_slots",)


@st.composite
def batches(draw: st.DrawFn) -> PlanInput:
    """Up to 40 rows and 6 columns; values that begin alike, as sorted texts do."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_rows, num_columns = draw(st.integers(0, 40)), draw(st.integers(0, 6))
    sizes = random.integers(1, max(num_rows, 1), size=num_columns, endpoint=True)
    codes = np.array([random.integers(0, size, num_rows) for size in sizes], np.int32).reshape(num_columns, num_rows)
    lengths = tuple(random.integers(1, 30, size) for size in sizes)
    batch = PlanInput(codes, lengths, block_size=draw(st.sampled_from([1, 16])))
    return dataclasses.replace(batch, overlaps=alike(lengths)) if draw(st.booleans()) else batch


def alike(lengths: tuple[np.ndarray, ...]) -> tuple[ValueOverlaps, ...]:
    """Values of zeros that end in a token of their own."""
    overlaps = []
    for column in lengths:
        cells = [np.append(np.zeros(size - 1, np.int32), np.int32(value + 1)) for value, size in enumerate(column)]
        offsets = np.append(0, np.cumsum(column)).astype(np.int64)
        overlaps.append(native.sort_values(np.concatenate(cells), offsets))
    return tuple(overlaps)


def limits_around(batch: PlanInput) -> st.SearchStrategy[dict[str, int]]:
    """Any limits, each about as large as the batch has columns, rows or cells."""
    sizes = sorted({0, 1, 2, batch.num_columns, batch.num_rows, batch.codes.size, 2 * batch.codes.size})
    near = st.tuples(st.sampled_from(sizes), st.integers(-1, 1)).map(sum)
    choices = {name: near.map(lambda n, least=least: max(n, least)) for name, least in LEAST.items()}
    choices |= {name: st.integers(1, 6).map(lambda n: 2**n) for name in POWERS}
    return st.fixed_dictionaries({}, optional={name: c for name, c in choices.items() if name not in REFUSALS})


def planned(batch: PlanInput, limits: dict[str, int], num_threads: int = 2, budget: float = 0.0005) -> Plan:
    rows, fields = native.plan_tree(batch, budget, 1, [plan_ggr(batch)], num_threads, limits=limits)
    return Plan("tree", rows, fields)


@settings(max_examples=examples(150))
@given(st.data())
def test_any_limits_give_a_valid_plan_not_below_the_references(data):
    batch = data.draw(batches())
    limits = data.draw(limits_around(batch))
    plan = planned(batch, limits)
    assert_valid(batch, plan)
    if not batch.overlaps and batch.block_size == 1:
        hits = hit_tokens(batch, plan)
        assert hits >= max(hit_tokens(batch, other(batch)) for other in (plan_original, plan_fixed, plan_ggr))
    again = planned(batch, limits, num_threads=3)
    np.testing.assert_array_equal(plan.rows, again.rows)
    np.testing.assert_array_equal(plan.fields, again.fields)


OPTIMUM = 58 * 7 + 50 * 10
"""Of ``two_groups(60)``: ten pairs of country and city, below their countries; below their cities they save 6 less."""


def two_groups(num_rows: int) -> PlanInput:
    """A key a row, five cities, two countries: countries and cities are shared, keys never."""
    row = np.arange(num_rows, dtype=np.int32)
    return PlanInput(np.array([row, row % 5, row % 10 // 5]), (np.full(num_rows, 3), np.full(5, 10), np.full(2, 7)))


@pytest.mark.parametrize("name", sorted(set(LEAST) - set(REFUSALS) - set(POWERS)))
@pytest.mark.parametrize("distance", [-1, 0, 1])
@pytest.mark.parametrize("of", ["columns", "rows", "cells"])
def test_each_limit_alone(name, distance, of):
    """Whatever the limit, the obvious is found: rows by country, and below it by city."""
    batch = two_groups(60)
    size = {"columns": 2, "rows": batch.num_rows, "cells": 2 * batch.num_rows}[of]  # keys share nothing: no factor
    plan = planned(batch, {name: max(size + distance, LEAST[name])})
    assert_valid(batch, plan)
    assert hit_tokens(batch, plan) == OPTIMUM


# ------------------------------------------------------------------------------------------------------ the search
def many_columns_of_few_values() -> PlanInput:
    random = np.random.default_rng(3)
    sizes = random.integers(2, 5, size=30)
    codes = np.array([random.integers(0, size, 400) for size in sizes], np.int32)
    return PlanInput(codes, tuple(random.integers(2, 12, size) for size in sizes))


def test_where_all_values_are_frequent_children_are_looked_at_on_the_way_down():
    """Half of the budget finds more than rows tried at random."""
    batch = many_columns_of_few_values()
    at_random = hit_tokens(batch, planned(batch, {"children_looked_at": 0}, budget=0.2))
    assert hit_tokens(batch, planned(batch, {}, budget=0.1)) > 1.03 * at_random


def test_a_search_that_does_not_pay_ends_early():
    """What no budget finds is the least, what all of it finds the most; both hold for any number of threads."""
    batch = many_columns_of_few_values()
    hits = []
    for budget, min_gain in ((0.0, 0.0), (0.2, 1e12), (0.2, 0.0)):
        plans = [native.plan_tree(batch, budget, 1, num_threads=n, min_gain=min_gain) for n in (1, 3)]
        np.testing.assert_array_equal(plans[0][1], plans[1][1])
        hits.append(hit_tokens(batch, Plan("tree", *plans[0])))
    assert hits[0] < hits[1] < hits[2]


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(("limit", "most", "what"), [("max_rows", 60, "60 rows"), ("max_cells", 180, "180 cells")])
def test_tables_too_large_to_number_are_refused(limit, most, what):
    batch = two_groups(60)
    assert_valid(batch, planned(batch, {limit: most}))
    with pytest.raises(RelationalError, match=f"plan_tree: {what} are too many: the most are {most - 1}"):
        planned(batch, {limit: most - 1})


def replay_of(num_rows: int, limits: dict[str, int], capacity: int = 0, policy: str = "lru") -> list[int]:
    """Hits of prompts of four blocks, the first two of which are in every prompt."""
    cells = TokenSegments(np.arange(num_rows * 4, dtype=np.int32), np.arange(num_rows + 1, dtype=np.int64) * 4)
    segments = PromptSegments(np.array([1, 2, 3, 4], np.int32), (cells,), np.array([5, 6], np.int32))
    codes = np.arange(num_rows, dtype=np.int32)[None, :] % max(num_rows // 2, 1)
    plan = Plan("all", np.arange(num_rows), np.zeros((num_rows, 1), np.int32))
    hits, _ = native.simulate_prefix_cache(segments, codes, plan, 2, capacity, policy, limits)
    return hits.tolist()


@pytest.mark.parametrize("policy", ["lru", "fifo", "belady"])
@pytest.mark.parametrize("first_slots", [2, 4, 64])
def test_hash_tables_grow_from_any_size(policy, first_slots):
    for capacity in (0, 30):
        assert replay_of(50, {"first_slots": first_slots}, capacity, policy) == replay_of(50, {}, capacity, policy)


@pytest.mark.parametrize("policy", ["lru", "fifo", "belady"])
def test_more_blocks_than_can_be_numbered_are_refused(policy):
    capacity = 0 if policy == "lru" else 1000
    num_blocks = 2 + 5 * 2 + 5  # of the header, of five cells, and those that end in the tail
    hits = replay_of(10, {"max_blocks": num_blocks}, capacity, policy)
    assert hits == replay_of(10, {}, capacity, policy)
    with pytest.raises(RelationalError, match="are too many: the most are 11"):
        replay_of(10, {"max_blocks": 11}, capacity, policy)


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"rows": 1}, "there is no limit rows"), ({"contenders": 0}, "contenders must be 1 or more")],
)
def test_limits_are_known_by_name(limits, message):
    with pytest.raises(RelationalError, match=message):
        planned(two_groups(4), limits)


# ------------------------------------------------------------------------------------------------------ failures
class Failing:
    """Native code of which every loop fails in one way."""

    EvictionPolicy = native._NATIVE.EvictionPolicy if native.AVAILABLE else None

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str):
        def fail(**arguments: object) -> None:
            raise self.error

        return fail


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("std::bad_alloc"), "not enough memory for this table"),
        (ValueError("vector::_M_default_append"), "vector::_M_default_append"),  # std::length_error
        (RuntimeError("Resource temporarily unavailable"), "Resource temporarily unavailable"),  # std::system_error
        (IndexError("vector::_M_range_check"), "vector::_M_range_check"),  # std::out_of_range
    ],
)
def test_a_native_exception_is_a_relational_error(monkeypatch, error, message):
    batch = two_groups(6)
    monkeypatch.setattr(native, "_NATIVE", Failing(error))
    calls = {
        "plan_tree": lambda: native.plan_tree(batch, 0.0, 0),
        "sort_rows": lambda: native.sort_rows(batch.codes, np.array([0])),
        "sort_values": lambda: native.sort_values(np.zeros(1, np.int32), np.array([0, 1])),
        "find_pair_dependencies": lambda: native.pair_dependencies(batch.codes, np.array([6, 5, 2]), 0.1, 0.1, 0.9),
        "simulate_prefix_cache": lambda: replay_of(4, {}),
    }
    for name, call in calls.items():
        with pytest.raises(RelationalError, match=f"{name}: .*{message}"):
            call()


def test_answers_are_kept_when_native_code_fails_after_the_first(monkeypatch):
    """All that native code says of a run, it says before the first row is asked."""

    def reply(row: dict[str, str]) -> str:
        monkeypatch.setattr(native, "_NATIVE", Failing(MemoryError("std::bad_alloc")))
        return str(row["text"])

    engine = FakeEngine(reply)
    result = RelationalLLM(engine=engine).run(pa.table({"text": ["a", "b", "a"]}), "Say {text}")
    assert list(result.answers) == ["a", "b", "a"]

"""Prefix cache replay: native code, when built, and the reference count the same hits."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational import native
from vllm_relational.kv import simulate
from vllm_relational.kv.policy import POLICIES
from vllm_relational.records import Plan, PromptSegments, TokenSegments

SIMULATORS = [pytest.param(native.simulate_prefix_cache, id="native" if native.AVAILABLE else "fallback")]
SIMULATORS += [pytest.param(simulate.simulate_prefix_cache, id="reference")]
needs_native = pytest.mark.skipif(not native.AVAILABLE, reason="native code was not built")


def ids(tokens):
    return np.array(tokens, dtype=np.int32)


def column(*cells):
    offsets = np.cumsum([0, *map(len, cells)], dtype=np.int64)
    return TokenSegments(ids([token for cell in cells for token in cell]), offsets)


def one_order(rows, fields):
    shared = np.broadcast_to(ids(fields), (len(rows), len(fields)))
    return Plan("test", np.array(rows, dtype=np.int64), shared)


# Prompts 1 2 3 4 7 8 10 and 1 2 3 5 6 9 10.
SEGMENTS = PromptSegments(ids([1, 2, 3]), (column([4], [5, 6]), column([7, 8], [9])), ids([10]))
CODES = ids([[0, 1], [0, 1]])
PLAN = one_order([0, 1, 1, 0], [0, 1])


@st.composite
def batches(draw):
    """Few distinct tokens, values and lengths, so that prefixes meet, part, and meet again."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_columns, num_rows = draw(st.integers(0, 4)), draw(st.integers(1, 12))
    longest, num_values = draw(st.sampled_from([0, 2, 9, 60])), draw(st.integers(1, 4))
    vocabulary = draw(st.sampled_from([1, 2, 50000]))

    def some(most):
        return random.integers(0, vocabulary, size=random.integers(0, most, endpoint=True), dtype=np.int32)

    cells = tuple(column(*(some(longest) for _ in range(num_values))) for _ in range(num_columns))
    segments = PromptSegments(some(20), cells, some(5))
    codes = random.integers(0, num_values, size=(num_columns, num_rows), dtype=np.int32)
    rows = random.integers(0, num_rows, size=draw(st.integers(0, 30)))
    if draw(st.booleans()):
        return segments, codes, one_order(rows, random.permutation(num_columns))
    fields = [random.permutation(num_columns) for _ in rows]
    return segments, codes, Plan("test", rows, np.array(fields, dtype=np.int32).reshape(len(rows), num_columns))


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=batches(), block_size=st.integers(1, 16), capacity_blocks=st.sampled_from([0, 1, 2, 3, 5, 8, 20, 100]))
def test_native_equals_reference(policy, batch, block_size, capacity_blocks):
    hits, lengths = native.simulate_prefix_cache(*batch, block_size, capacity_blocks, policy)
    expected_hits, expected_lengths = simulate.simulate_prefix_cache(*batch, block_size, capacity_blocks, policy)
    assert hits.dtype == lengths.dtype == np.int32
    np.testing.assert_array_equal(hits, expected_hits)
    np.testing.assert_array_equal(lengths, expected_lengths)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize(
    ("block_size", "capacity_blocks", "hits"),
    [
        (2, 0, [0, 2, 6, 6]),
        (1, 0, [0, 3, 6, 6]),  # the seventh token is computed although it is cached
        (2, 1, [0, 2, 2, 2]),  # the first block of both prompts is all that stays
        (2, 3, [0, 2, 6, 2]),
        (8, 0, [0, 0, 0, 0]),  # no full block
    ],
)
def test_counted_by_hand(simulator, block_size, capacity_blocks, hits):
    hit_tokens, prompt_tokens = simulator(SEGMENTS, CODES, PLAN, block_size, capacity_blocks)
    assert hit_tokens.tolist() == hits
    assert prompt_tokens.tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize(
    ("policy", "hits"),
    [
        ("lru", [0, 0, 1, 0, 1, 0, 0]),  # 0 stays for its use in the third request; 1 goes, then 2
        ("fifo", [0, 0, 1, 0, 0, 0, 0]),  # 0 goes, although used just before
        ("belady", [0, 0, 1, 0, 1, 0, 1]),  # 0 goes when it is used no more, 2 stays
    ],
)
def test_policies_counted_by_hand(simulator, policy, hits):
    """Prompts of one block and one token more; room for two blocks."""
    segments = PromptSegments(ids([]), (column([1, 1], [2, 2], [3, 3]),), ids([9]))
    plan = one_order([0, 1, 0, 2, 0, 1, 2], [0])
    hit_tokens, _ = simulator(segments, ids([[0, 1, 2]]), plan, 2, 2, policy)
    assert (hit_tokens // 2).tolist() == hits


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=batches(), block_size=st.integers(1, 16))
def test_policies_agree_without_limit(policy, batch, block_size):
    hits, _ = native.simulate_prefix_cache(*batch, block_size, 0, policy)
    np.testing.assert_array_equal(hits, simulate.simulate_prefix_cache(*batch, block_size, 10**6, policy)[0])


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_no_columns(simulator):
    segments = PromptSegments(ids(range(32)), (), ids([]))
    plan = one_order([0, 2], [])
    hit_tokens, prompt_tokens = simulator(segments, np.zeros((0, 3), dtype=np.int32), plan, 16, 0)
    assert (hit_tokens.tolist(), prompt_tokens.tolist()) == ([0, 16], [32, 32])


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_empty_prompts(simulator):
    segments = PromptSegments(ids([]), (column([]),), ids([]))
    hit_tokens, prompt_tokens = simulator(segments, ids([[0]]), one_order([0, 0], [0]), 1, 0)
    assert (hit_tokens.tolist(), prompt_tokens.tolist()) == ([0, 0], [0, 0])


def test_leaves_go_before_their_parents():
    cache = simulate.PrefixCache(block_size=1, capacity_blocks=4)
    assert [cache.request([1, 2, 3, 0]), len(cache)] == [0, 4]
    assert [cache.request([7]), len(cache)] == [0, 4]  # 0 goes
    assert cache.request([1, 2, 3, 0]) == 3


def with_cells(first):
    return replace(SEGMENTS, cells=(first, SEGMENTS.cells[1]))


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 0}, "block_size must be 1"),
        ({"capacity_blocks": -1}, "capacity_blocks must be 0"),
        ({"policy": "random"}, f"'random': use one of {', '.join(POLICIES)}"),
        ({"codes": ids([[0, 2], [0, 1]])}, r"codes\[0, 1\] = 2"),
        ({"codes": ids([[0, 1], [-1, 1]])}, r"codes\[1, 0\] = -1"),
        ({"codes": ids([[0, 1]])}, "codes has 1 columns"),
        ({"plan": one_order([0, 2], [0, 1])}, r"rows\[1\] = 2"),
        ({"plan": one_order([-1], [0, 1])}, r"rows\[0\] = -1"),
        ({"plan": one_order([0], [0])}, "fields must be"),
        ({"plan": one_order([0], [0, 2])}, r"fields\[0"),
        ({"plan": one_order([0], [1, 1])}, r"fields\[0"),
        ({"plan": Plan("test", np.array([0, 1]), ids([[1, 0], [0, -1]]))}, r"fields\[1"),
        ({"segments": with_cells(TokenSegments(ids([4]), np.array([0, 1, 3])))}, r"cell_offsets\[0\]"),
        ({"segments": with_cells(TokenSegments(ids([4]), np.array([0, 1, 0])))}, r"cell_offsets\[0\]"),
        ({"segments": with_cells(TokenSegments(ids([4]), np.array([-1, 0, 1])))}, r"cell_offsets\[0\]"),
    ],
)
def test_errors_name_the_place(simulator, change, message):
    good = {"segments": SEGMENTS, "codes": CODES, "plan": PLAN, "block_size": 2, "capacity_blocks": 0}
    with pytest.raises(ValueError, match=message):
        simulator(**(good | change))


@needs_native
def test_binding_takes_any_strides_of_fields():
    reversed_fields = ids([[0, 1]] * 8)[::2, ::-1]
    swapped = replace(PLAN, fields=reversed_fields)
    copied = replace(PLAN, fields=reversed_fields.copy())
    for got, expected in zip(
        native.simulate_prefix_cache(SEGMENTS, CODES, swapped, 2, 0),
        simulate.simulate_prefix_cache(SEGMENTS, CODES, copied, 2, 0),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)


def test_one_switch_turns_native_code_off():
    program = "from vllm_relational import native; print(native.AVAILABLE)"
    environment = os.environ | {"VLLM_RELATIONAL_NO_NATIVE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

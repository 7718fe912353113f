"""4-bit codes never rule out a key of the exact set, and native code makes the codes that numpy makes."""

import numpy as np
import pytest
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from search_keys import check_dipr, clustered_keys, guarded, query_heads, stored

from vllm_relational import native
from vllm_relational.context.search import Flat, Int4, naive, naive_codes

SIZES = [(0, 64), (1, 32), (63, 80), (111, 128), (300, 14), (520, 64), (273, 256)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("count", "head_size"), SIZES)
def test_finds_what_the_flat_index_finds(level, dtype, count, head_size):
    keys = guarded(stored(clustered_keys(count, head_size), dtype))
    index = Int4.build(keys)
    for num_heads, as_bf16 in ((7, True), (9, False)):
        queries = query_heads(num_heads, head_size, as_bf16=as_bf16)
        for start, stop in ((0, count), (count // 3, count - count // 5)):
            hits = index.dipr(queries, 12.5, start, stop)
            check_dipr(hits, keys, queries, 12.5, start, stop)
            assert hits.visited <= stop - start
            best, exact = index.topk(queries, 10, start, stop), Flat(keys).topk(queries, 10, start, stop)
            np.testing.assert_array_equal(best.offsets, exact.offsets)
            np.testing.assert_allclose(np.sort(best.scores), np.sort(exact.scores), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_native_codes_are_those_of_the_reference(dtype):
    for count, head_size in SIZES:
        numbers = clustered_keys(count, head_size)
        if count > 100:
            numbers[3, 1], numbers[40, 0], numbers[77] = np.nan, np.inf, 2e38 if dtype != "float16" else 6e4
        keys = stored(numbers, dtype)
        made = Int4.build(keys).arrays.values()
        for own, reference in zip(made, naive_codes.encode(keys), strict=True):
            assert own.dtype == reference.dtype
            np.testing.assert_array_equal(own, reference)


def test_only_some_keys_are_looked_at(level):
    steps = np.random.default_rng(0).normal(0, 0.5, (2000, 64)).astype(np.float32)
    keys, queries = stored(np.cumsum(steps, 0), "bfloat16"), query_heads(7, 64)  # neighbours are alike, as in a model
    index = Int4.build(keys)
    assert index.dipr(queries, 10.0).visited < 400
    assert index.nbytes == 2000 * 48


def test_keys_that_are_no_numbers_are_kept_as_a_scan_keeps_them(level):
    numbers, queries = clustered_keys(200, 64), query_heads(3, 64)
    numbers[5], numbers[100, 3], numbers[190] = np.nan, np.inf, -np.inf
    for dtype in ("bfloat16", "float32"):
        keys = stored(numbers, dtype)
        for own, flat in (
            (Int4.build(keys).dipr(queries, 20.0), Flat(keys).dipr(queries, 20.0)),
            (Int4.build(keys).topk(queries, 6), Flat(keys).topk(queries, 6)),
        ):
            np.testing.assert_array_equal(own.tokens, flat.tokens)
            np.testing.assert_array_equal(own.offsets, flat.offsets)


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


@settings(max_examples=examples(150), deadline=None)
@given(st.data(), st.sampled_from([2, 8, 14]), st.integers(1, 40), st.floats(0, 100))
def test_bounds_hold_for_any_numbers(data, head_size, count, beta):
    """Against float64: no key of the exact set is ruled out, however the numbers lie."""
    flat = data.draw(st.lists(NUMBERS, min_size=head_size * 4, max_size=head_size * 4))
    pool = np.array(flat, np.float32).reshape(4, head_size)
    keys = pool[np.arange(count) % 4] + np.linspace(0, 1, count, dtype=np.float32)[:, None]
    queries = pool[:2] / max(float(np.abs(pool).max()), 1e-30) * 8
    codes = naive_codes.Codes(keys, *naive_codes.encode(keys))
    least, most = codes.bounds(queries)
    exact = naive.exact_scores(keys, queries)
    slack = np.abs(queries).astype(np.float64) @ np.abs(naive.numbers(keys)).T * 1e-12
    assert not (exact < least - slack).any() and not (exact > most + slack).any()
    found = Int4.build(keys).dipr(queries, beta)
    check_dipr(found, keys, queries, beta, 0, count)


def test_a_channel_with_an_offset_far_above_its_range(level):
    """Rounding of the offset's product is greater than half a scale would be."""
    keys = clustered_keys(400, 128)
    keys[:, 7] = 40000 + np.linspace(0, 0.01, 400)
    queries = query_heads(7, 128, as_bf16=False)
    queries[:, 7] = 3
    check_dipr(Int4.build(keys).dipr(queries, 5.0), keys, queries, 5.0, 0, 400)


def test_the_reference_runs_without_native_code(monkeypatch):
    monkeypatch.setattr(native, "context_search", lambda: None)
    keys, queries = stored(clustered_keys(100, 64), "bfloat16"), query_heads(2, 64)
    check_dipr(Int4.build(keys).dipr(queries, 20.0), keys, queries, 20.0, 0, 100)

"""The flat index is exact: held against numpy in float64, for odd sizes, all types and all instructions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_keys import check_dipr, clustered_keys, guarded, query_heads, stored

from vllm_relational import native
from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import Flat, loops, naive

SIZES = [(0, 64), (1, 32), (63, 80), (111, 128), (300, 2), (520, 66), (257, 256)]


def same_hits(one, other):
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("count", "head_size"), SIZES)
def test_dipr_is_exact(level, dtype, count, head_size):
    keys = guarded(stored(clustered_keys(count, head_size), dtype))
    for num_heads, as_bf16 in ((7, True), (1, True), (9, False), (3, False)):
        queries = query_heads(num_heads, head_size, as_bf16=as_bf16)
        hits = Flat(keys).dipr(queries, 12.5)
        assert hits.offsets.dtype == np.int64 and hits.tokens.dtype == np.int32 and hits.scores.dtype == np.float32
        assert hits.num_heads == num_heads and hits.visited == count
        check_dipr(hits, keys, queries, 12.5, 0, count)


def test_ranges_and_lower_bounds(level):
    keys, queries = stored(clustered_keys(700, 64), "bfloat16"), query_heads(7, 64)
    for start, stop in ((0, 700), (0, 0), (700, 700), (17, 18), (255, 514), (1, 257)):
        check_dipr(Flat(keys).dipr(queries, 20.0, start, stop), keys, queries, 20.0, start, stop)
        lower = naive.greatest(naive.exact_scores(keys, queries), None).astype(np.float32)
        lower[0], lower[1] = np.inf, -np.inf
        check_dipr(Flat(keys).dipr(queries, 20.0, start, stop, lower), keys, queries, 20.0, start, stop, lower)


def test_keys_outside_the_range_do_not_count(level):
    keys, queries = clustered_keys(300, 64), query_heads(2, 64)
    poisoned = np.full((400, 64), np.nan, np.float32)
    poisoned[50:350] = keys
    hits, alone = Flat(poisoned).dipr(queries, 20.0, 50, 350), Flat(keys).dipr(queries, 20.0)
    np.testing.assert_array_equal(hits.tokens - 50, alone.tokens)
    np.testing.assert_array_equal(hits.scores, alone.scores)


def test_products_that_are_no_numbers_are_kept_and_count_for_no_maximum(level):
    keys, queries = clustered_keys(111, 64), query_heads(7, 64)
    keys[5], keys[100, 3], keys[7] = np.nan, np.inf, 0
    for dtype in ("bfloat16", "float32"):
        held = stored(keys, dtype)
        same_hits(Flat(held).dipr(queries, 20.0), naive.dipr(held, queries, 20.0, 0, 111))
        same_hits(Flat(held).topk(queries, 4), naive.topk(held, queries, 4, 0, 111))
    assert 5 in Flat(held).dipr(queries, 1.0, lower=np.full(7, np.inf, np.float32)).of(0)
    queries[2, 2] = np.nan
    assert len(Flat(held).dipr(queries, 0.0).of(2)) == 111


def test_every_key_within_an_infinite_beta(level):
    keys, queries = stored(clustered_keys(300, 64), "float16"), query_heads(2, 64)
    assert Flat(keys).dipr(queries, np.inf).of(1).tolist() == list(range(300))


@pytest.mark.parametrize("k", [0, 1, 5, 299, 300, 1000])
def test_topk_is_exact(level, k):
    keys = stored(clustered_keys(1200, 64), "bfloat16")
    queries = query_heads(9, 64)
    same_hits(Flat(keys).topk(queries, k, 800, 1100), naive.topk(keys, queries, k, 800, 1100))


def test_of_equal_products_the_first_tokens(level):
    keys, queries = np.ones((1000, 64), np.float32), np.ones((1, 64), np.float32)
    assert Flat(keys).topk(queries, 3).tokens.tolist() == [0, 1, 2]
    assert Flat(keys).topk(queries, 3, 600).tokens.tolist() == [600, 601, 602]
    keys[900:] = np.nan
    assert Flat(keys).topk(queries, 102).tokens.tolist() == [0, 1, *range(900, 1000)]
    assert Flat(keys).topk(queries, 3).tokens.tolist() == [900, 901, 902]


@given(st.integers(0, 40), st.sampled_from([2, 14, 64]), st.integers(1, 17), st.floats(0, 60), st.integers(0, 2**16))
def test_any_shape(count, head_size, num_heads, beta, seed):
    keys = stored(clustered_keys(count, head_size, seed), "bfloat16")
    queries = query_heads(num_heads, head_size, seed)
    check_dipr(Flat(keys).dipr(queries, beta), keys, queries, beta, 0, count)


def test_every_number_of_sixteen_bits_is_read_right(level):
    patterns = np.arange(2**16, dtype=np.uint16)
    queries = np.zeros((1, 2), np.float32)
    queries[0, 0] = 1
    for dtype in (np.uint16, np.float16):
        keys = np.zeros((2**16, 2), dtype)
        keys[:, 0] = patterns.view(dtype)
        found = loops.score_rows(keys, np.arange(2**16, dtype=np.int32), queries)[0]
        with np.errstate(invalid="ignore"):
            expected = naive.numbers(keys[:, 0]).astype(np.float32)
        usual = ~(np.abs(expected) < 2.0**-126)  # AVX-512's products of pairs take smaller ones for zero
        np.testing.assert_array_equal(found[usual], expected[usual])
        assert (np.abs(found[~usual]) < 2.0**-126).all()


def test_what_makes_no_sense_is_refused(level):
    flat, queries = Flat(clustered_keys(30, 64)), query_heads(2, 64)
    for call, said in [
        (lambda: flat.dipr(queries, -1.0), "beta must be 0 or greater"),
        (lambda: flat.dipr(queries, np.nan), "beta must be 0 or greater"),
        (lambda: flat.dipr(queries[:, :32], 1.0), r"queries must be \[num_heads, 64\]"),
        (lambda: flat.dipr(queries, 1.0, 3, 31), r"tokens \[3, 31\) are not among the 30 keys"),
        (lambda: flat.dipr(queries, 1.0, 5, 4), r"tokens \[5, 4\)"),
        (lambda: flat.topk(queries, -2), "k must be 0 or greater"),
        (
            lambda: flat.dipr(queries, 1.0, lower=np.zeros(3, np.float32)),
            "lower must have one number for each of the 2",
        ),
        (lambda: Flat(np.zeros((3, 7), np.float32)), "the head size must be even, from 2 to 256, not 7"),
        (lambda: Flat(np.zeros((3, 258), np.float32)), "not 258"),
        (lambda: Flat(np.zeros((3, 64))), r"not float64 \[3, 64\]"),
        (lambda: Flat([1, 2]), "not list"),
    ]:
        with pytest.raises(ContextError, match=said):
            call()


def test_instructions_that_there_are_not_are_refused(monkeypatch):
    if not native.AVAILABLE:
        return  # the references use none
    monkeypatch.setenv("VLLM_RELATIONAL_SIMD", "mmx")
    with pytest.raises(ContextError, match="no instructions are called 'mmx'"):
        Flat(clustered_keys(3, 64)).topk(query_heads(1, 64), 1)

"""Attention over listed tokens, and merged parts, are the softmax over the union."""

import numpy as np
import pytest
from search_keys import clustered_keys, query_heads, stored

from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import Flat, attend, merge, naive, tokens_between

SCALE = 64**-0.5


def softmax_over(keys, values, queries, scale, tokens):
    """Float64: of each head over its tokens."""
    logits = [row[own] * scale for row, own in zip(naive.exact_scores(keys, queries), tokens, strict=True)]
    weights = [np.exp(row - row.max()) for row in logits]
    out = [w @ naive.numbers(values)[own] / w.sum() for w, own in zip(weights, tokens, strict=True)]
    lse = [row.max() + np.log(w.sum()) for row, w in zip(logits, weights, strict=True)]
    return np.array(out), np.array(lse)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("count", "head_size"), [(1, 32), (63, 80), (111, 128), (700, 64), (65, 200)])
def test_attention_over_the_kept_tokens(level, dtype, count, head_size):
    keys, values = (stored(clustered_keys(count, head_size, seed), dtype) for seed in (0, 5))
    queries = query_heads(7, head_size, as_bf16=False)
    hits = Flat(keys).dipr(queries, 25.0)
    out, lse = attend(keys, values, hits, queries, SCALE)
    assert out.dtype == lse.dtype == np.float32
    expected, denominators = softmax_over(keys, values, queries, SCALE, [hits.of(h) for h in range(7)])
    np.testing.assert_allclose(out, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(lse, denominators, rtol=1e-5, atol=1e-4)


def test_parts_merge_to_the_whole(level):
    keys, values, queries = clustered_keys(500, 64), clustered_keys(500, 64, 3), query_heads(7, 64)
    parts = [
        attend(keys, values, tokens_between(keys, queries, start, stop), queries, SCALE)
        for start, stop in ((0, 128), (128, 128), (128, 300), (300, 500))
    ]
    out, lse = merge(parts)
    expected, denominators = softmax_over(keys, values, queries, SCALE, [np.arange(500)] * 7)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lse, denominators, rtol=1e-5, atol=1e-5)


def test_no_tokens_weigh_nothing(level):
    keys, values, queries = clustered_keys(9, 64), clustered_keys(9, 64, 3), query_heads(2, 64)
    none = attend(keys, values, tokens_between(keys, queries, 4, 4), queries, SCALE)
    assert none[0].tolist() == np.zeros((2, 64)).tolist() and np.isneginf(none[1]).all()
    some = attend(keys, values, tokens_between(keys, queries, 0, 9), queries, SCALE)
    poison = (np.full_like(none[0], np.nan), none[1])
    for merged in (merge([none, some]), merge([some, poison]), merge([some])):
        np.testing.assert_array_equal(merged[0], some[0])
        np.testing.assert_array_equal(merged[1], some[1])
    empty = merge([none, none])
    assert (empty[0] == 0).all() and np.isneginf(empty[1]).all()


def test_large_products_do_not_overflow(level):
    keys, values = clustered_keys(100, 64), clustered_keys(100, 64, 3)
    queries = query_heads(3, 64) * 1000
    out, lse = attend(keys, values, tokens_between(keys, queries, 0, 100), queries, 1.0)
    expected, denominators = softmax_over(keys, values, queries, 1.0, [np.arange(100)] * 3)
    np.testing.assert_allclose(out, expected, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(lse, denominators, rtol=1e-5)


def test_what_is_no_number_stays_visible(level):
    keys, values, queries = clustered_keys(100, 64), clustered_keys(100, 64, 3), query_heads(2, 64)
    keys[3] = np.nan
    out, lse = attend(keys, values, Flat(keys).dipr(queries, 1.0), queries, SCALE)
    assert np.isnan(out).all() and np.isnan(lse).all()
    whole = attend(keys, values, tokens_between(keys, queries, 4, 100), queries, SCALE)
    assert np.isnan(merge([whole, (out, lse)])[0]).all()


def test_parts_that_do_not_fit_together_are_refused():
    keys, queries = clustered_keys(100, 64), query_heads(2, 64)
    hits = tokens_between(keys, queries, 0, 100)
    with pytest.raises(ContextError, match="do not belong to hits of 2 queries"):
        attend(keys, keys, hits, queries[:1], SCALE)
    with pytest.raises(ContextError, match="100 keys and 99 values"):
        attend(keys, keys[:99], hits, queries, SCALE)
    with pytest.raises(ContextError, match="nothing to merge"):
        merge([])

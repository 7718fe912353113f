"""Clusters hold every key once, open few of them, and find nearly all of the set."""

import numpy as np
import pytest
from search_keys import clustered_keys, guarded, query_heads, stored

from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import Clusters, Flat, naive, naive_clusters

SIZES = [(0, 64), (1, 32), (63, 80), (111, 128), (300, 2), (520, 64)]


def subset(hits, exact):
    """Hits are of the exact set; the share of it that was found, by head."""
    shares = []
    for head in range(exact.num_heads):
        all_tokens = set(exact.of(head))
        assert set(hits.of(head)) <= all_tokens
        shares.append(len(hits.of(head)) / max(len(all_tokens), 1))
    return np.array(shares)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("count", "head_size"), SIZES)
def test_every_key_is_in_one_cluster(level, dtype, count, head_size):
    keys = guarded(stored(clustered_keys(count, head_size), dtype))
    index = Clusters.build(keys)
    starts, tokens = index.arrays["starts"], index.arrays["tokens"]
    assert sorted(tokens) == list(range(count)) and len(index.arrays["odd"]) == 0
    assert index.num_clusters <= -(-count // 16)
    values = naive.numbers(keys)
    for cluster in range(index.num_clusters):
        own = tokens[starts[cluster] : starts[cluster + 1]]
        assert (np.diff(own) > 0).all()
        mean, variance = (naive.numbers(index.arrays[name][cluster]) for name in ("means", "variances"))
        np.testing.assert_allclose(values[own].mean(0), mean, rtol=2**-7, atol=1e-3)
        np.testing.assert_allclose(((values[own] - mean) ** 2).mean(0), variance, rtol=2**-6, atol=1e-3)


@pytest.mark.parametrize(("count", "head_size"), SIZES)
def test_what_is_found_is_of_the_set(level, count, head_size):
    keys = guarded(stored(clustered_keys(count, head_size), "bfloat16"))
    index = Clusters.build(keys)
    for num_heads in (1, 7, 9):
        queries = query_heads(num_heads, head_size)
        for start, stop in ((0, count), (count // 3, count - count // 5), (count, count)):
            lower = Flat(keys).topk(queries, 1).scores if count else None
            for seed in (lower, None):
                hits, exact = (each.dipr(queries, 12.5, start, stop, seed) for each in (index, Flat(keys)))
                assert (hits.tokens >= start).all() and (hits.tokens < stop).all() and hits.visited <= stop - start
                if seed is not None:
                    subset(hits, exact)
            best = index.topk(queries, 5, start, stop)
            assert np.diff(best.offsets).tolist() == [min(5, stop - start)] * num_heads


def test_a_great_spread_opens_all(level):
    keys, queries = stored(clustered_keys(700, 64), "bfloat16"), query_heads(7, 64)
    index, exact = Clusters.build(keys, sure=1e6, most=1e6), Flat(keys)
    assert (subset(index.dipr(queries, 20.0), exact.dipr(queries, 20.0)) == 1).all()
    assert index.topk(queries, 9).tokens.tolist() == exact.topk(queries, 9).tokens.tolist()


def test_few_keys_are_opened_and_nearly_all_are_found(level):
    keys, queries = stored(clustered_keys(4000, 64), "bfloat16"), query_heads(64, 64)
    index, exact = Clusters.build(keys), Flat(keys).dipr(queries, 12.0)
    assert index.nbytes < 4000 * 40
    found, opened = [], []
    for head in range(64):
        one = index.dipr(queries[head : head + 1], 12.0)
        opened.append(one.visited)
        found.append(len(set(one.of(0)) & set(exact.of(head))) / len(exact.of(head)))
    assert np.mean(found) >= 0.97 and np.mean(opened) <= 0.25 * 4000


def test_segments_are_clustered_by_themselves(level, monkeypatch):
    monkeypatch.setattr("vllm_relational.context.search.clusters.SEGMENT", 100)
    keys, queries = stored(clustered_keys(450, 32), "bfloat16"), query_heads(3, 32)
    index = Clusters.build(keys)
    starts, tokens = index.arrays["starts"], index.arrays["tokens"]
    for cluster in range(index.num_clusters):
        own = tokens[starts[cluster] : starts[cluster + 1]]
        assert own[0] // 100 == own[-1] // 100
    assert index.dipr(queries, 1e6, 300, 400).visited == 100


def test_keys_that_are_no_numbers_are_always_looked_at(level):
    numbers, queries = clustered_keys(500, 64), query_heads(3, 64)
    numbers[5], numbers[100, 3], numbers[400] = np.nan, np.inf, 1e30
    keys = stored(numbers, "float32")
    index = Clusters.build(keys)
    assert index.arrays["odd"].tolist() == [5, 100, 400]
    hits, exact = index.dipr(queries, 1.0), Flat(keys).dipr(queries, 1.0)
    np.testing.assert_array_equal(hits.tokens, exact.tokens)
    assert 5 not in index.dipr(queries, 1.0, 6).tokens


def test_equal_keys_are_found(level):
    keys, queries = np.full((200, 64), 0.5, np.float32), query_heads(2, 64)
    index = Clusters.build(keys)
    assert index.dipr(queries, 0.01).of(1).tolist() == list(range(200))
    assert index.topk(queries, 3).tokens.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_share_of_the_keys_is_opened_where_few_are_sure(level):
    keys, queries = stored(clustered_keys(2000, 64), "bfloat16"), query_heads(1, 64)
    lower = Flat(keys).topk(queries, 1).scores
    read = [
        Clusters.build(keys, sure=0.0, most=1e3, share=share).dipr(queries, 0.1, lower=lower).visited
        for share in (0.0, 0.1, 0.5, 1.0)
    ]
    assert read[0] < 0.05 * 2000 and read[3] > 0.98 * 2000  # but clusters of one key
    assert 0.1 * 2000 <= read[1] <= 0.15 * 2000 and 0.5 * 2000 <= read[2] <= 0.55 * 2000
    within = Clusters.build(keys, sure=0.0, most=1e3, share=0.1).dipr(queries, 0.1, 0, 200, lower)
    assert 20 <= within.visited <= 40


def test_products_are_those_of_the_reference(level):
    keys, queries = stored(clustered_keys(600, 64), "bfloat16"), query_heads(9, 64, as_bf16=False)
    index = Clusters.build(keys)
    expected = naive_clusters.Parts(keys, **index.arrays).products(queries)
    for own, reference in zip(index.products(queries), expected, strict=True):
        np.testing.assert_allclose(own, reference, rtol=1e-4, atol=1e-3)


def test_what_makes_no_sense_is_refused(level):
    keys = clustered_keys(50, 64)
    for wrong in (
        {"cluster_size": 0},
        {"cluster_size": 10**6},
        {"sure": -1.0},
        {"sure": np.nan},
        {"most": 1.0},
        {"share": 1.5},
    ):
        with pytest.raises(ContextError, match="there are none"):
            Clusters.build(keys, **wrong)
    with pytest.raises(ContextError, match="beta"):
        Clusters.build(keys).dipr(query_heads(1, 64), -3.0)

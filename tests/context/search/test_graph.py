"""The graph: its links, both searches in it, and the filter on positions."""

import numpy as np
import pytest
from search_keys import clustered_keys, guarded, query_heads, stored

from vllm_relational import native
from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import Flat, Graph, naive_graph

SIZES = [(0, 64), (1, 32), (63, 80), (111, 128), (300, 2)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("count", "head_size"), SIZES)
def test_what_is_found_is_of_the_set(level, dtype, count, head_size):
    keys = guarded(stored(clustered_keys(count, head_size), dtype))
    sampled, queries = query_heads(50, head_size, 4), query_heads(7, head_size)
    graph = Graph.build(keys, sampled, links=12, expansions=20)
    links = graph.arrays["links"]
    assert links.shape == (count, 12) and (links < count).all() and (links != np.arange(count)[:, None]).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in links)
    lower = Flat(keys).topk(queries, 1).scores if count else None
    for start, stop in ((0, count), (count // 3, count - count // 5), (count, count)):
        exact = Flat(keys).dipr(queries, 12.5, start, stop, lower)
        for hits in (graph.dipr(queries, 12.5, start, stop, lower), graph.diprs(queries, 12.5, start, stop, lower)):
            assert all(set(hits.of(head)) <= set(exact.of(head)) for head in range(7))
            assert hits.visited <= 7 * (stop - start)
        best = graph.topk(queries, 3, start, stop)
        assert (best.tokens >= start).all() and (best.tokens < stop).all()


def test_enough_expansions_find_all_that_can_be_reached(level):
    keys, queries = stored(clustered_keys(400, 64), "bfloat16"), query_heads(7, 64)
    graph = Graph.build(keys, query_heads(300, 64, 9), expansions=400)
    exact = Flat(keys).dipr(queries, 15.0)
    assert len(graph.dipr(queries, 15.0).tokens) >= 0.95 * len(exact.tokens)
    assert graph.topk(queries, 5).tokens.tolist() == Flat(keys).topk(queries, 5).tokens.tolist()
    few = Graph.build(keys, query_heads(300, 64, 9), expansions=2)
    assert few.dipr(queries, 0.1).visited < graph.dipr(queries, 0.1).visited


def test_a_sink_in_the_window_blinds_the_published_search_not_best_first(level):
    """No candidate reaches the bound that the window sets, and the first places go to whatever comes first."""
    keys, queries = clustered_keys(2000, 64, clusters=200), query_heads(14, 64)
    graph = Graph.build(keys[1:], query_heads(300, 64, 9), expansions=200)
    lower = Flat(keys[1:]).topk(queries, 1).scores + 5
    exact = Flat(keys[1:]).dipr(queries, 12.0, lower=lower)
    published, best_first = (search(queries, 12.0, lower=lower) for search in (graph.diprs, graph.dipr))
    assert len(published.tokens) < len(best_first.tokens) <= len(exact.tokens)


def test_keys_out_of_range_lead_to_their_neighbours(level):
    """A chain: from the entry, out of range, the next key in range is two hops away."""
    keys = np.zeros((5, 2), np.float32)
    keys[:, 0] = 1
    links = np.array([[1], [2], [3], [4], [-1]], np.int32)
    graph = Graph(keys, {"links": links, "entries": np.array([0], np.int32)}, {"expansions": 10})
    asked = np.ones((1, 2), np.float32)
    assert graph.dipr(asked, 1.0, 1).tokens.tolist() == [1, 2, 3, 4]
    assert graph.dipr(asked, 1.0, 0, 2).tokens.tolist() == [0, 1]
    gap = Graph(keys, {"links": links, "entries": np.array([1], np.int32)}, {"expansions": 10})
    assert gap.dipr(asked, 1.0, 2).tokens.tolist() == [2, 3, 4]
    assert gap.dipr(asked, 1.0, 4).tokens.tolist() == [4]


def test_products_that_are_no_numbers_end_no_search(level):
    numbers = clustered_keys(200, 64)
    numbers[5], numbers[9, 3] = np.nan, np.inf
    graph = Graph.build(numbers, query_heads(40, 64, 3), expansions=300)
    found = graph.dipr(query_heads(2, 64), 1.0)
    assert {5} <= set(found.of(0)) <= set(Flat(numbers).dipr(query_heads(2, 64), 1.0).of(0))


@pytest.mark.parametrize(("count", "head_size"), SIZES)
def test_native_code_and_reference_agree(count, head_size, monkeypatch):
    if not native.AVAILABLE:
        return
    keys = clustered_keys(count, head_size)
    sampled, queries = query_heads(30, head_size, 4), query_heads(3, head_size)
    graph = Graph.build(keys, sampled, links=8, expansions=5)
    reference = naive_graph.Links(keys, **graph.arrays)
    for start, stop in ((0, count), (count // 3, count)):
        asked = {"queries": queries, "lower": None, "start": start, "stop": stop, "beta": 9.0}
        for name, how in (("dipr", {"expansions": 5}), ("diprs", {"list_size": 4})):
            own = getattr(graph.loops, name)(**asked, **how, level="")
            expected = getattr(reference, name)(**asked, **how)
            np.testing.assert_array_equal(own[1], expected[1])
            assert own[3] == expected[3]


def test_what_makes_no_sense_is_refused(level):
    keys = clustered_keys(50, 64)
    with pytest.raises(ContextError, match="of 0 links a key"):
        Graph.build(keys, query_heads(3, 64), links=0)
    with pytest.raises(ContextError, match="queries must be"):
        Graph.build(keys, query_heads(3, 32))

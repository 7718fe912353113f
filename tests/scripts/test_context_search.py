"""The benchmark of searches: its lines say what its searches found, on keys whose answers are known."""

import argparse

import context_search
import numpy as np
import pytest
from search_keys import clustered_keys, query_heads, stored


@pytest.fixture
def arrays(tmp_path):
    keys = stored(clustered_keys(900, 64), "bfloat16")
    late = query_heads(7 * 128, 64).reshape(7, 128, 64)
    np.savez(tmp_path / "keys.npz", keys_4_0=keys, values_4_0=keys, queries_900_4_0=late)
    with np.load(tmp_path / "keys.npz") as opened:
        yield opened


def test_a_line_for_every_index_and_alpha(arrays, monkeypatch):
    monkeypatch.setattr(context_search, "REPEATS", 1)
    asked = argparse.Namespace(
        lengths="900", queries=2, alphas="0.1,0.001", indexes=context_search.INDEXES, commit="x", data="synthetic"
    )
    lines = list(context_search.lines(asked, arrays))
    assert [(line["index"], line["alpha"]) for line in lines] == [
        (kind, alpha) for kind in context_search.INDEXES.split(",") for alpha in (0.1, 0.001)
    ]
    for line in lines:
        assert float(line["recall"]) == 1 or line["index"] not in ("flat", "numpy", "int4")
        assert 0 <= float(line["recall"]) <= 1 and float(line["mass"]) <= float(line["mass_exact"]) + 1e-3 <= 1.01
        assert 0 <= float(line["read"]) <= 1 and float(line["us"]) > 0


def test_nothing_wrong_is_timed(arrays):
    case = context_search.Case(arrays, 900, "4_0", 2)
    _, search, _ = context_search.made("flat", case)

    def misses_some(queries, beta, *others):
        return search(queries, beta / 2, *others)

    def names_others(queries, beta, *others):
        return search(queries, beta * 2, *others)

    for wrong in (misses_some, names_others):
        with pytest.raises(AssertionError, match="a search is wrong"):
            context_search.check(case, wrong, 20.0, exact=True)
    context_search.check(case, misses_some, 20.0, exact=False)

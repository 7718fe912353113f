"""The optimizer takes the cheapest way that is allowed: on both sides of every threshold, with a given cost table."""

import numpy as np
import pytest

from vllm_relational.context.errors import ContextError
from vllm_relational.context.search.optimizer import Optimizer, SearchCosts, SearchRules, Situation, WayCost

WAYS = {
    "full": WayCost(fixed_us=10, key_us=0.10),
    "flat": WayCost(fixed_us=20, key_us=0.02),
    "int4": WayCost(fixed_us=40, key_us=0.03, build_key_us=1, index_bytes=48, resident=0.1),
    "clusters": WayCost(fixed_us=100, key_us=0.005, build_key_us=16, index_bytes=20, resident=0.25, recall=0.98),
    "graph": WayCost(fixed_us=400, key_us=0.001, build_key_us=300, index_bytes=128, resident=0.05, recall=0.96),
}
TABLE = SearchCosts(WAYS, hit_us=0.1, hit_share=0.0, hits=100.0, machine="given")
OFTEN = 10_000_000


def chosen(*, rules=None, without=(), **asked):
    table = SearchCosts({kind: WAYS[kind] for kind in WAYS if kind not in without}, 0.1, 0.0, 100.0)
    return Optimizer(table, rules).choose(Situation(**{"layer": 5, "uses": OFTEN, **asked}))


def threshold(decide, low, high):
    """The least number in (low, high] at which the decision is another than at ``low``."""
    before = decide(low)
    assert decide(high) != before
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if decide(middle) == before else (low, middle)
    return high


@pytest.mark.parametrize(
    ("one", "other", "at", "without"),
    [
        ("full", "flat", (20 + 10 - 10) / 0.08, ()),
        ("flat", "clusters", 80 / 0.015, ()),
        ("clusters", "graph", 300 / 0.004, ()),
    ],
)
def test_length_decides_where_the_lines_cross(one, other, at, without):
    found = threshold(lambda n: chosen(num_tokens=n).kind == other, 1 if one == "full" else int(at / 2), int(at * 2))
    assert chosen(num_tokens=found - 1).kind == one and chosen(num_tokens=found).kind == other
    assert found == pytest.approx(at, rel=0.02, abs=2)


def test_the_graph_is_taken_only_where_it_was_measured_faster():
    slow = SearchCosts({**WAYS, "graph": WayCost(400, 0.006, recall=0.99)}, 0.1)
    for num_tokens in (10**3, 10**5, 10**7):
        assert Optimizer(slow).choose(Situation(num_tokens, layer=5, uses=OFTEN)).kind != "graph"
    assert chosen(num_tokens=10**6, without=("graph",)).kind == "clusters"
    assert chosen(num_tokens=10**6).kind == "graph"


def test_uses_decide_whether_an_index_is_worth_building():
    def is_built(uses):
        return chosen(num_tokens=20_000, uses=uses, without=("graph",)).kind == "clusters"

    found = threshold(is_built, 1, 1000)
    saved = 0.015 * 20_000 - 80
    assert found == pytest.approx(16 * 20_000 / 128 / saved, abs=1.01)
    assert chosen(num_tokens=20_000, uses=1, built=frozenset({"clusters"}), without=("graph",)).kind == "clusters"
    assert chosen(num_tokens=20_000, uses=0, without=("graph",)).kind == "flat"


def test_first_layers_get_exact_ways():
    for dense_layers in (0, 1, 3):
        rules = SearchRules(dense_layers=dense_layers)
        kinds = [chosen(num_tokens=10**6, layer=layer, rules=rules).kind for layer in range(5)]
        assert kinds == ["flat"] * dense_layers + ["graph"] * (5 - dense_layers)


def test_exactness_and_recall_rule_ways_out():
    assert chosen(num_tokens=10**6, rules=SearchRules(exact=True)).kind == "flat"
    for min_recall, kind in ((0.96, "graph"), (0.961, "clusters"), (0.98, "clusters"), (0.981, "flat")):
        assert chosen(num_tokens=10**6, rules=SearchRules(min_recall=min_recall)).kind == kind
    assert chosen(num_tokens=10**6, rules=SearchRules(beta=None)).kind == "full"


def test_memory_decides():
    """10,000 keys: full 2.56 MB, flat 1.28, clusters .52, int4 .608, graph 1.344 MB of index and keys."""

    def kind(memory, **more):
        return chosen(num_tokens=10_000, memory_bytes=memory, **more).kind

    assert kind(None, rules=SearchRules(exact=True)) == "flat"
    found = threshold(lambda memory: kind(memory, rules=SearchRules(exact=True)) == "flat", 700_000, 2_000_000)
    assert found == 1_280_000
    assert kind(found - 1, rules=SearchRules(exact=True)) == "int4"
    assert kind(520_000) == "clusters" and kind(519_999) == "int4"


def test_tokens_within_beta_that_do_not_fit_become_the_best_k():
    room = 520_000 + 100 * 256
    plan = chosen(num_tokens=10_000, memory_bytes=room, without=("int4",))
    assert (plan.kind, plan.beta, plan.k) == ("clusters", 50.0, None)
    plan = chosen(num_tokens=10_000, memory_bytes=room - 1, without=("int4",))
    assert (plan.kind, plan.beta, plan.k) == ("clusters", None, 99)
    assert "the best 99" in plan.explain()


def test_where_nothing_fits_the_least_is_read_from_the_disk():
    plan = chosen(num_tokens=10_000, memory_bytes=2560)
    assert (plan.kind, plan.beta, plan.k) == ("int4", None, 10)
    assert "no way fits into 2,560 bytes" in plan.explain()
    assert chosen(num_tokens=10_000, memory_bytes=0).k == 1
    dense = chosen(num_tokens=10_000, memory_bytes=1, rules=SearchRules(beta=None))
    assert (dense.kind, dense.beta, dense.k) == ("full", None, None)


def test_the_position_filter_counts_what_is_in_range():
    everything = {"num_tokens": 100_000}
    assert chosen(**everything).kind == "graph"
    half = threshold(lambda stop: chosen(**everything, stop=stop).kind == "graph", 1, 100_000)
    assert half >= 50_000
    assert chosen(**everything, stop=49_999).kind == "clusters"
    assert "most links lead out of it" in chosen(**everything, stop=49_999).explain()
    assert chosen(**everything, stop=100, without=("graph",)).kind == "full"
    assert chosen(**everything, start=99_900, without=("graph",)).kind == "full"


def test_means_of_clusters_out_of_range_cost_too():
    ways = {"flat": WayCost(0, 0.02), "clusters": WayCost(0, 0.001, whole_key_us=0.002, recall=1.0)}
    optimizer = Optimizer(SearchCosts(ways, 0.0), SearchRules(dense_layers=0))
    stop = threshold(lambda stop: optimizer.choose(Situation(10_000, stop=stop)).kind == "clusters", 1, 10_000)
    assert stop == pytest.approx(0.002 * 10_000 / 0.019, abs=1.01)


def test_measured_lengths_take_the_place_of_a_line():
    way = WayCost(1e9, 1e9, whole_key_us=0.5, measured=((100, 50.0), (200, 150.0), (400, 250.0)))
    for in_range, us in ((150, 100.0), (200, 150.0), (300, 200.0), (400, 250.0), (800, 500.0), (90, 45.0), (0, 0.0)):
        assert way.search_us(in_range, 1000) == pytest.approx(500 + us)
    level = WayCost(0, 0, measured=((100, 50.0), (200, 50.0)))
    assert [level.search_us(n, n) for n in (10, 150, 400)] == [50.0, 50.0, 100.0]
    assert WayCost(0, 0, measured=((100, 50.0),)).search_us(10, 10) == pytest.approx(5)


def test_a_scan_that_leaves_the_cache_gives_way_to_clusters():
    ways = {
        "flat": WayCost(0, 0, measured=((1000, 10.0), (10_000, 100.0), (100_000, 2000.0))),
        "clusters": WayCost(0, 0, measured=((1000, 30.0), (10_000, 130.0), (100_000, 1000.0))),
    }
    optimizer = Optimizer(SearchCosts(ways, 0.0))
    kinds = [optimizer.choose(Situation(n, layer=5)).kind for n in (500, 1000, 10_000, 50_000, 100_000, 10**6)]
    assert kinds == ["flat", "flat", "flat", "clusters", "clusters", "clusters"]


def test_explain_names_every_way_and_why():
    told = Optimizer(TABLE, SearchRules(exact=True)).explain(Situation(50_000, layer=5, memory_bytes=7_000_000))
    first, *others = told.splitlines()
    assert first.startswith("flat: ") and "50,000 tokens" in first
    assert [line.split()[1].rstrip(":") for line in others] == ["full", "int4", "clusters", "graph"]
    assert "it needs 12,800,000 bytes, there are 7,000,000" in told
    assert told.count("it may miss tokens, and answers must be exact") == 2


def test_what_makes_no_sense_is_refused():
    for wrong in ({"start": 5, "stop": 4}, {"stop": 11}, {"start": -1}, {"uses": -1}):
        with pytest.raises(ContextError, match="are not of this context"):
            Situation(10, **wrong)
    for wrong in ({"beta": -1.0}, {"beta": np.nan}, {"min_recall": 1.1}, {"dense_layers": -1}, {"reuse_tokens": 0}):
        with pytest.raises(ContextError):
            SearchRules(**wrong)
    with pytest.raises(ContextError, match="needs one of full, flat, int4"):
        Optimizer(SearchCosts({"clusters": WAYS["clusters"]}, 0.1))
    with pytest.raises(ContextError, match="has no way 'full'"):
        Optimizer(SearchCosts({"flat": WAYS["flat"]}, 0.1), SearchRules(beta=None)).choose(Situation(10))

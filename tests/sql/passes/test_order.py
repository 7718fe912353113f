"""LLM predicates by cost and selectivity."""

from __future__ import annotations

import itertools

import pytest
from fake_engine import FakeEngine, parts_of, row_of
from hypothesis import given
from hypothesis import strategies as st
from oracle_engine import OracleEngine

from vllm_relational.sql.passes.order import FEWER, Estimate, by_inputs, by_rank

ESTIMATES = st.lists(st.builds(Estimate, st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=5)


def expected_cost(estimates) -> float:
    """Tokens a row when predicates are asked one after the other, each for the rows that passed those before."""
    cost, share = 0.0, 1.0
    for estimate in estimates:
        cost += share * estimate.cost
        share *= estimate.selectivity
    return cost


@given(ESTIMATES)
def test_no_other_order_costs_less(estimates):
    chosen = expected_cost([estimates[place] for place in by_rank(estimates)])
    best = min(expected_cost(order) for order in itertools.permutations(estimates))
    assert chosen == pytest.approx(best)


@pytest.mark.parametrize(
    ("counts", "places"),
    [
        ([100, 26], [0, 1]),
        ([100, 25], [1, 0]),
        ([26, 100], [0, 1]),
        ([100, 30, 7], [2, 0, 1]),
        ([100, 24, 7, 0], [3, 1, 2, 0]),
        ([0, 0], [0, 1]),
    ],
)
def test_far_fewer_inputs_go_first(counts, places):
    assert by_inputs(counts) == places


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=2), st.floats(0, 1), st.floats(0, 1))
def test_the_order_by_inputs_asks_a_quarter_more_at_worst(counts, first, second):
    """Of two predicates, whatever share of the other's inputs each leaves."""
    as_written = counts[0] + counts[1] * first
    asked = as_written if by_inputs(counts) == [0, 1] else counts[1] + counts[0] * second
    assert asked <= as_written * (1 + 1 / FEWER) + 1e-6


class Picky(FakeEngine):
    """Says yes to every statement but one in ten of those about 'rare'."""

    def _complete(self, prompt):
        rare = "rare" in parts_of(prompt)[0]
        self.answer = lambda row: "yes" if not rare or row["n"] % 10 == 0 else "no"
        return super()._complete(prompt)


def test_the_selective_predicate_goes_first_wherever_it_is_written(connect):
    for written in (["common", "rare"], ["rare", "common"]):
        engine = Picky()
        con = connect(engine=engine, sample_rows=10)
        con.sql("CREATE TABLE many AS SELECT i AS n FROM range(200) t(i)")
        where = " AND ".join(f"LLM_FILTER('{{n}} is {word}', n)" for word in written)
        assert len(con.sql(f"SELECT n FROM many WHERE {where}").fetchall()) == 20
        common = [row_of(prompt) for prompt in engine.asked if "common" in prompt.user]
        assert 20 <= len(common) <= 30 and len(engine.asked) == 200 + len(common)
        assert "predicate 1 of 2: keeps" in con.report()


@pytest.mark.parametrize("layout", ["question-first", "row-first"])
def test_equal_predicates_cost_the_same_whichever_is_sampled_first(connect, layout):
    con = connect(engine=Picky(), sample_rows=10, layout=layout)
    con.sql("CREATE TABLE many AS SELECT i AS n, repeat('long ' || i, 40) AS t FROM range(100) t(i)")
    con.sql("SELECT n FROM many WHERE LLM_FILTER('{t} {n} is one', t, n) AND LLM_FILTER('{t} {n} is two', t, n)")
    notes = [note for operator in con.last_run.operators for note in operator.notes if "tokens a row" in note]
    costs = {note.rpartition(", ")[2] for note in notes}
    assert len(notes) == 2 and len(costs) == 1


def test_small_inputs_are_asked_as_written(connect):
    engine = Picky()
    con = connect(engine=engine)
    con.sql(
        "SELECT 1 FROM (SELECT i AS n FROM range(20) t(i)) WHERE LLM_FILTER('{n} rare', n) AND LLM_FILTER('{n}', n)"
    )
    assert len(engine.asked) == 22


@pytest.mark.parametrize(("groups", "samples", "asked"), [(5, 32, 5), (6, 32, 20 + 6), (5, 0, 20 + 5)])
def test_a_predicate_over_few_values_goes_before_one_over_many(connect, groups, samples, asked):
    """5 of 20 do, 6 of 20 do not, nor with predicates as DuckDB orders them; nothing passes the one over few."""
    engine = FakeEngine(lambda row: "no" if "g" in row else "yes")
    con = connect(engine=engine, sample_rows=samples)
    rows = f"SELECT i AS n, i % {groups} AS g FROM range(20) t(i)"
    con.sql(f"SELECT 1 FROM ({rows}) WHERE LLM_FILTER('{{n}} is one', n) AND LLM_FILTER('{{g}} is two', g)")
    assert len(engine.asked) == asked


@pytest.mark.parametrize("test", ["EXISTS (SELECT 1", "3 < (SELECT count(*)"])
def test_predicates_of_a_correlated_subquery_run_as_written(connect, test):
    """Its rows cannot be counted without those around it."""
    query = (
        f"SELECT p.id FROM product p WHERE {test} FROM review r WHERE r.product_id = p.id "
        "AND LLM_FILTER('{text} is good', r.text) AND LLM_FILTER('{text} is long', r.text)) ORDER BY p.id"
    )
    rows = connect(sample_rows=3).sql(query).fetchall()
    assert rows == connect(engine=OracleEngine(), optimize=False).sql(query).fetchall()

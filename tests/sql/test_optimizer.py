"""Planned against unplanned: the same rows, never more questions."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from oracle_engine import OracleEngine

_spec = importlib.util.spec_from_file_location("random_queries", Path(__file__).with_name("random_queries.py"))
assert _spec is not None and _spec.loader is not None
random_queries = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(random_queries)


def run(connect, query: str, **settings) -> tuple[list, int, list[str]]:
    """Rows, distinct prompts asked, and column names."""
    engine = OracleEngine(fails_every=9)
    con = connect(engine=engine, **settings)
    result = con.sql(query)
    rows = result.fetchall()
    if not re.search(r"LIMIT \d+( OFFSET \d+)?$", query):
        rows = sorted(rows, key=repr)
    return rows, len(engine.asked), result.columns


def some(seeds: range, quick: int) -> list:
    """The seeds; all but the first ``quick`` are slow."""
    return [*seeds[:quick], *(pytest.param(seed, marks=pytest.mark.slow) for seed in seeds[quick:])]


@pytest.mark.parametrize("seed", some(range(48), 5))
def test_the_optimiser_changes_no_result_and_asks_no_more(connect, seed):
    query = random_queries.random_query(seed)
    rows, asked, columns = run(connect, query, sample_rows=3, batch_rows=4)
    expected, unplanned, names = run(connect, query, optimize=False)
    assert (rows, columns) == (expected, names), query
    assert asked <= unplanned, query


@pytest.mark.parametrize("seed", some(range(104, 116), 2))
def test_rows_before_questions_change_no_result_and_ask_no_more(connect, seed):
    query = random_queries.random_query(seed)
    rows, asked, columns = run(connect, query, sample_rows=3, batch_rows=4, layout="row-first")
    expected, unplanned, names = run(connect, query, optimize=False)
    assert (rows, columns) == (expected, names), query
    assert asked <= unplanned, query


@pytest.mark.slow
def test_the_random_queries_are_worth_planning(connect):
    """They answer something, and the optimiser saves something in many of them."""
    saved = filled = 0
    for seed in range(0, 120, 5):
        query = random_queries.random_query(seed)
        rows, asked, _ = run(connect, query, sample_rows=3, batch_rows=4)
        saved += asked < run(connect, query, optimize=False)[1]
        filled += bool(rows)
    assert filled >= 15 and saved >= 10

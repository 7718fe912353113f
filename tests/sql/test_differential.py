"""The short form of ``scripts/robustness/sql_differential.py``: generated statements against plain DuckDB."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "robustness" / "sql_differential.py"
_spec = importlib.util.spec_from_file_location("sql_differential", SCRIPT)
sql_differential = importlib.util.module_from_spec(_spec)
sys.modules["sql_differential"] = sql_differential
_spec.loader.exec_module(sql_differential)
# One layout: choosing one asks nothing and takes half of the time.
OPTIONS = {"sample_rows": 3, "batch_rows": 4, "layout": "question-first"}
WRONG = ("wrong rows", "wrong types", "wrong names", "broken")


@pytest.fixture(scope="module")
def comparison():
    return sql_differential.Comparison(**OPTIONS)


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_rows_types_and_names_are_those_of_plain_duckdb(comparison, first):
    outcomes = [comparison.run(sql_differential.sql_statements.statement(first + place)) for place in range(10)]
    assert [outcome for outcome in outcomes if outcome.kind in WRONG] == []
    assert sum(outcome.kind in ("refused", "invalid") for outcome in outcomes) <= 1


def test_the_comparison_sees_what_differs(comparison, monkeypatch):
    query = "SELECT d.id, LLM('Q1', d.text) AS y FROM d"
    assert comparison.run(query).kind == "equal"
    monkeypatch.setattr(sql_differential, "_labels", lambda decision: ("something", "else"))
    assert comparison.run(query).kind == "wrong rows"
    assert comparison.run("SELECT nothing FROM d WHERE LLM_FILTER('Q2', d.text)").kind == "invalid"
    assert comparison.run("SELECT LLM('Q3', d.text) AS y FROM d TABLESAMPLE 100%").kind == "refused"

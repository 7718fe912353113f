"""The short form of ``scripts/robustness/sql_differential.py --demands``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "robustness" / "sql_differential.py"


_spec = importlib.util.spec_from_file_location("sql_differential", SCRIPT)
assert _spec is not None and _spec.loader is not None
differential = importlib.util.module_from_spec(_spec)
sys.modules["sql_differential"] = differential
_spec.loader.exec_module(differential)
OPTIONS = {"sample_rows": 0, "batch_rows": 4, "layout": "question-first"}


@pytest.mark.parametrize("start", [0, pytest.param(500, marks=pytest.mark.slow)])
def test_rows_are_duckdbs_and_nothing_is_asked_that_it_does_not_evaluate(start):
    tally = differential.compare(range(start, start + 10), differential.sql_demands, **OPTIONS)
    assert tally.counts == {"equal": 10}, tally.outcomes


def test_the_comparison_sees_what_is_asked_too_much():
    """Without the optimiser far more is asked."""
    tally = differential.compare(range(5), differential.sql_demands, **OPTIONS, optimize=False)
    assert tally.counts["asked more"] >= 2

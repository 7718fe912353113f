"""The short form of scripts/robustness/fuzz_tables.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "robustness" / "fuzz_tables.py"
CASES = 300


def test_random_tables_raise_nothing_but_clear_errors_and_lose_nothing():
    spec = importlib.util.spec_from_file_location("fuzz_tables", SCRIPT)
    fuzz_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz_tables)
    outcomes, failures = fuzz_tables.fuzz(CASES, start=1_000_000)
    assert failures == []
    assert sum(outcomes.values()) == CASES
    assert sum(times for outcome, times in outcomes.items() if "written" in outcome) > CASES / 20

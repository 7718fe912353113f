"""A short form of scripts/robustness/fuzz_options.py."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "robustness" / "fuzz_options.py"


@pytest.mark.slow
def test_random_options_schemas_labels_and_answers():
    spec = importlib.util.spec_from_file_location("fuzz_options", SCRIPT)
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    outcomes: Counter[str] = Counter()
    for seed in range(3000):
        target, outcome, problem = fuzz.run_case(seed)
        assert problem is None, f"case {seed} ({target}): {problem}"
        outcomes[f"{target} {outcome}"] += 1
    assert {"plans planned", "makes made", "labels answered", "reads answered", "reads unusable"} <= set(outcomes)

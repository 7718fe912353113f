"""One bad row fails alone, with its reason, whatever its reply is: all kinds in one job over real sockets, and some of
the mutations of ``scripts/robustness/fuzz_replies.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from bad_replies import KINDS

from vllm_relational.records import Completion


def _script() -> Any:
    path = Path(__file__).parents[3] / "scripts" / "robustness" / "fuzz_replies.py"
    spec = importlib.util.spec_from_file_location("run_fuzz_replies", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Completion]:
    return SCRIPT.run_kinds()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_bad_reply_is_the_end_of_its_row_only(outcomes: dict[str, Completion], name: str) -> None:
    assert SCRIPT.kind_problem(name, outcomes[name]) is None


def test_mutated_replies_are_answers_or_reasons() -> None:
    ends = SCRIPT.run_mutations(800, seed=1)
    assert ends.total() == 800 and ends["answer"] > 40 and len(ends) > 8

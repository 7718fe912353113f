"""Seconds by stage."""

from __future__ import annotations

import pytest

from vllm_relational.query import clock
from vllm_relational.query.clock import Clock


@pytest.fixture
def ticks(monkeypatch):
    """A clock on the wall that the test moves."""
    now = [10.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    return now


def test_stages_add_up_to_what_was_taken_before(ticks):
    before = {"read": 1.0}
    measured = Clock(before)
    for stage, seconds in (("plan", 2.0), ("read", 3.0), ("plan", 0.5)):
        with measured(stage):
            ticks[0] += seconds
    assert measured.seconds == {"read": 4.0, "plan": 2.5} and before == {"read": 1.0}


def test_a_stage_that_raises_counts(ticks):
    measured = Clock({})
    with pytest.raises(ValueError), measured("plan"):
        ticks[0] += 2.0
        raise ValueError
    assert measured.seconds == {"plan": 2.0}

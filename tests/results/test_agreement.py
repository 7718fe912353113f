"""Shares of equal answers, with the interval that belongs to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.results.agreement import agreement, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # statsmodels 0.14, proportion_confint(method="wilson")
        (0, 10, 0.0, 0.277533),
        (1, 10, 0.017876, 0.404150),
        (81, 263, 0.255299, 0.366211),
        (10, 10, 0.722467, 1.0),
    ],
)
def test_known_intervals(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(0, 200).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_an_interval_holds_the_share_and_mirrors(pair):
    successes, trials = pair
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= (successes / trials if trials else 0.5) <= high <= 1
    mirrored = wilson_interval(trials - successes, trials)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_rows_without_a_second_answer_neither_agree_nor_disagree():
    found = agreement("again", 9, {1: "yes", 2: "no", 3: "no", 4: {"a": 1}}, {1: "yes", 2: "yes", 4: {"a": 1}})
    assert (found.population, found.num_asked, found.num_agreed, found.num_failed) == (9, 4, 2, 1)
    assert found.share == pytest.approx(2 / 3)
    assert found.changed == ((2, "no", "yes"),)


def test_nothing_asked_has_no_share():
    found = agreement("again", 0, {}, {})
    assert found.share is None and (found.low, found.high) == (0.0, 1.0)

"""How numbers are written in reports."""

from __future__ import annotations

import pytest

from vllm_relational.results.report_facts import count, percent


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (999, "999"), (1000, "1,000"), (12_345_678, "12,345,678")])
def test_counts_have_separators_of_thousands(number, text):
    assert count(number) == text


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0%"), (0.12345, "12.3%"), (0.9996, "100.0%"), (1.0, "100.0%")])
def test_shares_are_percents_with_one_decimal(share, text):
    assert percent(share) == text

"""What finished requests say of loaded tokens, and what is believed of it."""

from __future__ import annotations

import pytest

from vllm_relational.context.vllm_report import Loaded, loaded_of, report_of


def test_what_is_said_is_read():
    assert loaded_of(report_of(64, 16)) == Loaded(tokens=48, lost=16)
    assert report_of(0, 0) is None


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "contexts",
        {},
        {"contexts": 3},
        {"contexts": {"loaded": 3}},
        {"contexts": {"loaded": "3", "lost": 0}},
        {"contexts": {"loaded": True, "lost": 0}},
        {"contexts": {"loaded": -1, "lost": 0}},
    ],
)
def test_anything_else_says_nothing(said):
    assert loaded_of(said) == Loaded()

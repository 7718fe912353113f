"""Settings of DIPR attention: what they mean, and what is refused."""

from __future__ import annotations

import math

import pytest

from vllm_relational.records import RelationalError
from vllm_relational.sparse.settings import DiprSettings, read_dipr


def test_beta_of_alpha_and_of_the_length():
    assert DiprSettings(alpha=0.012).beta(128**-0.5, 10**6) == pytest.approx(50.0, abs=0.1)  # arXiv 2504.10326, table 5
    assert DiprSettings(alpha_length=8.0).beta(0.125, 8000) == pytest.approx(math.log(1000) * 8)
    assert DiprSettings(alpha=0).beta(0.125, 100) == math.inf and DiprSettings(alpha=0).attends_to_all
    assert DiprSettings(alpha_length=50).beta(0.125, 20) == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 2}, "dipr setting alpha is 2: it must be a share from 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"method": "magic"}, "one of auto, scan, v_skip, topk_pages, dense"),
        ({"tail": 1}, "tail is 1: it must be true or false"),
        ({"approximate": 1}, "approximate is 1: it must be true or false"),
        ({"top_tokens": 15}, "top_tokens is 15: it must be a whole number, 16 or more"),
        ({"recent": 0}, "a whole number, 1 or more"),
        ({"sinks": 1.5}, "a whole number, 0 or more"),
        ({"max_candidates": 0}, "a share above 0"),
        ({"certificate": True, "tail": False}, "it must be false without tail"),
        ({"certificate": True, "method": "topk_pages"}, "it must be false without pages_tail"),
        ({"alpha_length": -1}, "a number of tokens or null"),
        ({"betta": 50}, "dipr has no setting 'betta': there are method, alpha"),
        ([1], "they must be an object"),
    ],
)
def test_wrong_settings_say_what_is_right(given, message):
    with pytest.raises(RelationalError, match=message.replace("(", r"\(")):
        read_dipr(given)


@pytest.mark.parametrize("make", [lambda method: read_dipr({"method": method}), lambda method: DiprSettings(method)])
def test_the_old_name_of_a_method_works_with_a_warning(make):
    with pytest.warns(UserWarning, match="the dipr method 'pages' is called 'topk_pages' now"):
        assert make("pages") == make("topk_pages")


def test_the_old_name_of_a_setting_works_with_a_warning():
    with pytest.warns(UserWarning, match="the dipr setting 'most_candidates' is called 'max_candidates' now"):
        assert read_dipr({"most_candidates": 0.25}) == DiprSettings(max_candidates=0.25)

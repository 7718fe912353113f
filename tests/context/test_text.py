"""Ids of a session's text: what is known to follow, rows, padding."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_relational.context.errors import ContextError
from vllm_relational.context.text import SessionMisuseError, Text


def test_followed_by_what_is_known_and_by_more():
    text = Text.of([1, 2, 3, 4, 5])
    assert text.followed(Text.of([3, 4]), 2).ids.tolist() == [[1, 2, 3, 4, 5]]
    assert text.followed(Text.of([4, 5, 6, 7]), 3).ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert text.followed(Text.of([9]), 5).ids.tolist() == [[1, 2, 3, 4, 5, 9]]


@pytest.mark.parametrize(("new", "start", "token"), [([3, 5], 2, 3), ([9], 0, 0), ([5, 5], 4, None)])
def test_other_tokens_than_are_known(new, start, token):
    text = Text.of([1, 2, 3, 4, 5])
    if token is None:
        assert len(text.followed(Text.of(new), start)) == 6
        return
    with pytest.raises(SessionMisuseError, match=f"token {token} of the session"):
        text.followed(Text.of(new), start)


def test_rows_share_what_is_known():
    text = Text.of([1, 2, 3])
    both = text.followed(Text.of([[3, 4], [3, 5]], [[True, True], [False, True]]), 2)
    assert both.ids.tolist() == [[1, 2, 3, 4], [1, 2, 3, 5]]
    assert both.seen.tolist() == [[True] * 4, [True, True, False, True]]
    assert both.select(np.array([1, 1])).ids.tolist() == [[1, 2, 3, 5]] * 2
    with pytest.raises(SessionMisuseError, match="3 rows of tokens for a session of 2 rows"):
        both.then(Text.of([[1], [2], [3]]))


@pytest.mark.parametrize("ids", [1, [1.0], ["a"], [[[1]]], [True]])
def test_what_are_no_ids(ids):
    with pytest.raises(ContextError, match="whole numbers"):
        Text.of(ids)


def test_an_empty_text():
    assert len(Text.of(np.zeros(0, np.int64)).followed(Text.of([1]), 0)) == 1

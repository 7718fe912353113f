"""Whatever an embedder returns, what leaves this package are unit vectors, one a text."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_relational.embed import embed_texts
from vllm_relational.records import RelationalError


def test_vectors_have_length_one_and_keep_the_order_of_the_texts():
    vectors = embed_texts(lambda texts: np.array([[len(text), 1.0] for text in texts]), ["a", "bbbb", "a"])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1])
    assert (vectors[0] == vectors[2]).all() and vectors[1, 0] > vectors[0, 0]


def test_a_zero_vector_is_similar_to_nothing():
    vectors = embed_texts(lambda texts: np.array([[0.0, 0.0], [1.0, 0.0]]), ["", "x"])
    assert vectors.tolist() == [[0, 0], [1, 0]]


def test_no_text_needs_no_embedder():
    assert embed_texts(lambda texts: pytest.fail("asked"), []).shape == (0, 0)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ([["a"], ["b"]], "no table of numbers"),
        ([[1.0], [1.0, 2.0]], "no table of numbers"),
        (np.zeros((2, 0)), "one row a text"),
        (np.zeros((1, 2)), "one row a text"),
        (np.zeros(2), "one row a text"),
        (np.full((2, 2), np.nan), "not finite"),
    ],
)
def test_wrong_vectors_are_refused(returned, reason):
    with pytest.raises(RelationalError, match=reason):
        embed_texts(lambda texts: returned, ["a", "b"])

"""Likely pairs for semantic joins."""

import numpy as np
import pytest
from hashed_embedder import HashedTrigrams

pytest.importorskip("faiss", reason="pip install 'vllm-relational[semantic]'")

from vllm_relational.retrieval import nearest_pairs

LEFTS = ["red cotton dress", "blue wool coat", ""]
RIGHTS = ["coat of blue wool", "a dress, red, cotton", "green socks"]


def test_the_nearest_come_first():
    found = nearest_pairs(HashedTrigrams())(LEFTS, RIGHTS, 2)
    assert found.shape == (3, 2)
    assert found[:2, 0].tolist() == [1, 0]


def test_they_are_those_of_a_full_comparison():
    texts = [f"text {i % 7} of {i * i % 31}" for i in range(60)]
    vectors = HashedTrigrams()(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors[:20] @ vectors[20:].T
    found = nearest_pairs(HashedTrigrams())(texts[:20], texts[20:], 5)
    expected = -np.sort(-similarity, axis=1)[:, :5]
    assert np.allclose(np.take_along_axis(similarity, found, axis=1), expected, atol=1e-6)


@pytest.mark.parametrize("lefts, rights, shape", [([], RIGHTS, (0, 0)), (LEFTS, [], (3, 0)), (LEFTS, RIGHTS, (3, 3))])
def test_few_texts(lefts, rights, shape):
    assert nearest_pairs(HashedTrigrams())(lefts, rights, 9).shape == shape

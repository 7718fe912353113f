"""Token ids in every form that users have them; everything else is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vllm_relational.context.errors import ContextError
from vllm_relational.context.token_ids import as_token_ids, common_prefix


@pytest.mark.parametrize(
    "given",
    [
        [1, 2, 3],
        (1, 2, 3),
        [[1, 2, 3]],
        range(1, 4),
        np.array([1, 2, 3], np.int32),
        torch.tensor([1, 2, 3]),
        torch.tensor([[1, 2, 3]]),
        torch.tensor([1, 2, 3], dtype=torch.int32),
        np.array([1, 9, 2, 9, 3])[::2],
    ],
    ids=str,
)
def test_one_sequence_in_any_form(given):
    ids = as_token_ids(given)
    assert ids.dtype == np.uint32 and ids.tolist() == [1, 2, 3] and ids.flags.c_contiguous


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "no token ids"),
        ([[]], "no token ids"),
        ("text", "input_ids"),
        ([1.5], "integers"),
        ([True], "integers"),
        ([None], "integers"),
        ([-1], "-1"),
        ([2**32], str(2**32)),
        ([[1, 2], [3, 4]], "one sequence"),
        ([[1, 2], [3]], "no token ids"),
        (5, "one sequence"),
        (None, "one sequence"),
        ({"input_ids": [1]}, "not dict: pass"),
    ],
    ids=str,
)
def test_what_is_no_sequence_of_ids_is_refused(given, why):
    with pytest.raises(ContextError, match=why):
        as_token_ids(given)


def test_ids_of_another_tokenizer_are_refused():
    assert as_token_ids([49], 50).tolist() == [49]
    with pytest.raises(ContextError, match="50 tokens"):
        as_token_ids([50], 50)


@pytest.mark.parametrize(
    ("one", "other", "shared"), [([], [1], 0), ([1], [2], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1)]
)
def test_common_prefixes(one, other, shared):
    assert common_prefix(np.array(one), np.array(other)) == common_prefix(np.array(other), np.array(one)) == shared

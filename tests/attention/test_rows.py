"""Which requests are sparse, against a loop in Python."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.vllm_ext.dipr_rows import RowSplitter, may_decode, single_token_prompts

# (query tokens, tokens before them, of a prompt); no query tokens: padding, where vLLM leaves a length of 0
REQUEST = st.tuples(st.sampled_from([0, 1, 1, 2, 7]), st.integers(0, 40), st.booleans())


def tensors(requests):
    lengths = [query for query, _, _ in requests]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    seq_lens = torch.tensor([before + query if query else 0 for query, before, _ in requests]).int()
    return starts, seq_lens, torch.tensor([prompt for _, _, prompt in requests])


def is_sparse(request, dense_below):
    query, before, prompt = request
    return query == 1 and before + query >= dense_below and not prompt


@given(st.lists(REQUEST, min_size=1, max_size=9), st.integers(0, 40), st.integers(0, 3))
def test_every_request_is_dense_or_sparse(requests, dense_below, padding):
    requests = requests + [(0, 0, False)] * padding
    starts, seq_lens, prefilling = tensors(requests)
    splitter = RowSplitter(lambda num_reqs: dense_below, 16, torch.device("cpu"))
    dense, sparse = splitter.split(starts, seq_lens, single_token_prompts(starts, prefilling))

    wanted = [is_sparse(request, dense_below) for request in requests]
    lengths = seq_lens.tolist()
    assert sparse.tolist() == [length if yes else 0 for length, yes in zip(lengths, wanted, strict=True)]
    assert dense.tolist() == [0 if yes else length for length, yes in zip(lengths, wanted, strict=True)]
    assert may_decode(starts, max(query for query, _, _ in requests)) or not any(wanted)


def test_a_captured_graph_finds_the_lengths_where_they_were():
    splitter = RowSplitter(lambda num_reqs: 10, 8, torch.device("cpu"))
    captured = splitter.split(*tensors([(1, 4095, False)] * 4)[:2])
    later = splitter.split(*tensors([(1, 20, False), (1, 3, False), (0, 0, False), (0, 0, False)])[:2])
    assert [part.data_ptr() for part in captured] == [part.data_ptr() for part in later]
    assert captured[1].tolist() == [21, 0, 0, 0] and captured[0].tolist() == [0, 4, 0, 0]


def test_who_computes_one_token_of_a_prompt():
    starts = torch.tensor([0, 1, 6, 7]).int()
    assert single_token_prompts(starts, None) is None
    assert single_token_prompts(starts, torch.tensor([False, True, False])) is None
    assert single_token_prompts(starts, torch.tensor([True, True])).tolist() == [True, False]

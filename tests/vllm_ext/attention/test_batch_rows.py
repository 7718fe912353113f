"""Which requests are sparse, against a loop in Python."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.vllm_ext.attention.batch_rows import HostBatch, RowSplitter, may_decode

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
    dense, sparse = splitter.split(starts, seq_lens, HostBatch(starts, prefilling).single_token_prompts)

    wanted = [is_sparse(request, dense_below) for request in requests]
    lengths = seq_lens.tolist()
    assert sparse.tolist() == [length if yes else 0 for length, yes in zip(lengths, wanted, strict=True)]
    assert dense.tolist() == [0 if yes else length for length, yes in zip(lengths, wanted, strict=True)]
    assert may_decode(starts, max(query for query, _, _ in requests)) or not any(wanted)


@given(st.lists(REQUEST, min_size=1, max_size=4), st.integers(0, 20), st.integers(0, 3))
def test_the_host_knows_whether_every_request_is_sparse(requests, dense_below, padding):
    requests = requests + [(0, 0, False)] * padding
    starts, seq_lens, prefilling = tensors(requests)
    there = [is_sparse(request, dense_below) for request in requests if request[0]]
    assert HostBatch(starts, prefilling, seq_lens).is_sparse(dense_below) == (any(there) and all(there))
    assert not HostBatch(starts, prefilling).is_sparse(dense_below)
    assert not HostBatch(starts, prefilling, seq_lens[:-1]).is_sparse(dense_below)


def test_one_token_of_an_answer_that_is_computed_again_is_sparse():
    starts, seq_lens, prefilling = torch.tensor([0, 1, 2]).int(), torch.tensor([30, 31]).int(), torch.tensor([True] * 2)
    assert HostBatch(starts, prefilling, seq_lens, torch.tensor([20, 30]).int()).is_sparse(30)
    assert not HostBatch(starts, prefilling, seq_lens, torch.tensor([20, 31]).int()).is_sparse(30)
    assert not HostBatch(starts, prefilling, seq_lens, torch.tensor([20, 30]).int()).is_sparse(31)


def test_a_captured_graph_finds_the_lengths_where_they_were():
    splitter = RowSplitter(lambda num_reqs: 10, 8, torch.device("cpu"))
    captured = splitter.split(*tensors([(1, 4095, False)] * 4)[:2])
    later = splitter.split(*tensors([(1, 20, False), (1, 3, False), (0, 0, False), (0, 0, False)])[:2])
    assert [part.data_ptr() for part in captured] == [part.data_ptr() for part in later]
    assert captured[1].tolist() == [21, 0, 0, 0] and captured[0].tolist() == [0, 4, 0, 0]


def test_who_computes_one_token_of_a_prompt():
    starts = torch.tensor([0, 1, 6, 7]).int()
    assert HostBatch(starts).single_token_prompts is None
    assert HostBatch(starts, torch.tensor([False, True, False])).single_token_prompts is None
    assert HostBatch(starts, torch.tensor([True, True])).single_token_prompts.tolist() == [True, False]


def test_one_token_of_an_answer_is_none_of_a_prompt():
    """Where vLLM takes what a preempted request computes again for its prompt."""
    starts, seq_lens = torch.tensor([0, 1, 2, 3, 3]).int(), torch.tensor([30, 31, 9]).int()
    batch = HostBatch(starts, torch.tensor([True, True, True, False]), seq_lens, torch.tensor([30, 30, 0]).int())
    assert batch.single_token_prompts.tolist() == [True, False, True, False]


AGAIN = st.tuples(st.sampled_from([0, 1, 2, 7, 20]), st.integers(0, 40), st.integers(0, 50))


@given(st.lists(AGAIN, min_size=1, max_size=6), st.integers(0, 40), st.integers(1, 5))
def test_tokens_of_answers_are_requests_of_their_own(requests, dense_below, size):
    """(query tokens, tokens before them, tokens of the prompt or 0 for unknown), against a loop."""
    starts, seq_lens, _ = tensors([(query, before, False) for query, before, _ in requests])
    prompts = torch.tensor([prompt for _, _, prompt in requests]).int()
    recompute = HostBatch(starts, None, seq_lens, prompts).recompute(dense_below, torch.device("cpu"))

    wanted = []
    for request, (query, before, prompt) in enumerate(requests):
        for place in range(before, before + query):
            if query > 1 and 0 < prompt <= place and place + 1 >= dense_below:
                wanted.append((request, place + 1, int(starts[request]) + place - before))
    pieces = list(recompute.pieces(size)) if recompute is not None else []
    found = [row for piece in pieces for row in zip(*(part.tolist() for part in piece), strict=True)]
    assert found == wanted and all(len(piece[0]) <= size for piece in pieces)
    assert recompute is None or recompute.longest == max(length for _, length, _ in wanted)

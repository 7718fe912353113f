"""Attention over parts, against the same written down, for grouped heads, shared keys and masks."""

from __future__ import annotations

import pytest
import torch

from vllm_relational.context.torch_attention import attend, causal_mask, greatest_score, merge, plain

SIZE, SCALE = 16, 0.3


def given(batch, shared, kv_heads, group, new, tokens):
    torch.manual_seed(batch + group + new + tokens)
    query = torch.randn(batch, new, kv_heads * group, SIZE).transpose(1, 2)
    keys, values = torch.randn(2, shared, kv_heads, tokens + 9, SIZE)[:, :, :, :tokens]
    return query, keys, values


def written_down(query, keys, values, mask):
    group = query.shape[1] // keys.shape[1]
    added = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return plain(query, keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), added, SCALE)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("group", [1, 3, 7, 8, 15])
@pytest.mark.parametrize(("batch", "shared"), [(1, 1), (3, 3), (3, 1)])
def test_attention(batch, shared, group, new, masked):
    query, keys, values = given(batch, shared, 2, group, new, 63)
    mask = (torch.rand(batch, 1, new, 63) < 0.5) if masked else None
    if mask is not None:
        mask[..., 0] = True
    out, lse = attend(query, keys, values, mask, SCALE)
    expected = written_down(query, keys, values, mask)
    assert out.shape == query.shape and lse.shape == query.shape[:3]
    assert torch.allclose(out, expected[0], atol=1e-5) and torch.allclose(lse, expected[1], atol=1e-5)


@pytest.mark.parametrize("new", [1, 4])
def test_parts_merge_to_the_whole(new):
    query, keys, values = given(2, 2, 2, 3, new, 100)
    mask = causal_mask(new, 100, query.device)
    mask = torch.ones(1, 1, new, 100, dtype=torch.bool) if mask is None else mask
    whole = attend(query, keys, values, mask, SCALE)
    pieces = [(0, 30), (30, 97), (97, 100)]  # of the last the first query sees one key or none
    parts = [attend(query, keys[:, :, a:b], values[:, :, a:b], mask[..., a:b], SCALE) for a, b in pieces]
    for one, other in zip(merge(parts), whole, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert merge(parts[:1]) is parts[0]


def test_a_part_that_a_query_sees_nothing_of():
    query, keys, values = given(1, 1, 1, 2, 2, 20)
    mask = torch.tensor([[False] * 20, [True] * 20])[None, None]
    nothing = attend(query, keys, values, mask, SCALE)
    assert nothing[1][0, :, 0].tolist() == [-torch.inf] * 2
    other = attend(query, keys + 1, values + 1, None, SCALE)
    merged = merge([nothing, other])
    assert torch.allclose(merged[0][:, :, 0], other[0][:, :, 0], atol=1e-6)
    assert torch.allclose(merged[1][:, :, 0], other[1][:, :, 0])
    assert not merge([nothing, nothing])[0][:, :, 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_row_more_changes_no_bit(dtype):
    query, keys, values = (each.to(dtype) for each in given(1, 1, 2, 7, 1, 1000))
    eight = torch.cat([query.view(1, 2, 7, SIZE), torch.ones(1, 2, 1, SIZE, dtype=dtype)], 2).view(1, 16, 1, SIZE)
    out, _ = attend(eight, keys, values, None, SCALE)
    assert torch.equal(
        out.view(1, 2, 8, SIZE)[:, :, :7], attend(query, keys, values, None, SCALE)[0].view(1, 2, 7, SIZE)
    )


def test_the_greatest_score():
    query, keys, _ = given(2, 2, 2, 3, 1, 40)
    expected = (query @ keys.repeat_interleave(3, 1).transpose(-1, -2)).amax(-1)[:, :, 0]
    assert torch.allclose(greatest_score(query, keys), expected, atol=1e-5)
    assert greatest_score(query, keys[:, :, :0]).tolist() == [[-torch.inf] * 6] * 2

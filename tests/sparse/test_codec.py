"""The 4-bit index: what its codes promise holds for any keys."""

from __future__ import annotations

import pytest
import torch
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_relational.sparse import codec
from vllm_relational.sparse.pages import GROUPS, PageLayout, new_cache

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@st.composite
def keys(draw):
    """Keys of a group: channels of very different size and offset, some of them constant."""
    head_size = draw(st.sampled_from([16, 64, 80, 128]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size = 10 ** torch.empty(head_size).uniform_(-6, draw(st.integers(-3, 4)), generator=random)
    offset = torch.randn(head_size, generator=random) * draw(st.sampled_from([0.0, 1.0, 300.0]))
    found = torch.randn((draw(st.sampled_from(GROUPS)), head_size), generator=random) * size + offset
    found[:, :: draw(st.integers(2, 9))] = draw(st.sampled_from([0.0, -7.5]))
    return found.to(draw(st.sampled_from(DTYPES))).float()


@settings(max_examples=examples(150), deadline=None)
@given(keys())
def test_a_key_is_at_most_half_a_step_from_what_its_code_says(group):
    codes, zero_point, scale = codec.encode(group)
    far = (codec.decode(codes, zero_point, scale) - group).abs()
    known = zero_point.isfinite()
    assert known[(group.abs() < 5000).all(0)].all()  # real keys are far smaller
    assert (far <= codec.decode_scale(scale).float() * 0.5 * codec.SLACK)[:, known].all()


@settings(max_examples=examples(100), deadline=None)
@given(keys(), st.integers(0, 2**32))
def test_the_bound_holds_for_every_query(group, seed):
    query = torch.randn((3, group.shape[1]), generator=torch.Generator().manual_seed(seed))
    codes, zero_point, scale = codec.encode(group)
    estimate = query.double() @ codec.decode(codes, zero_point, scale).double().T
    bound = query.abs() @ codec.decode_scale(scale).float() * (0.5 * codec.SLACK)
    bound = bound[:, None]
    wrong = (estimate - query.double() @ group.double().T).abs() > bound + 1e-3
    assert not wrong.any()  # NaN is never more


def test_keys_that_no_code_can_hold_are_marked():
    group = torch.zeros(16, 64)
    group[3, 5], group[4, 6], group[:, 7] = torch.nan, torch.inf, torch.linspace(-2e3, 2e3, 16)
    group[2, 8] = 65000.0
    _, zero_point, _ = codec.encode(group)
    assert zero_point.isnan().nonzero().flatten().tolist() == [5, 6, 8]


@pytest.mark.parametrize("head_size", [16, 64, 80, 128, 256])
def test_packing_has_an_inverse(head_size):
    codes = torch.randint(0, 16, (3, 16, head_size), dtype=torch.uint8)
    assert torch.equal(codec.unpack(codec.pack(codes)), codes)


def test_steps_are_rounded_up_by_an_eighth_at_most():
    steps = 2.0 ** torch.empty(1000).uniform_(-13.9, 12)
    kept = codec.decode_scale(codec.encode_scale(steps).to(torch.uint8)).float()
    assert ((kept >= steps) & (kept <= steps * 1.125)).all()


@pytest.mark.parametrize("block_size", [16, 48, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_a_page_share_no_byte_and_leave_few(block_size, dtype):
    layout = PageLayout(block_size, 80, dtype)
    pages = layout.views(new_cache(layout, 3, 2))
    for value, part in enumerate(
        (pages.key, pages.value, pages.codes, pages.zero_point, pages.value_mean, pages.scale), 1
    ):
        raw = part[1, 1].contiguous().view(torch.uint8)
        part[1, 1] = torch.full_like(raw, value).view(part.dtype).view(part[1, 1].shape)
    page = pages.cache.view(torch.uint8)[1, 1].flatten()
    groups = layout.num_groups
    sizes = [block_size * 80 * dtype.itemsize] * 2 + [block_size * 40, *(groups * n for n in (160, 160, 80))]
    assert [int((page == value).sum()) for value in range(1, 7)] == sizes
    assert pages.cache.view(torch.uint8).count_nonzero() == sum(sizes)
    assert len(page) == block_size * layout.token_bytes


@pytest.mark.parametrize(("block_size", "group"), [(16, 16), (48, 16), (96, 32), (64, 64), (128, 64), (80, 16)])
def test_groups_are_as_large_as_blocks_allow(block_size, group):
    layout = PageLayout(block_size, 128)
    assert (layout.group, layout.num_groups) == (group, block_size // group)
    assert layout.index_bytes == {16: 104, 32: 84, 64: 76}[group]  # with what rounding to 4 adds


def test_a_group_is_sealed_when_its_last_token_comes():
    layout = PageLayout(16, 64, torch.float32)
    whole, by_token = (layout.views(new_cache(layout, 3, 2)) for _ in range(2))
    keys, values, slots = torch.randn(40, 2, 64), torch.randn(40, 2, 64), torch.arange(40)
    codec.write(whole, keys, values, slots)
    for token in range(40):
        codec.write(by_token, keys[token : token + 1], values[token : token + 1], slots[token : token + 1])
    assert torch.equal(whole.cache.view(torch.int32), by_token.cache.view(torch.int32))
    assert whole.codes[:2].count_nonzero() and not whole.codes[2].any()
    codec.write(whole, keys, values, torch.full((40,), -1))
    assert torch.equal(whole.cache.view(torch.int32), by_token.cache.view(torch.int32))


@pytest.mark.parametrize(("block_size", "head_size"), [(8, 64), (24, 64), (16, 40), (16, 8)])
def test_sizes_without_an_index_are_refused(block_size, head_size):
    with pytest.raises(ValueError, match="DIPR index needs"):
        PageLayout(block_size, head_size)

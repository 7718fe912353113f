"""Every kernel against its reference: odd sizes, any group of heads, poisoned memory, blocks at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import DEVICE, ON_GPU, SHAPES, TOLERANCE, WINDOW, attended, context, expected, run
from paged import paged_batch

from vllm_relational.sparse import codec, naive
from vllm_relational.sparse.kernels.write import write
from vllm_relational.sparse.pages import PageLayout, new_cache
from vllm_relational.sparse.settings import DiprSettings


@pytest.mark.parametrize("method", ["scan", "v_skip"])
@pytest.mark.parametrize(("group", "kv_heads", "head_size", "block_size", "dtype"), SHAPES)
def test_an_infinite_beta_is_dense_attention(method, group, kv_heads, head_size, block_size, dtype):
    batch = paged_batch(
        [1, 63, 300, 0, 111],
        group=group,
        kv_heads=kv_heads,
        head_size=head_size,
        block_size=block_size,
        dtype=dtype,
        device=DEVICE,
    )
    output, _ = run(batch, DiprSettings(alpha=0.0, tail=False, **WINDOW), method)
    right = expected(batch, DiprSettings(alpha=0.0, tail=False, **WINDOW))
    touched = batch.rows[batch.lens > 0].long()
    assert torch.allclose(output[touched].float(), right[touched].float(), atol=TOLERANCE[dtype])
    others = [row for row in range(len(output)) if row not in touched.tolist()]
    assert output[others].isnan().all()  # nobody's rows


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(("group", "kv_heads", "head_size", "block_size", "dtype"), SHAPES)
def test_a_scan_attends_to_the_dipr_set_and_what_it_lists(tail, group, kv_heads, head_size, block_size, dtype):
    batch = paged_batch(
        [740, 333],
        group=group,
        kv_heads=kv_heads,
        head_size=head_size,
        block_size=block_size,
        dtype=dtype,
        spread=3.0,
        device=DEVICE,
    )
    dipr = DiprSettings(alpha=0.3, tail=tail, max_candidates=1.0, **WINDOW)
    output, made = run(batch, dipr, "scan")
    rule = naive.Dipr(dipr.beta(batch.scale, 1))
    for request, row in enumerate(batch.rows.tolist()):
        length = int(batch.lens[request])
        kept = attended(batch, made, request)
        _, key, value = context(batch, request)
        exact = naive.decode(batch.query[row].double(), key.double(), value.double(), batch.scale, rule)
        union = exact.kept.view(kv_heads, group, length).any(1).cpu()
        assert (kept | ~union).all()
        assert kept.sum() < kept.numel()  # it did leave something out
        listed = naive.decode(
            batch.query[row].float(),
            key.float(),
            value.float(),
            batch.scale,
            naive.KnownTokens(kept.repeat_interleave(group, 0)),
            tail=tail,
        )
        # Weights of the tail are estimates: their error is bounded by the codes', not by rounding.
        atol = TOLERANCE[dtype] if not tail else TOLERANCE[dtype] + 0.05
        assert torch.allclose(output[row].float(), listed.output, atol=atol)


@settings(max_examples=8 if not ON_GPU else 60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(65, 500 if not ON_GPU else 9000),
    st.sampled_from([0.5, 2.0, 6.0]),
    st.sampled_from([1e-3, 0.02, 0.3]),
    st.integers(1, 9),
    st.booleans(),
)
def test_no_token_of_the_dipr_set_is_left_out(seed, length, spread, alpha, programs, by_length):
    batch = paged_batch([length], group=2, kv_heads=1, spread=spread, seed=seed, dtype=torch.bfloat16, device=DEVICE)
    dipr = DiprSettings(alpha=alpha, alpha_length=alpha * length if by_length else None, **WINDOW)
    _, made = run(batch, dipr, "scan", programs)
    kept = attended(batch, made, 0)
    key = naive.gather(batch.pages.key, batch.block_table[0], length).double()
    exact = naive.decode(
        batch.query[batch.rows[0].long()].double(), key, key, batch.scale, naive.Dipr(dipr.beta(batch.scale, length))
    )
    assert (kept | ~exact.kept.any(0).cpu()).all()


@pytest.mark.parametrize("alpha", [0.3, 0.01])
def test_v_skip_leaves_out_no_more_than_dipr(alpha):
    """Without a tail the error is bounded by the attention mass that exact DIPR leaves out."""
    batch = paged_batch([700, 401], spread=6.0, device=DEVICE)
    dipr = DiprSettings(alpha=alpha, tail=False, **WINDOW)
    output, made = run(batch, dipr, "v_skip")
    rule, window = naive.Dipr(dipr.beta(batch.scale, 1)), naive.Window(**WINDOW)
    for request, row in enumerate(batch.rows.tolist()):
        _, key, value = context(batch, request)
        query = batch.query[row].double()
        exact = naive.decode(query, key.double(), value.double(), batch.scale, rule, window)
        dense = naive.decode(query, key.double(), value.double(), batch.scale, naive.Dense())
        off = (output[row].double() - dense.output).abs().amax(-1)
        assert (off <= 2 * (1 - exact.kept_weight) * value.abs().max() + 1e-3).all()
    read = made.counts[: 2 * 2 * made.splits(2)].sum()
    assert read < 0.9 * 2 * batch.lens.sum() or alpha < 0.3


def test_the_tail_of_v_skip_is_exact_where_values_are_their_groups_mean():
    batch = paged_batch([608], spread=6.0, device=DEVICE)
    mean = batch.pages.value.unflatten(2, (-1, 16)).mean(3, keepdim=True)
    batch.pages.value[:] = mean.expand(-1, -1, -1, 16, -1).flatten(2, 3).bfloat16()
    batch.pages.value_mean[:] = batch.pages.value[:, :, ::16].bfloat16()
    output, made = run(batch, DiprSettings(alpha=0.5, **WINDOW), "v_skip")
    dense = expected(batch, DiprSettings(alpha=0.0, tail=False))
    row = int(batch.rows[0])
    assert made.counts[: 2 * made.splits(1)].sum() < 2 * 608
    assert torch.allclose(output[row], dense[row], atol=5e-3)


def test_a_split_that_lists_too_many_counts_whole():
    batch = paged_batch([900], spread=0.1, device=DEVICE)
    dipr = DiprSettings(alpha=0.01, max_candidates=0.05, **WINDOW)
    output, made = run(batch, dipr, "scan")
    assert (made.counts[: 2 * made.num_lists(1)] < 0).any()
    dense = expected(batch, DiprSettings(alpha=0.0, tail=False))
    row = int(batch.rows[0])
    assert torch.allclose(output[row], dense[row], atol=1e-3)
    body, listed, full = made.statistics[:3].tolist()
    assert full > 0 and body == 2 * (832 - 32) and listed <= body


def test_keys_that_no_code_can_hold_are_attended_to():
    batch = paged_batch([500], dtype=torch.bfloat16, spread=4.0, device=DEVICE)
    block = int(batch.block_table[0, 10])
    keys = batch.pages.key[block].transpose(0, 1).clone()
    keys[3, 0, 7] = 1e5
    slots = torch.arange(16, device=DEVICE) + block * 16
    write(batch.pages, keys, batch.pages.value[block].transpose(0, 1).clone(), slots)
    _, made = run(batch, DiprSettings(alpha=0.9, **WINDOW), "scan")
    assert attended(batch, made, 0)[0, 160:176].all()


@pytest.mark.parametrize(
    ("query", "size", "sign", "block_size"),
    [(200.0, 1.0, -1.0, 16), (200.0, 1.0, 1.0, 64), (5000.0, 0.0025, -1.0, 64), (5000.0, 0.0025, 1.0, 16)],
)
def test_products_beyond_float16_lose_no_token(query, size, sign, block_size):
    """Of a query with a step, that is. Token 200 has the greatest score, token 201 a greater one in that channel."""
    batch = paged_batch([700], dtype=torch.bfloat16, block_size=block_size, spread=0.1, device=DEVICE)
    blocks = batch.block_table[0, : -(-700 // block_size)].long()
    block, token = blocks[200 // block_size], 200 % block_size
    keys = batch.pages.key
    keys[blocks, :, :, 0], keys[blocks, :, :, 16] = -120 * size * sign, 0.0
    keys[block, :, token, 0], keys[block, :, token + 1, 0] = 240 * size * sign, 280 * size * sign
    keys[block, :, token + 1, 16] = -200.0
    batch.query[:, :, 0], batch.query[:, :, 16] = query * sign, 100.0
    slots = blocks[:, None] * block_size + torch.arange(block_size, device=DEVICE)
    codec.quantise_groups(batch.pages, slots.flatten())
    _, made = run(batch, DiprSettings(alpha=0.3, max_candidates=1.0, **WINDOW), "scan")
    assert attended(batch, made, 0)[:, 200].all()


@pytest.mark.parametrize("launches", [[70], [20, 1, 1, 1, 30, 1, 1, 1, 14]])
@pytest.mark.parametrize(
    ("head_size", "block_size", "dtype"), [(64, 16, torch.bfloat16), (96, 32, torch.float16), (80, 64, torch.float32)]
)
def test_writing_stores_and_seals_the_bits_of_the_reference(head_size, block_size, dtype, launches):
    """At once, or so that tokens of a group come in several launches."""
    layout = PageLayout(block_size, head_size, dtype)
    right, found = (layout.views(new_cache(layout, 6, 3, DEVICE)) for _ in range(2))
    keys, values = odd_keys_and_values(70, 3, head_size, dtype)
    slots = torch.arange(70, device=DEVICE) + block_size - 11
    slots[65] = -1
    for each in zip(keys.split(launches), values.split(launches), slots.split(launches), strict=True):
        codec.write(right, *each)
        write(found, *each)
    same_index(found, right)
    assert torch.equal(found.key_value.nan_to_num(-1), right.key_value.nan_to_num(-1))


def test_writing_reads_any_rows_and_skips_those_that_only_pad():
    """Views into one tensor of queries, keys and values, more rows than slots, two requests in one launch."""
    layout = PageLayout(16, 64, torch.float32)
    right, found = (layout.views(new_cache(layout, 6, 2, DEVICE)) for _ in range(2))
    keys, values = odd_keys_and_values(44, 2, 64, torch.float32)
    together = torch.cat([keys.flatten(1), torch.zeros((44, 5), device=DEVICE), values.flatten(1)], 1)
    views = together[:, :128].unflatten(1, (2, 64)), together[:, 133:].unflatten(1, (2, 64))
    slots = torch.cat([torch.arange(20) + 12, torch.arange(20) + 64]).to(DEVICE)
    codec.write(right, keys, values, slots)
    write(found, *views, slots)
    same_index(found, right)
    assert torch.equal(found.key_value.nan_to_num(-1), right.key_value.nan_to_num(-1))


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_a_group_is_sealed_with_the_tokens_of_its_own_request(block_size):
    """Whose first tokens came before, beside the tokens of another request that end within a group."""
    layout = PageLayout(block_size, 64, torch.float32)
    right, found = (layout.views(new_cache(layout, 8, 2, DEVICE)) for _ in range(2))
    begun = torch.arange(7) + 4 * block_size
    other, rest = torch.arange(20) + block_size - 4, torch.arange(block_size) + 4 * block_size + 7
    nowhere = torch.full((3,), -1)
    for slots in (begun, torch.cat([other, rest, nowhere, torch.tensor([6 * block_size + 3])])):
        keys, values = odd_keys_and_values(len(slots) + 60, 2, 64, torch.float32)
        codec.write(right, keys, values, slots.to(DEVICE))
        write(found, keys, values, slots.to(DEVICE))
    same_index(found, right)


@pytest.mark.parametrize("tokens", [4096 if ON_GPU else 130])
def test_groups_are_sealed_while_other_programs_store_their_tokens(tokens):
    layout = PageLayout(64, 128, torch.float32)
    right, found = (layout.views(new_cache(layout, tokens // 64 + 2, 8, DEVICE)) for _ in range(2))
    keys, values = odd_keys_and_values(tokens, 8, 128, torch.float32)
    slots = torch.arange(tokens, device=DEVICE) + 64
    codec.write(right, keys, values, slots)
    for _ in range(5 if ON_GPU else 1):
        found.cache.zero_()
        write(found, keys, values, slots)
        same_index(found, right)


def test_keys_are_sealed_as_they_are_stored():
    """Rounded to the numbers of the cache."""
    layout = PageLayout(16, 64, torch.float16)
    right, found = (layout.views(new_cache(layout, 5, 3, DEVICE)) for _ in range(2))
    keys, values = odd_keys_and_values(64, 3, 64, torch.float32)
    slots = torch.arange(64, device=DEVICE)
    codec.write(right, keys, values, slots)
    write(found, keys, values, slots)
    same_index(found, right)
    assert torch.equal(found.key_value.nan_to_num(-1), right.key_value.nan_to_num(-1))


def odd_keys_and_values(tokens, kv_heads, head_size, dtype):
    shape = (tokens, kv_heads, head_size)
    random = torch.Generator().manual_seed(tokens + head_size)
    keys = torch.randn(shape, generator=random) * torch.rand(head_size, generator=random) * 10 + 5
    keys[20, 1, 3], keys[40, 0, 0] = torch.nan, 5e4
    return keys.to(dtype).to(DEVICE), torch.randn(shape, generator=random).to(dtype).to(DEVICE)


def same_index(found, right):
    assert torch.equal(found.codes, right.codes) and torch.equal(found.scale, right.scale)
    assert torch.equal(found.zero_point.nan_to_num(-1), right.zero_point.nan_to_num(-1))
    # the interpreter cuts where others round
    assert torch.allclose(found.value_mean.float(), right.value_mean.float(), rtol=2**-7, atol=1e-6)


def test_the_certificate_counts_what_is_only_estimated():
    batch = paged_batch([700], spread=3.0, device=DEVICE)
    dipr = DiprSettings(alpha=0.3, certificate=True, **WINDOW)
    _, made = run(batch, dipr, "scan")
    bins = made.statistics[3:]
    assert bins.sum() == batch.query.shape[1]
    row = int(batch.rows[0])
    _, key, value = context(batch, 0)
    kept = attended(batch, made, 0).repeat_interleave(4, 0)
    left = 1 - naive.decode(batch.query[row].float(), key, value, batch.scale, naive.KnownTokens(kept)).kept_weight
    near = torch.histc((-torch.log2(left)).clamp(0, 15).cpu(), 16, 0, 16)
    assert (near.cumsum(0) - bins.cpu().cumsum(0)).abs().max() <= 2  # an estimate may fall into the next bin

"""The choice of whole groups against its reference: exactly so many, those with the greatest scores, ties by place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import DEVICE, ON_GPU, SHAPES, TOLERANCE, WINDOW, attended, context, expected, kernels_for, run
from paged import Paged, paged_batch

from vllm_relational.sparse import codec, naive
from vllm_relational.sparse.decoder import DecodeShape, SparseDecoder
from vllm_relational.sparse.kernels.launch import Batch, Kernels, Tuning
from vllm_relational.sparse.settings import DiprSettings


def pages(top_tokens: int, **others) -> DiprSettings:
    return DiprSettings(method="topk_pages", top_tokens=top_tokens, **{**WINDOW, **others})


def window(batch: Paged) -> naive.Window:
    return naive.Window(**WINDOW, group=batch.pages.layout.group)


def scores(batch: Paged, request: int) -> torch.Tensor:
    """Of every KV head and group of the body, in float64."""
    query, key, _ = (part.double() for part in context(batch, request))
    start, end = window(batch).body(key.shape[1])
    grouped = query.view(len(key), -1, query.shape[-1])
    products = grouped @ key.transpose(1, 2)
    most = torch.cat([products[..., :start], products[..., end:]], -1).amax(-1, keepdim=True)
    _, zero_point, scale = codec.quantise(key[:, start:end].unflatten(1, (-1, batch.pages.layout.group)))
    size = codec.decode_scale(scale).double()
    middle = grouped @ (zero_point.double() + codec.MIDDLE * size).transpose(1, 2)
    reach = grouped.abs() @ size.transpose(1, 2) * 8 * codec.SLACK
    return (middle + naive.RANK_SPREAD * reach - most).amax(1).cpu()


def check(batch: Paged, dipr: DiprSettings, output: torch.Tensor, made: Kernels) -> None:
    """The groups are the wanted number of those with the greatest scores, and the output is attention to them."""
    for request, row in enumerate(batch.rows.tolist()):
        query, key, value = (part.float() for part in context(batch, request))
        kept = attended(batch, made, request)
        start, end = window(batch).body(key.shape[1])
        size = batch.pages.layout.group
        chosen = kept[:, start:end].unflatten(1, (-1, size)) if end > start else kept[:, :0, None]
        assert torch.equal(chosen.all(-1), chosen.any(-1))
        wanted = min(-(-dipr.top_tokens // size), (end - start) // size)
        assert (chosen.any(-1).sum(-1) == wanted).all()
        if 0 < wanted < (end - start) // size:
            right = scores(batch, request)
            least = right.masked_fill(~chosen.any(-1), torch.inf).amin(-1)
            most = right.masked_fill(chosen.any(-1), -torch.inf).amax(-1)
            assert (least >= most - 1e-3 * right.abs().amax(-1)).all()
        rule = naive.TopPages(dipr.top_tokens)
        found = rule.choose(query, key, scored(query, key), batch.scale, window(batch))
        same = naive.Chosen(kept.repeat_interleave(len(query) // len(key), 0).to(DEVICE), found.estimates)
        exact = naive.decode(query, key, value, batch.scale, same, window(batch), tail=dipr.pages_tail)
        rounded = 0.01 if dipr.pages_tail else 0.0  # weights and mean values of the tail are bfloat16
        assert torch.allclose(output[row].float(), exact.output, atol=TOLERANCE[batch.query.dtype] + rounded)


def scored(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query.view(len(key), -1, query.shape[-1]) @ key.transpose(1, 2)).view(len(query), -1)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(("group", "kv_heads", "head_size", "block_size", "dtype"), SHAPES)
def test_attends_to_the_groups_with_the_greatest_scores(tail, group, kv_heads, head_size, block_size, dtype):
    batch = paged_batch(
        [500, 1, 333, 120],
        group=group,
        kv_heads=kv_heads,
        head_size=head_size,
        block_size=block_size,
        dtype=dtype,
        spread=3.0,
        device=DEVICE,
    )
    output, made = run(batch, pages(150, pages_tail=tail), "topk_pages")
    check(batch, pages(150, pages_tail=tail), output, made)
    others = [row for row in range(len(output)) if row not in batch.rows.tolist()]
    assert output[others].isnan().all()  # nobody's rows


@settings(max_examples=8 if not ON_GPU else 60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 1000 if not ON_GPU else 33000),
    st.sampled_from([0.5, 6.0]),
    st.integers(16, 1000),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_length_and_number_of_tokens(seed, length, spread, top_tokens, programs, tail):
    batch = paged_batch([length], group=2, kv_heads=1, spread=spread, seed=seed, dtype=torch.bfloat16, device=DEVICE)
    output, made = run(batch, pages(top_tokens, pages_tail=tail), "topk_pages", programs)
    check(batch, pages(top_tokens, pages_tail=tail), output, made)


@pytest.mark.parametrize("top_tokens", [16, 48, 200, 4096])
def test_equal_scores_go_by_position(top_tokens):
    """Keys of one value in each stretch: many ties, and sums without rounding."""
    batch = paged_batch([500, 300], spread=1.0, device=DEVICE)
    batch.query[:] = batch.query.round()
    batch.pages.key[:] = 0.0
    for request in range(2):
        for block in range(0, int(batch.lens[request]) // 16, 3):
            batch.pages.key[batch.block_table[request, block].long()] = float(block % 2)
    codec.quantise_groups(batch.pages, torch.arange(batch.pages.num_blocks * 16, device=DEVICE))
    _, made = run(batch, pages(top_tokens), "topk_pages")
    for request in range(2):
        query, key, value = (part.float() for part in context(batch, request))
        rule = naive.TopPages(top_tokens)
        right = naive.decode(query, key, value, batch.scale, rule, naive.Window(**WINDOW))
        assert torch.equal(attended(batch, made, request), right.kept[::4].cpu())


def test_groups_without_codes_come_first():
    batch = paged_batch([500], dtype=torch.bfloat16, spread=4.0, device=DEVICE)
    block = int(batch.block_table[0, 10])
    batch.pages.key[block, 0, 3, 7] = -1e5
    codec.quantise_groups(batch.pages, torch.arange(16, device=DEVICE) + block * 16)
    output, made = run(batch, pages(16), "topk_pages")
    assert attended(batch, made, 0)[0, 160:176].all() and output[int(batch.rows[0])].isfinite().all()


def test_far_greater_products_than_the_window_has_do_not_overflow():
    batch = paged_batch([700], spread=200.0, device=DEVICE)
    output, _ = run(batch, pages(16, pages_tail=True), "topk_pages")
    assert output[int(batch.rows[0])].isfinite().all()


def test_the_same_groups_every_time_and_statistics_count_them():
    batch = paged_batch([700, 400], spread=2.0, device=DEVICE)
    first, made = run(batch, pages(256), "topk_pages")
    again, _ = run(batch, pages(256), "topk_pages", programs=31)
    assert torch.allclose(first[batch.rows.long()], again[batch.rows.long()], atol=1e-5)
    body, listed, full = made.statistics[:3].tolist()
    assert (body, listed, full) == (2 * (624 - 32 + 336 - 32), 2 * 2 * 256, 0)


def test_a_request_without_scratch_is_attended_to_densely():
    batch = paged_batch([900, 700], spread=2.0, device=DEVICE)
    dipr = pages(64)
    small = Kernels(
        dipr,
        num_heads=8,
        num_kv_heads=2,
        head_size=64,
        scale=batch.scale,
        max_reqs=2,
        max_seq_len=900,
        group=16,
        device=DEVICE,
        tuning=Tuning(programs=12, max_tokens=1000),
    )
    output = torch.full_like(batch.query, torch.nan)
    small.topk_pages(Batch(batch.query, batch.pages, batch.block_table, batch.lens, batch.rows, output))
    dense, sparse = expected(batch, DiprSettings(alpha=0.0)), expected(batch, dipr)
    kept, all_of_it = batch.rows.tolist()
    assert torch.allclose(output[kept], sparse[kept], atol=1e-3)
    assert not torch.allclose(output[kept], dense[kept], atol=1e-3)
    assert torch.allclose(output[all_of_it], dense[all_of_it], atol=1e-3)
    assert small.statistics[2] > 0


def test_a_decoder_of_that_method_launches_it():
    batch, dipr = paged_batch([600, 300], spread=2.0, device=DEVICE), pages(64)
    decoder = SparseDecoder(dipr, DecodeShape(8, 2, 64, batch.scale, 2, 600, 16))
    found = [torch.zeros_like(batch.query) for _ in range(2)]
    decoder.decode(batch.query, batch.pages, batch.block_table, batch.lens, batch.rows, found[0])
    decoder._kernels = kernels_for(batch, dipr)
    decoder.decode(batch.query, batch.pages, batch.block_table, batch.lens, batch.rows, found[1])
    assert torch.allclose(found[0], expected(batch, dipr).nan_to_num(0.0))
    assert torch.allclose(found[0], found[1], atol=1e-3)

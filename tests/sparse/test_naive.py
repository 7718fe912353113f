"""The reference against torch's own attention, and the rules against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from attention import rules
from paged import decode_paged, paged_batch

from vllm_relational.sparse import naive
from vllm_relational.sparse.settings import beta_of


def decoded(batch, rule, window=None, **options):
    return decode_paged(
        batch.query[batch.rows.long()],
        batch.pages.key,
        batch.pages.value,
        batch.block_table,
        batch.lens,
        batch.scale,
        rule,
        window,
        **options,
    )


@pytest.mark.parametrize(("group", "block_size"), [(1, 16), (4, 32), (7, 64)])
def test_dense_is_the_attention_of_torch(group, block_size):
    batch = paged_batch([1, 16, 333], group=group, block_size=block_size)
    for request, found in enumerate(decoded(batch, naive.Dense())):
        length = int(batch.lens[request])
        key = naive.gather(batch.pages.key, batch.block_table[request], length).repeat_interleave(group, 0)
        value = naive.gather(batch.pages.value, batch.block_table[request], length).repeat_interleave(group, 0)
        query = batch.query[batch.rows[request].long()][:, None]
        assert torch.allclose(found.output, F.scaled_dot_product_attention(query, key, value)[:, 0], atol=1e-5)
        assert torch.allclose(found.kept_weight, torch.ones(()))


def test_dipr_keeps_what_has_a_share_of_the_greatest_weight():
    batch, alpha = paged_batch([500], spread=2.0), 0.03
    rule = naive.Dipr(beta_of(alpha, batch.scale))
    (found,) = decoded(batch, rule, by_group=False)
    (dense,) = decoded(batch, naive.Dense(), double=True)
    key = naive.gather(batch.pages.key, batch.block_table[0], 500).double().repeat_interleave(4, 0)
    weights = torch.softmax(torch.einsum("hd,htd->ht", batch.query[batch.rows[0].long()].double(), key) * 0.125, -1)
    assert torch.equal(found.kept, weights >= alpha * weights.amax(-1, keepdim=True))
    assert torch.allclose(found.kept_weight.double(), (weights * found.kept).sum(-1))
    assert (found.output - dense.output).abs().max() < 2 * (1 - found.kept_weight.min()) * batch.pages.value[
        :1
    ].nan_to_num().abs().max()


def test_an_infinite_beta_keeps_everything():
    batch = paged_batch([200])
    (found,) = decoded(batch, naive.Dipr(math.inf))
    assert found.kept.all()


@pytest.mark.parametrize("length", [1, 100, 640, 655, 656, 1000])
def test_the_window_is_kept_and_the_body_is_whole_groups(length):
    start, end = naive.Window(sinks=100, recent=512).body(length)
    assert start == 112 and end >= start and (end - start) % 16 == 0
    assert end == start or length - 512 - 16 < end <= length - 512


def test_top_k_and_top_p_by_their_definitions():
    batch = paged_batch([300], spread=2.0)
    (few,) = decoded(batch, rules.TopK(7), by_group=False)
    assert (few.kept.sum(-1) == 7).all()
    (most,) = decoded(batch, rules.TopP(0.9), by_group=False)
    assert (most.kept_weight >= 0.9 - 1e-6).all()
    lightest = torch.where(most.kept, torch.inf, 0)  # without one more it would not do
    assert most.kept.sum(-1).min() >= 1 and lightest.shape == most.kept.shape


def box(keys):
    """The greatest score that a key of the box around some keys may have."""
    low, high = keys.amin(0), keys.amax(0)
    return lambda query: torch.maximum(query * low, query * high).sum()


def test_top_pages_are_the_groups_with_the_greatest_bounds_of_any_head():
    batch, window = paged_batch([600], spread=2.0), naive.Window(32, 64)
    (found,) = decoded(batch, naive.TopPages(100, spread=1.0), window, double=True)
    start, end = window.body(600)
    query = batch.query[batch.rows[0].long()].double()
    key = naive.gather(batch.pages.key, batch.block_table[0], 600).double()
    for head in range(2):
        bounds = []
        for each in query[4 * head : 4 * head + 4]:
            most = (torch.cat([key[head, :start], key[head, end:]]) @ each).max()
            groups = key[head, start:end].unflatten(0, (-1, 16))
            bounds.append(torch.stack([box(group)(each) - most for group in groups]))
        best = torch.stack(bounds).amax(0)
        kept = found.kept[4 * head, start:end].unflatten(0, (-1, 16))
        assert (kept.all(-1) == kept.any(-1)).all() and kept.any(-1).sum() == 7
        chosen = kept.any(-1)
        slack = (best.max() - best.min()) * 0.1  # steps are rounded up to three bits
        assert best[chosen].min() > best[~chosen].max() - slack


@pytest.mark.parametrize("length", [1, 96, 112, 300])
def test_top_pages_of_a_body_of_no_more_are_all(length):
    batch, window = paged_batch([length]), naive.Window(32, 64)
    (found,) = decoded(batch, naive.TopPages(4096), window, tail=True)
    (dense,) = decoded(batch, naive.Dense())
    assert found.kept.all() and torch.allclose(found.output, dense.output, atol=1e-6)


def test_equal_pages_go_by_position_and_those_without_an_index_come_first():
    batch, window = paged_batch([400]), naive.Window(32, 64)
    batch.pages.key[:] = 1.0
    (found,) = decoded(batch, naive.TopPages(48), window)
    assert found.kept[0].nonzero().flatten().tolist() == [*range(80), *range(336, 400)]
    batch.pages.key[int(batch.block_table[0, 10]), 0, 3] = 1e6
    (found,) = decoded(batch, naive.TopPages(48), window)
    assert found.kept[0].nonzero().flatten().tolist() == [*range(64), *range(160, 176), *range(336, 400)]


def test_the_tail_of_pages_weighs_groups_by_their_middle():
    """Where all keys of a group are the same, their middle is theirs."""
    batch, window = paged_batch([704], spread=2.0), naive.Window(32, 64)
    same = batch.pages.key[:, :, :1].clone()
    batch.pages.key[:] = same
    (tail,) = decoded(batch, naive.TopPages(64), window, tail=True)
    (dense,) = decoded(batch, naive.Dense(), double=True)
    (right,) = decoded(batch, naive.KnownTokens(tail.kept), window, double=True, tail=True)
    assert torch.allclose(tail.lse.double(), dense.lse, atol=0.02) and not tail.kept.all()
    assert torch.allclose(tail.output.double(), right.output, atol=0.02)


def test_the_tail_counts_what_is_not_kept_with_the_mean_of_its_group():
    batch, window = paged_batch([704], spread=2.0), naive.Window(32, 64)
    rule = naive.Dipr(beta_of(0.05, batch.scale))
    (dense,) = decoded(batch, naive.Dense(), double=True)
    (without,) = decoded(batch, rule, window, double=True)
    (with_tail,) = decoded(batch, rule, window, double=True, tail=True)
    assert torch.allclose(with_tail.lse, dense.lse)
    assert (with_tail.output - dense.output).norm() < 0.7 * (without.output - dense.output).norm()
    value = batch.pages.value
    value[:] = value.unflatten(2, (-1, 16)).mean(3, keepdim=True).expand(-1, -1, -1, 16, -1).flatten(2, 3)
    (same,) = decoded(batch, rule, window, double=True, tail=True)
    (dense,) = decoded(batch, naive.Dense(), double=True)
    assert torch.allclose(same.output, dense.output)

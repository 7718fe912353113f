"""Whole layers at once attend as the oracle does, one request at a time; what an index promises holds."""

import pytest
import torch
from attention import rules, selection
from attention.measure import scored_by
from attention.selection import ByProducts, Estimated, Index, Scan
from attention.trial import read_trial
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_relational.sparse import codec, naive
from vllm_relational.sparse.naive import Window
from vllm_relational.sparse.settings import beta_of

WINDOW = Window(sinks=16, recent=40)


def drawn(seed, seq_len=256, kv_heads=2, repeats=3, num_queries=5, head_size=16, spread=1.0):
    """Queries, keys and values whose products have a heavy tail; keys differ in scale by channel."""
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(1, kv_heads * repeats, num_queries, head_size, generator=random) * spread
    key = torch.randn(1, kv_heads, seq_len, head_size, generator=random).pow(3)
    value = torch.randn(1, kv_heads, seq_len, head_size, generator=random)
    return query, key, value


def oracle(query, key, value, scale, rule, tail, by_group):
    seq_len, num_queries = key.shape[2], query.shape[2]
    for at in range(num_queries):
        seen = seq_len - num_queries + at + 1
        parts = query[0, :, at], key[0, :, :seen], value[0, :, :seen]
        yield naive.decode(*parts, scale, rule, WINDOW, by_group=by_group, tail=tail)


@pytest.mark.parametrize("by_group", [True, False])
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(
    "rule", [naive.Dense(), rules.WindowOnly(), naive.Dipr(6.0), rules.TopK(17), rules.TopP(0.7)], ids=repr
)
def test_attends_as_the_oracle(rule, tail, by_group):
    query, key, value = drawn(0, seq_len=301)
    scored = scored_by(query, key, 0.3, WINDOW)
    words = {"tail": "exact" if tail else "none", "by_group": by_group}
    found = selection.attend(scored, selection.padded(value), ByProducts(rule), **words)
    for at, right in enumerate(oracle(query, key, value, 0.3, rule, tail, by_group)):
        seen = right.kept.shape[1]
        assert torch.equal(found.kept[0, :, :, at, :seen].flatten(0, 1), right.kept)
        assert not found.kept[0, :, :, at, seen:].any()
        torch.testing.assert_close(found.output[0, :, :, at].flatten(0, 1), right.output, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.kept_weight[0, :, :, at].flatten(), right.kept_weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tail", ["none", "exact", "middle"])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_chooses_pages_as_the_oracle(tail, spread):
    query, key, value = drawn(3, seq_len=301)
    scored = scored_by(query, key, 0.3, WINDOW)
    chosen = selection.TopPages(72, spread=spread)  # rounded up to five groups
    found = selection.attend(scored, selection.padded(value), chosen, tail=tail)
    for at, right in enumerate(oracle(query, key, value, 0.3, naive.TopPages(72, spread), tail == "middle", True)):
        seen = right.kept.shape[1]
        assert torch.equal(found.kept[0, :, :, at, :seen].flatten(0, 1), right.kept)
        if tail != "exact":
            torch.testing.assert_close(found.output[0, :, :, at].flatten(0, 1), right.output, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seq_len", [56, 57, 71, 72, 73, 256])
def test_body_is_the_oracles(seq_len):
    query, key, _ = drawn(1, seq_len=seq_len, num_queries=1)
    body = scored_by(query, key, 0.3, WINDOW).body(16)[0, 0, 0, 0]
    start, end = WINDOW.body(seq_len)
    assert body.nonzero().flatten().tolist() == list(range(start, end))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_index_of_default_size_is_the_codec(dtype):
    _, key, _ = drawn(2)
    key = key.to(dtype)
    key[0, 0, 5, 3] = torch.inf
    groups = key.unflatten(-2, (-1, 16))
    codes, low, key_scale = codec.encode(groups)
    coded = Index().encode(key)
    torch.testing.assert_close(
        coded.key, codec.decode(codes, low, key_scale).flatten(-3, -2), rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(coded.key_scale, codec.decode_scale(key_scale).float())


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 4, 8]), st.sampled_from([16, 32, 64]), st.floats(0.1, 30))
@settings(max_examples=examples(30), deadline=None)
def test_bound_holds_for_every_size_of_index(seed, bits, group, spread):
    query, key, _ = drawn(seed, spread=spread)
    scored = scored_by(query, key, 0.3, WINDOW)
    estimated, bound = scored.estimate(Index(bits, group))
    off = (estimated - scored.exact).abs()[scored.visible.expand_as(estimated)]
    assert (off <= bound[scored.visible.expand_as(bound)] + 1e-4 * spread).all()


@given(
    st.integers(0, 10_000),
    st.sampled_from(["running", "window", "global"]),
    st.sampled_from([3, 4, 8]),
    st.sampled_from([16, 32, 64]),
    st.floats(0, 40),
    st.integers(1, 5),
)
@settings(max_examples=examples(50), deadline=None)
def test_scan_keeps_all_of_dipr(seed, maximum, bits, group, beta, splits):
    query, key, _ = drawn(seed)
    if seed % 3 == 0:
        key[0, 0, seed % 256, 2] = torch.inf  # the index says nothing of its group
    scored = scored_by(query, key.bfloat16(), 0.3, WINDOW)
    exact = ByProducts(naive.Dipr(beta)).keep(scored) & scored.visible
    kept = Scan(beta, Index(bits, group), maximum, splits).keep(scored) | ~scored.body(group)
    assert not (exact & ~kept).any()


def test_recent_is_a_wider_window():
    query, key, _ = drawn(7, num_queries=2)
    kept = read_trial("recent:100").select(0.3, 256).keep(scored_by(query, key, 0.3, WINDOW))[0, 0, 0]
    assert [row.nonzero().flatten()[0].item() for row in kept] == [155, 156]


def test_scan_narrows_with_what_it_has_seen():
    query, key, _ = drawn(4, seq_len=1024)
    scored = scored_by(query, key, 0.3, WINDOW)
    seen = [Scan(8.0, maximum=each, splits=2).keep(scored) for each in ("global", "running", "window")]
    shares = [kept.float().mean().item() for kept in seen]
    assert shares[0] < shares[1] < shares[2] < 1
    assert not (seen[0] & ~seen[1]).any() and not (seen[1] & ~seen[2]).any()


def test_estimated_is_dipr_where_the_index_is_exact():
    query, key, _ = drawn(5)
    key = key.mul(4).round().clamp(-7, 7)
    key[0, :, ::16], key[0, :, 1::16] = -7, 7
    key *= 1.125  # 15 levels, and a step that 8 bits hold
    scored = scored_by(query, key, 0.3, WINDOW)
    assert torch.equal(Estimated(5.0).keep(scored), ByProducts(naive.Dipr(5.0)).keep(scored))


def test_tail_by_the_index_is_near_the_exact_tail():
    query, key, value = drawn(6)
    scored, values = scored_by(query, key, 0.3, WINDOW), selection.padded(value)
    exact = read_trial("dipr:0.2+tail").attend(scored, values, 256).output
    rule = naive.Dipr(beta_of(0.2, 0.3))
    (right,) = (each.output for each in oracle(query[:, :, -1:], key, value, 0.3, rule, True, True))
    torch.testing.assert_close(exact[0, :, :, -1].flatten(0, 1), right)
    errors = []
    for word in ("dipr:0.2@8/16+est", "dipr:0.2+est", "dipr:0.2@3/16+est", "dipr:0.2"):
        errors.append((read_trial(word).attend(scored, values, 256).output - exact).norm().item())
    assert 0 < errors[0] < errors[1] < errors[2] < errors[3] and errors[0] < 0.02 * exact.norm().item()

"""Our merge of window and lists against that of xformers, from the same two sets of tokens."""

from __future__ import annotations

import pytest
import torch
from launches import DEVICE, TOLERANCE, context, parts, run
from paged import paged_batch

from vllm_relational.sparse import naive
from vllm_relational.sparse.settings import DiprSettings

fmha = pytest.importorskip("xformers.ops.fmha", reason="needs xformers: pip install xformers")

GROUP, KV_HEADS = 4, 2


@pytest.mark.parametrize(("head_size", "dtype"), [(64, torch.float32), (96, torch.float16), (128, torch.bfloat16)])
def test_window_and_lists_merge_as_in_xformers(head_size, dtype):
    """Shapes of xformers: outputs ``[parts, batch, queries, groups, heads, head_size]``, log-sum-exps without the last
    and with the queries behind the heads."""
    lens = [740, 333]
    batch = paged_batch(
        lens, group=GROUP, kv_heads=KV_HEADS, head_size=head_size, dtype=dtype, spread=3.0, device=DEVICE
    )
    found, made = run(batch, DiprSettings(alpha=0.3, tail=False, max_candidates=1.0, sinks=32, recent=64), "scan")
    for request in range(len(lens)):
        query, key, value = context(batch, request)
        window, listed = parts(batch, made, request)
        assert listed.any(1).all() and not (listed & window).any() and not (listed | window).all()
        rules = [naive.KnownTokens(part.repeat_interleave(GROUP, 0)) for part in (window, listed)]
        partial = [naive.decode(query.float(), key, value, batch.scale, rule) for rule in rules]
        outputs = torch.stack([part.output for part in partial]).view(2, 1, 1, KV_HEADS, GROUP, head_size)
        lse = torch.stack([part.lse for part in partial]).view(2, 1, KV_HEADS, GROUP, 1)
        merged, _ = fmha.merge_attentions(outputs, lse)
        output = found[batch.rows[request].long()].float()
        assert torch.allclose(output, merged.view(-1, head_size), atol=TOLERANCE[dtype])

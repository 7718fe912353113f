"""xformers as one more reference of our kernels: dense decode, and a context attended to in two parts.

xformers has grouped heads as ``[batch, tokens, groups, heads, head_size]``, with keys repeated over the heads by a
stride of 0.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
xformers = pytest.importorskip("xformers", reason="needs xformers: pip install xformers")
fmha = pytest.importorskip("xformers.ops.fmha", reason="xformers does not fit this torch", exc_type=ImportError)

from launches import context, parts, run  # noqa: E402
from paged import paged_batch  # noqa: E402

from vllm_relational.sparse import naive  # noqa: E402
from vllm_relational.sparse.settings import DiprSettings  # noqa: E402

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and not xformers._has_cpp_library,
    reason="xformers cannot load its CUDA library (0.0.35 needs libcudart.so.12): python -m xformers.info",
)

TOLERANCE = {"rtol": 2e-2, "atol": 2e-2}
SHAPES = [(4, 64, torch.float16), (4, 128, torch.bfloat16), (7, 64, torch.bfloat16), (1, 128, torch.float16)]


def grouped(query, key, value):
    """``[num_heads, head_size]`` and ``[num_kv_heads, seq_len, head_size]`` as xformers wants them."""
    kv_heads, heads = len(key), len(query) // len(key)
    shaped = query.unflatten(0, (kv_heads, heads))[None, None]
    repeated = (part.transpose(0, 1)[None, :, :, None].expand(-1, -1, -1, heads, -1) for part in (key, value))
    return shaped, *repeated


@pytest.mark.parametrize("method", ["scan", "v_skip"])
@pytest.mark.parametrize(("group", "head_size", "dtype"), SHAPES)
def test_alpha_0_is_the_dense_decode_of_xformers(method, group, head_size, dtype):
    batch = paged_batch([1, 63, 740, 4001], group=group, head_size=head_size, dtype=dtype, device="cuda")
    found, _ = run(batch, DiprSettings(alpha=0.0, tail=False, sinks=32, recent=64), method)
    for request, output in enumerate(found[batch.rows.long()]):
        query, key, value = context(batch, request)
        peer = fmha.memory_efficient_attention(*grouped(query, key, value), scale=batch.scale).view_as(output)
        torch.testing.assert_close(output.float(), peer.float(), **TOLERANCE)
        right = naive.decode(query, key, value, batch.scale, naive.Dense()).output
        torch.testing.assert_close(peer.float(), right, **TOLERANCE)


@pytest.mark.parametrize(("group", "head_size", "dtype"), SHAPES)
def test_window_and_lists_as_two_partials_of_xformers(group, head_size, dtype):
    """Every KV head lists other tokens: one call of xformers each."""
    batch = paged_batch([2500, 777], group=group, head_size=head_size, dtype=dtype, spread=3.0, device="cuda")
    found, made = run(batch, DiprSettings(alpha=0.3, tail=False, max_candidates=1.0, sinks=32, recent=64), "scan")
    for request, output in enumerate(found[batch.rows.long()]):
        query, key, value = context(batch, request)
        for head, sets in enumerate(zip(*parts(batch, made, request), strict=True)):
            heads = slice(head * group, (head + 1) * group)
            partial = [
                fmha.memory_efficient_attention_partial(
                    *grouped(query[heads], key[head : head + 1, kept], value[head : head + 1, kept]), scale=batch.scale
                )
                for kept in sets
            ]
            outputs, lse = (torch.stack(part) for part in zip(*partial, strict=True))
            merged, _ = fmha.merge_attentions(outputs, lse)
            torch.testing.assert_close(output[heads].float(), merged.view(group, -1).float(), **TOLERANCE)

"""Partial softmaxes of a request and head -> its attention, by their greatest scores ``m`` and denominators ``l``.

Partials lie one behind the other, each of one head: first those of fixed places, the window's tiles or the splits of
``v_skip``, ``[requests, query heads, num_fixed]``; then those that ``gather_kernel`` dealt out, ``[programs + pairs,
heads of a group]``. A pair is a request and KV head; a program and a pair meet in partial ``program + pair``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse import statistics
from vllm_relational.sparse.kernels.attend import LOG2E, follow

FIRST_BIN = tl.constexpr(statistics.FIRST_BIN)
LAST_BIN = tl.constexpr(statistics.NUM_BINS - 1.0)


@triton.jit
def _add(
    m, l, acc, acc_ptr, m_ptr, l_ptr, places, there, channels, scale,
    HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add partials to a softmax under way; one whose denominator is 0 does not count: its numerator may be anything.

    Returns it, what it was rescaled by, and the weight of each partial, 0 where not used.
    """
    partial_l = tl.load(l_ptr + places, mask=there, other=0.0)
    partial_m = tl.load(m_ptr + places, mask=there, other=float("-inf"))
    from_partial = acc_ptr + places.to(tl.int64)[:, None] * CHANNELS + channels[None, :]
    values = tl.load(from_partial, mask=there[:, None] & (channels[None, :] < HEAD_SIZE), other=0.0)
    used = partial_l > 0
    partial_m, values = tl.where(used, partial_m, float("-inf")), tl.where(used[:, None], values, 0.0)
    new_m = tl.maximum(m, tl.max(partial_m, axis=0))
    base = tl.where(new_m == float("-inf"), 0.0, new_m)
    rescale = tl.exp2((m - base) * (scale * LOG2E))
    weights = tl.where(used, tl.exp2((partial_m - base) * (scale * LOG2E)), 0.0)
    acc = acc * rescale + tl.sum(values * weights[:, None], axis=0)
    return new_m, l * rescale + tl.sum(partial_l * weights, axis=0), acc, rescale, weights


@triton.jit(do_not_specialize=["num_fixed"])
def merge_kernel(
    output_ptr, lens_ptr, rows_ptr, acc_ptr, m_ptr, l_ptr, tail_ptr, span_ptr, statistics_ptr,
    scale, stride_ot, num_fixed,
    HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr, FIXED: tl.constexpr, DEALT: tl.constexpr,
    CHUNK: tl.constexpr, CERTIFICATE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Grid: (chunks of channels, query heads, requests). DEALT: so many dealt partials are read at once; 0: none are.

    With CERTIFICATE the attention weight of estimates, which dealt partials may hold, is counted by its size, see
    ``sparse/statistics.py``.
    """
    chunk, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    follow(CHAINED)
    if tl.load(lens_ptr + request) == 0:
        return
    num_heads, num_reqs = tl.num_programs(1), tl.num_programs(2)
    if DEALT > 0:
        pair = request * (num_heads // HEADS) + head // HEADS
        begin, end = tl.load(span_ptr + 2 * pair), tl.load(span_ptr + 2 * pair + 1)
        share = tl.maximum(tl.load(span_ptr + 2 * num_reqs * (num_heads // HEADS)), 1)
        first = num_reqs * num_heads * num_fixed + (pair + begin // share) * HEADS + head % HEADS
        count = tl.where(end > begin, (end - 1) // share - begin // share + 1, 0)
    channels = chunk * CHUNK + tl.arange(0, CHUNK)
    every = tl.arange(0, FIXED)
    m, l = tl.full([], float("-inf"), tl.float32), tl.full([], 0.0, tl.float32)
    m, l, acc, _, _ = _add(
        m, l, tl.zeros([CHUNK], tl.float32), acc_ptr, m_ptr, l_ptr,
        (request * num_heads + head) * num_fixed + every, every < num_fixed, channels, scale, HEAD_SIZE, CHANNELS,
    )  # fmt: skip
    if DEALT > 0:
        estimated = tl.full([], 0.0, tl.float32)
        for at in range(0, count, DEALT):
            some = at + tl.arange(0, DEALT)
            places, there = first + some * HEADS, some < count
            m, l, acc, rescale, weights = _add(
                m, l, acc, acc_ptr, m_ptr, l_ptr, places, there, channels, scale,
                HEAD_SIZE, CHANNELS,
            )  # fmt: skip
            if CERTIFICATE:
                estimates = tl.load(tail_ptr + places, mask=there & (weights > 0), other=0.0)
                estimated = estimated * rescale + tl.sum(estimates * weights, axis=0)
        if CERTIFICATE and chunk == 0:
            bin = tl.minimum(-tl.log2(tl.maximum(estimated / l, 1e-30)), LAST_BIN).to(tl.int32)
            one = tl.full([], 1, tl.int64)
            tl.atomic_add(statistics_ptr + FIRST_BIN + tl.maximum(bin, 0), one)
    row = tl.load(rows_ptr + request).to(tl.int64)
    attention = (acc / l).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * stride_ot + head * HEAD_SIZE + channels, attention, mask=channels < HEAD_SIZE)

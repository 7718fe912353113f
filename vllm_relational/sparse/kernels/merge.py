"""Partial softmaxes of a request and head -> its attention, by their greatest products and denominators."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import LOG2E, follow

CERTIFICATE_BINS = 16
LAST_BIN = tl.constexpr(15.0)


@triton.jit(do_not_specialize=["num_partials", "num_exact"])
def merge_kernel(
    output_ptr, lens_ptr, rows_ptr, partial_ptr, most_ptr, total_ptr, tail_ptr, statistics_ptr,
    scale, stride_ot, num_partials, num_exact,
    HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr, PARTIALS: tl.constexpr, CHUNK: tl.constexpr,
    CERTIFICATE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Grid: (chunks of channels, query heads, requests).

    A partial whose denominator is 0 is not read: its numerator may be anything. With CERTIFICATE the attention mass of
    estimates, which the partials from ``num_exact`` on may hold, is counted by its size.
    """
    chunk, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    follow(CHAINED)
    if tl.load(lens_ptr + request) == 0:
        return
    place = (request.to(tl.int64) * tl.num_programs(1) + head) * num_partials
    every = tl.arange(0, PARTIALS)
    channels = chunk * CHUNK + tl.arange(0, CHUNK)
    totals = tl.load(total_ptr + place + every, mask=every < num_partials, other=0.0)
    used = totals > 0
    most = tl.load(most_ptr + place + every, mask=used, other=float("-inf"))
    partial = partial_ptr + (place + every)[:, None] * CHANNELS + channels[None, :]
    values = tl.load(partial, mask=used[:, None] & (channels[None, :] < HEAD_SIZE), other=0.0)
    greatest = tl.max(most, axis=0)
    weights = tl.where(used, tl.exp2((most - greatest) * (scale * LOG2E)), 0.0)
    summed = tl.sum(values * weights[:, None], axis=0) / tl.sum(totals * weights, axis=0)
    if CERTIFICATE and chunk == 0:
        estimates = tl.load(tail_ptr + place + every, mask=used & (every >= num_exact), other=0.0)
        share = tl.sum(estimates * weights, axis=0) / tl.sum(totals * weights, axis=0)
        bin = tl.minimum(-tl.log2(tl.maximum(share, 1e-30)), LAST_BIN).to(tl.int32)
        one = tl.full([], 1, tl.int64)
        tl.atomic_add(statistics_ptr + 3 + tl.maximum(bin, 0), one)
    row = tl.load(rows_ptr + request).to(tl.int64)
    attention = summed.to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * stride_ot + head * HEAD_SIZE + channels, attention, mask=channels < HEAD_SIZE)

"""What all tokens of a group have in common: the product with its origin, and how far estimates may be off."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import body_of, dot
from vllm_relational.sparse.kernels.columns import compact, first_group, head_of


@triton.jit
def _decode_steps(codes):
    """``codec.decode_step``."""
    return (codes.to(tl.int16) << 7).to(tl.float16, bitcast=True)


@triton.jit
def group_kernel(
    query_ptr, origin_ptr, step_ptr, table_ptr, lens_ptr, rows_ptr, base_ptr, bound_ptr,
    num_reqs, stride_qt, stride_ob, stride_oh, stride_sb, stride_sh, stride_table, total_groups,
    HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    TILE: tl.constexpr, SPARE: tl.constexpr, REQS: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Grid: (programs, KV heads, requests); the groups of a body are dealt out ``TILE`` at a time."""
    program, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    place = first_group(lens_ptr, request, num_reqs, SPARE, REQS, GROUP)
    if place + tl.cdiv(seq_len, GROUP) + SPARE > total_groups:
        return
    row = tl.load(rows_ptr + request).to(tl.int64)
    channels, columns = tl.arange(0, CHANNELS), tl.arange(0, 16)
    heads = head_of(columns, PADDED)
    there = channels < HEAD_SIZE
    from_query = query_ptr + row * stride_qt + (head * HEADS + heads[None, :]) * HEAD_SIZE + channels[:, None]
    query = tl.load(from_query, mask=there[:, None] & (heads < HEADS)[None, :], other=0.0).to(NUMBER)
    table = table_ptr + request.to(tl.int64) * stride_table
    per_block: tl.constexpr = BLOCK_SIZE // GROUP
    compacted = tl.arange(0, PADDED)
    first = start // GROUP
    for tile in range(first + program * TILE, end // GROUP, tl.num_programs(0) * TILE):
        groups = tile + tl.arange(0, TILE)
        inside = groups < end // GROUP
        blocks = tl.load(table + groups // per_block, mask=inside, other=0).to(tl.int64)
        within = groups % per_block * HEAD_SIZE
        mask = inside[:, None] & there[None, :]
        in_origin = blocks * stride_ob + head * stride_oh + within
        origin = tl.load(origin_ptr + in_origin[:, None] + channels[None, :], mask=mask, other=0.0).to(NUMBER)
        in_step = blocks * stride_sb + head * stride_sh + within
        step = _decode_steps(tl.load(step_ptr + in_step[:, None] + channels[None, :], mask=mask, other=0)).to(NUMBER)
        base = dot(origin, query, tl.zeros([TILE, 16], tl.float32))
        bound = dot(step, tl.abs(query), tl.zeros([TILE, 16], tl.float32))
        # 0.5 * codec.SLACK, and what float32 loses between 64 + code and -64
        bound = compact(bound, PADDED) * 0.504 + 1e-3
        to = (head * total_groups + place + groups)[:, None] * PADDED + compacted[None, :]
        tl.store(base_ptr + to, compact(base, PADDED), mask=inside[:, None])
        tl.store(bound_ptr + to, bound, mask=inside[:, None])

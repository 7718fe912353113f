"""What a scan needs to know before it starts, in one launch: the window's attention, and what groups have in common.

The window, the first and the last tokens, is attended to exactly; its greatest score is the threshold of the scan. Of
every group of the body: the score of its zero point, and how far estimates of its tokens may be off. For a choice of
whole groups (``select.py``), which reads no codes: the score of the group's middle, and what it is ranked by.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import (
    accumulate,
    body_of,
    dot,
    follow,
    lead,
    load_queries,
    load_rows,
    scores_of,
    store_partial,
    token_rows,
)
from vllm_relational.sparse.kernels.columns import compact, first_group, has_scratch, head_of


@triton.jit(do_not_specialize=["num_reqs", "total_groups", "spare"])
def prepare_kernel(
    query_ptr, key_ptr, zero_point_ptr, key_scale_ptr, table_ptr, lens_ptr, rows_ptr, acc_ptr, m_ptr, l_ptr,
    base_ptr, bound_ptr,
    scale, num_reqs, stride_qt, stride_kb, stride_kh, stride_kt, stride_ob, stride_oh, stride_sb, stride_sh,
    stride_table, total_groups, spare,
    HEADS: tl.constexpr, PADDED: tl.constexpr, COMPACT: tl.constexpr, HEAD_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    WINDOW_TILES: tl.constexpr, WINDOW_TILE: tl.constexpr, GROUP_TILE: tl.constexpr,
    REQS: tl.constexpr, NUMBER: tl.constexpr, CHAINED: tl.constexpr, OUTLINE: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Grid: (WINDOW_TILES + programs for groups, KV heads, requests); partial ``i`` is tile ``i`` of the window.

    base and bound: float32 ``[num_kv_heads, total_groups, COMPACT]``. With OUTLINE they are ``codec.outline``'s middle
    and that plus SPREAD times its reach, ``[num_kv_heads, COMPACT, total_groups]``.
    """
    program, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    follow(CHAINED)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    row = tl.load(rows_ptr + request)
    table = table_ptr + request.to(tl.int64) * stride_table
    if program < WINDOW_TILES:
        _window(
            query_ptr, key_ptr, table, acc_ptr, m_ptr, l_ptr, program, head, request, row, seq_len, start,
            end, scale, stride_qt, stride_kb, stride_kh, stride_kt,
            HEADS, PADDED, HEAD_SIZE, CHANNELS, BLOCK_SIZE, WINDOW_TILES, WINDOW_TILE,
        )  # fmt: skip
    else:
        place = first_group(lens_ptr, request, num_reqs, spare, REQS, GROUP)
        if has_scratch(place, seq_len, spare, total_groups, GROUP):
            _groups(
                query_ptr, zero_point_ptr, key_scale_ptr, table, base_ptr, bound_ptr, program - WINDOW_TILES,
                tl.num_programs(0) - WINDOW_TILES, head, row, start, end, place, stride_qt, stride_ob, stride_oh,
                stride_sb, stride_sh, total_groups,
                HEADS, COMPACT, HEAD_SIZE, CHANNELS, BLOCK_SIZE, GROUP, GROUP_TILE, NUMBER, OUTLINE, SPREAD,
            )  # fmt: skip
    lead(CHAINED)


@triton.jit
def _window(
    query_ptr, key_ptr, table, acc_ptr, m_ptr, l_ptr, tile, head, request, row, seq_len, start, end,
    scale, stride_qt, stride_kb, stride_kh, stride_kt,
    HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    place = tile * TILE + tl.arange(0, TILE)
    tokens = tl.where(place < start, place, place - start + end)
    there = tokens < seq_len
    queries = load_queries(query_ptr, row, head, stride_qt, HEADS, PADDED, HEAD_SIZE, CHANNELS)
    rows = token_rows(key_ptr, table, tokens, there, head, stride_kb, stride_kh, stride_kt, BLOCK_SIZE)
    keys = load_rows(rows, there, HEAD_SIZE, CHANNELS)
    values = load_rows(rows + HEAD_SIZE, there, HEAD_SIZE, CHANNELS)
    m = tl.full([PADDED], float("-inf"), tl.float32)
    l = tl.zeros([PADDED], tl.float32)
    acc = tl.zeros([PADDED, CHANNELS], tl.float32)
    m, l, acc = accumulate(scores_of(queries, keys, there), values, m, l, acc, scale)
    where = (request.to(tl.int64) * tl.num_programs(1) + head) * HEADS * TILES + tile
    store_partial(acc_ptr, m_ptr, l_ptr, where, TILES, m, l, acc, HEADS, PADDED, CHANNELS)


@triton.jit
def _decode_scales(codes):
    """``codec.decode_scale``."""
    return (codes.to(tl.int16) << 7).to(tl.float16, bitcast=True)


@triton.jit
def _groups(
    query_ptr, zero_point_ptr, key_scale_ptr, table, base_ptr, bound_ptr, program, num_programs, head, row, start,
    end, place, stride_qt, stride_ob, stride_oh, stride_sb, stride_sh, total_groups,
    HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, NUMBER: tl.constexpr,
    OUTLINE: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """The groups of a body are dealt out ``TILE`` at a time."""
    channels, columns = tl.arange(0, CHANNELS), tl.arange(0, 16)
    heads = head_of(columns, PADDED)
    there = channels < HEAD_SIZE
    from_query = (
        query_ptr + row.to(tl.int64) * stride_qt + (head * HEADS + heads[None, :]) * HEAD_SIZE + channels[:, None]
    )
    query = tl.load(from_query, mask=there[:, None] & (heads < HEADS)[None, :], other=0.0).to(NUMBER)
    per_block: tl.constexpr = BLOCK_SIZE // GROUP
    compacted = tl.arange(0, PADDED)
    first = start // GROUP
    for tile in range(first + program * TILE, end // GROUP, num_programs * TILE):
        groups = tile + tl.arange(0, TILE)
        inside = groups < end // GROUP
        blocks = tl.load(table + groups // per_block, mask=inside, other=0).to(tl.int64)
        within = groups % per_block * HEAD_SIZE
        mask = inside[:, None] & there[None, :]
        in_zero_point = blocks * stride_ob + head * stride_oh + within
        zero_point = tl.load(zero_point_ptr + in_zero_point[:, None] + channels[None, :], mask=mask, other=0.0).to(
            NUMBER
        )
        in_scale = blocks * stride_sb + head * stride_sh + within
        key_scale = _decode_scales(
            tl.load(key_scale_ptr + in_scale[:, None] + channels[None, :], mask=mask, other=0)
        ).to(NUMBER)
        base = dot(zero_point, query, tl.zeros([TILE, 16], tl.float32))
        bound = dot(key_scale, tl.abs(query), tl.zeros([TILE, 16], tl.float32))
        base, bound = compact(base, PADDED), compact(bound, PADDED)
        if OUTLINE:
            across = compact(dot(key_scale, query, tl.zeros([TILE, 16], tl.float32)), PADDED)
            base += across * 7.5  # codec.MIDDLE
            bound = base + bound * (SPREAD * 8.0625)  # codec.NUM_CODES / 2 * codec.SLACK
            to = (head * PADDED + compacted)[None, :] * total_groups + (place + groups)[:, None]
        else:
            # 0.5 * codec.SLACK, and what float16 loses of 15 times a query's step in the scan
            bound = bound * 0.512 + 1e-3
            to = (head * total_groups + place + groups)[:, None] * PADDED + compacted[None, :]
        tl.store(base_ptr + to, base, mask=inside[:, None])
        tl.store(bound_ptr + to, bound, mask=inside[:, None])

"""Reads every key, and values only in tiles that hold a token of the DIPR set: exact, at most twice as fast as dense.

With an infinite beta it is dense split-K decode attention.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import (
    LOG2E,
    accumulate,
    body_of,
    dot,
    load_queries,
    load_rows,
    scores_of,
    store_partial,
    token_rows,
)


@triton.jit
def _estimate(scores, means, there, m, l, acc, scale, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Add tokens by their weights and the mean values of their groups."""
    values = load_rows(means, there, HEAD_SIZE, CHANNELS)
    new_m = tl.maximum(m, tl.max(scores, axis=1))
    base = tl.where(new_m == float("-inf"), 0.0, new_m)
    weights = tl.exp2((scores - base[:, None]) * (scale * LOG2E))
    rescale = tl.exp2((m - base) * (scale * LOG2E))
    acc = dot(weights.to(values.dtype), values, acc * rescale[:, None])
    return new_m, l * rescale + tl.sum(weights, axis=1), acc


@triton.jit(do_not_specialize=["num_partials"])
def v_skip_kernel(
    query_ptr, key_ptr, mean_ptr, table_ptr, lens_ptr, rows_ptr, acc_ptr, m_ptr, l_ptr, count_ptr,
    scale, beta, alpha_length, stride_qt, stride_kb, stride_kh, stride_kt, stride_ob, stride_oh, stride_table,
    num_partials,
    HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    TILE: tl.constexpr, TAIL: tl.constexpr, BY_LENGTH: tl.constexpr,
):  # fmt: skip
    """Grid: (splits, KV heads, requests); partial ``split``; count: tokens whose values a split read."""
    split, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    row = tl.load(rows_ptr + request)
    queries = load_queries(query_ptr, row, head, stride_qt, HEADS, PADDED, HEAD_SIZE, CHANNELS)
    real = tl.arange(0, PADDED) < HEADS
    table = table_ptr + request.to(tl.int64) * stride_table
    offsets = tl.arange(0, TILE)
    if BY_LENGTH:
        beta = tl.maximum(tl.log(seq_len.to(tl.float32) / alpha_length), 0.0) / scale
    # The latest tokens are likely to hold the greatest score: a bound for splits that do not read them.
    latest = tl.maximum(seq_len - TILE, 0) + offsets
    rows = token_rows(key_ptr, table, latest, latest < seq_len, head, stride_kb, stride_kh, stride_kt, BLOCK_SIZE)
    keys = load_rows(rows, latest < seq_len, HEAD_SIZE, CHANNELS)
    known = tl.max(scores_of(queries, keys, latest < seq_len), axis=1)
    m = tl.full([PADDED], float("-inf"), tl.float32)
    l = tl.zeros([PADDED], tl.float32)
    acc = tl.zeros([PADDED, CHANNELS], tl.float32)
    share = tl.cdiv(tl.cdiv(seq_len, TILE), tl.num_programs(0)) * TILE
    count = 0
    for tile in range(split * share, tl.minimum((split + 1) * share, seq_len), TILE):
        tokens = tile + offsets
        there = tokens < seq_len
        rows = token_rows(key_ptr, table, tokens, there, head, stride_kb, stride_kh, stride_kt, BLOCK_SIZE)
        keys = load_rows(rows, there, HEAD_SIZE, CHANNELS)
        scores = scores_of(queries, keys, there)
        known = tl.maximum(known, tl.max(scores, axis=1))
        far = (scores < (known - beta)[:, None]) | ~there[None, :] | ~real[:, None]
        needed = (tl.min(far.to(tl.int32)) == 0) | (tile < start) | (tile + TILE > end)
        if needed:
            values = load_rows(rows + HEAD_SIZE, there, HEAD_SIZE, CHANNELS)
            m, l, acc = accumulate(scores, values, m, l, acc, scale)
            count += tl.sum(there.to(tl.int32), axis=0)
        elif TAIL:
            blocks = tl.load(table + tokens // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
            means = mean_ptr + blocks * stride_ob + head * stride_oh + tokens % BLOCK_SIZE // GROUP * HEAD_SIZE
            m, l, acc = _estimate(scores, means, there, m, l, acc, scale, HEAD_SIZE, CHANNELS)
    pair = request.to(tl.int64) * tl.num_programs(1) + head
    tl.store(count_ptr + pair * tl.num_programs(0) + split, count)
    store_partial(
        acc_ptr, m_ptr, l_ptr, pair * HEADS * num_partials + split, num_partials, m, l, acc,
        HEADS, PADDED, CHANNELS,
    )  # fmt: skip

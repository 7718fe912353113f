"""Exact attention to the window, the first and the last tokens: seeds the search with the greatest product there."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import (
    accumulate,
    body_of,
    load_queries,
    products,
    store_partial,
    token_rows,
)


@triton.jit
def window_kernel(
    query_ptr, key_ptr, table_ptr, lens_ptr, rows_ptr, partial_ptr, most_ptr, total_ptr,
    scale, stride_qt, stride_kb, stride_kh, stride_kt, stride_table, num_partials,
    HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of the window, KV heads, requests); partial ``i`` is tile ``i``."""
    tile, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    place = tile * TILE + tl.arange(0, TILE)
    tokens = tl.where(place < start, place, place - start + end)
    there = tokens < seq_len
    row = tl.load(rows_ptr + request)
    queries = load_queries(query_ptr, row, head, stride_qt, HEADS, PADDED, HEAD_SIZE, CHANNELS)
    table = table_ptr + request.to(tl.int64) * stride_table
    rows = token_rows(key_ptr, table, tokens, there, head, stride_kb, stride_kh, stride_kt, BLOCK_SIZE)
    scores = products(queries, rows, there, HEAD_SIZE, CHANNELS)
    most = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    summed = tl.zeros([PADDED, CHANNELS], tl.float32)
    most, total, summed = accumulate(scores, rows, there, most, total, summed, scale, HEAD_SIZE, CHANNELS)
    where = (request.to(tl.int64) * tl.num_programs(1) + head) * HEADS * num_partials + tile
    store_partial(partial_ptr, most_ptr, total_ptr, where, num_partials, most, total, summed, HEADS, PADDED, CHANNELS)

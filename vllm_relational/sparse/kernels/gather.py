"""Exact attention to the tokens that the scan listed, dealt out evenly whatever split they came from."""

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
def gather_kernel(
    query_ptr, key_ptr, table_ptr, lens_ptr, rows_ptr, partial_ptr, most_ptr, total_ptr, list_ptr, count_ptr,
    statistics_ptr, scale, stride_qt, stride_kb, stride_kh, stride_kt, stride_table, num_partials, first_partial,
    capacity,
    HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    GROUPS: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid: (programs, KV heads, requests); partial ``first_partial + program``. See ``scan_kernel`` for the lists."""
    program, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    share = tl.cdiv(tl.cdiv((end - start) // GROUP, GROUPS), SPLITS) * GROUPS * GROUP  # tokens a split
    pair = request.to(tl.int64) * tl.num_programs(1) + head
    splits = tl.arange(0, SPLITS_PADDED)
    counts = tl.load(count_ptr + pair * SPLITS + splits, mask=splits < SPLITS, other=0)
    whole = tl.minimum(tl.maximum(end - start - splits * share, 0), share)
    tiles = tl.cdiv(tl.where(counts < 0, whole, counts), TILE)
    behind = tl.cumsum(tiles, axis=0)
    num_tiles = tl.sum(tiles, axis=0)
    row = tl.load(rows_ptr + request)
    queries = load_queries(query_ptr, row, head, stride_qt, HEADS, PADDED, HEAD_SIZE, CHANNELS)
    table = table_ptr + request.to(tl.int64) * stride_table
    most = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    summed = tl.zeros([PADDED, CHANNELS], tl.float32)
    if program == 0:
        tl.atomic_add(statistics_ptr, (end - start).to(tl.int64))
        tl.atomic_add(statistics_ptr + 1, tl.sum(tl.where(counts < 0, whole, counts), axis=0).to(tl.int64))
        tl.atomic_add(statistics_ptr + 2, tl.sum((counts < 0).to(tl.int32), axis=0).to(tl.int64))
    for tile in range(program, num_tiles, tl.num_programs(0)):
        passed = behind <= tile
        split = tl.sum(passed.to(tl.int32), axis=0)
        offset = (tile - tl.sum(tl.where(passed, tiles, 0), axis=0)) * TILE + tl.arange(0, TILE)
        count = tl.load(count_ptr + pair * SPLITS + split)
        if count < 0:
            there = offset < tl.minimum(end - start - split * share, share)
            tokens = start + split * share + offset
        else:
            there = offset < count
            tokens = tl.load(list_ptr + (pair * SPLITS + split) * capacity + offset, mask=there, other=0)
        rows = token_rows(key_ptr, table, tokens, there, head, stride_kb, stride_kh, stride_kt, BLOCK_SIZE)
        scores = products(queries, rows, there, HEAD_SIZE, CHANNELS)
        most, total, summed = accumulate(scores, rows, there, most, total, summed, scale, HEAD_SIZE, CHANNELS)
    where = pair * HEADS * num_partials + first_partial + program
    store_partial(partial_ptr, most_ptr, total_ptr, where, num_partials, most, total, summed, HEADS, PADDED, CHANNELS)

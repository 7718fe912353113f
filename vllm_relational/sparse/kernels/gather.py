"""Exact attention to the tokens that the scan marked, dealt out evenly, and the tail: what it only weighed.

The tail is the mean value of each group times the estimated weights of its tokens that are not marked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import (
    LOG2E,
    accumulate,
    body_of,
    dot,
    follow,
    load_queries,
    products,
    share_of,
    store_partial,
    token_rows,
)
from vllm_relational.sparse.kernels.columns import first_group, has_scratch, load_seed


@triton.jit(do_not_specialize=["num_reqs", "num_partials", "total_groups", "total_listed"])
def gather_kernel(
    query_ptr, key_ptr, mean_ptr, table_ptr, lens_ptr, rows_ptr, partial_ptr, most_ptr, total_ptr, tail_ptr,
    weight_ptr, list_ptr, count_ptr, statistics_ptr,
    scale, num_reqs, stride_qt, stride_kb, stride_kh, stride_kt, stride_ob, stride_oh, stride_table, num_partials,
    total_groups, total_listed,
    HEADS: tl.constexpr, PADDED: tl.constexpr, COMPACT: tl.constexpr, HEAD_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    SPLITS_PADDED: tl.constexpr, TILE: tl.constexpr,
    WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr, TAIL_TILE: tl.constexpr,
    REQS: tl.constexpr, ROOM: tl.constexpr, TAIL: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Grid: (splits, KV heads, requests); partial ``WINDOW_TILES + program``. See ``compact_kernel`` for the lists.

    tail: how much of a partial's denominator is estimates, laid out as ``total``.
    """
    program, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    follow(CHAINED)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    # ---- the tokens of all splits as one list
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    num_splits = tl.num_programs(0)
    share, _, _ = share_of(program, num_splits, start, end, GROUP)
    pair = request.to(tl.int64) * tl.num_programs(1) + head
    splits = tl.arange(0, SPLITS_PADDED)
    counts = tl.load(count_ptr + pair * num_splits + splits, mask=splits < num_splits, other=0)
    whole = tl.minimum(tl.maximum(end - start - splits * share * GROUP, 0), share * GROUP)
    tiles = tl.cdiv(tl.where(counts < 0, whole, counts), TILE)
    behind = tl.cumsum(tiles, axis=0)
    num_tiles = tl.sum(tiles, axis=0)
    if program == 0:
        tl.atomic_add(statistics_ptr, (end - start).to(tl.int64))
        tl.atomic_add(statistics_ptr + 1, tl.sum(tl.where(counts < 0, whole, counts), axis=0).to(tl.int64))
        tl.atomic_add(statistics_ptr + 2, tl.sum((counts < 0).to(tl.int32), axis=0).to(tl.int64))
    # ---- exact attention
    row = tl.load(rows_ptr + request)
    queries = load_queries(query_ptr, row, head, stride_qt, HEADS, PADDED, HEAD_SIZE, CHANNELS)
    table = table_ptr + request.to(tl.int64) * stride_table
    place = first_group(lens_ptr, request, num_reqs, num_splits, REQS, GROUP)
    lists = list_ptr + head.to(tl.int64) * total_listed + place * ROOM
    most = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    summed = tl.zeros([PADDED, CHANNELS], tl.float32)
    for tile in range(program, num_tiles, tl.num_programs(0)):
        passed = behind <= tile
        split = tl.sum(passed.to(tl.int32), axis=0)
        offset = (tile - tl.sum(tl.where(passed, tiles, 0), axis=0)) * TILE + tl.arange(0, TILE)
        count = tl.load(count_ptr + pair * num_splits + split)
        if count < 0:
            there = offset < tl.minimum(end - start - split * share * GROUP, share * GROUP)
            tokens = start + split * share * GROUP + offset
        else:
            there = offset < count
            tokens = tl.load(lists + split * share * ROOM + offset, mask=there, other=0)
        rows = token_rows(key_ptr, table, tokens, there, head, stride_kb, stride_kh, stride_kt, BLOCK_SIZE)
        scores = products(queries, rows, there, HEAD_SIZE, CHANNELS)
        most, total, summed = accumulate(scores, rows, there, most, total, summed, scale, HEAD_SIZE, CHANNELS)
    # ---- the tail, with the window's greatest product as base
    estimated = tl.zeros([PADDED], tl.float32)
    if TAIL and has_scratch(place, seq_len, num_splits, total_groups, GROUP):
        heads, channels = tl.arange(0, PADDED), tl.arange(0, CHANNELS)
        real = heads < HEADS
        seed = load_seed(most_ptr, pair, num_partials, HEADS, PADDED, WINDOW_TILES, WINDOW_PADDED)
        greatest = tl.maximum(most, seed)
        fade = tl.exp2((most - greatest) * (scale * LOG2E))
        lift = tl.exp2((seed - greatest) * (scale * LOG2E))
        total, summed, most = total * fade, summed * fade[:, None], greatest
        tail = tl.zeros([PADDED, CHANNELS], tl.float32)
        per_block: tl.constexpr = BLOCK_SIZE // GROUP
        for tile in range(start // GROUP + program * TAIL_TILE, end // GROUP, tl.num_programs(0) * TAIL_TILE):
            groups = tile + tl.arange(0, TAIL_TILE)
            inside = groups < end // GROUP
            split = (groups - start // GROUP) // tl.maximum(share, 1)
            weighed = tl.load(count_ptr + pair * num_splits + split, mask=inside, other=-1) >= 0
            from_group = (head * total_groups + place + groups)[None, :] * COMPACT + heads[:, None]
            weights = tl.load(weight_ptr + from_group, mask=real[:, None] & weighed[None, :], other=0.0)
            blocks = tl.load(table + groups // per_block, mask=inside, other=0).to(tl.int64)
            means = mean_ptr + blocks * stride_ob + head * stride_oh + groups % per_block * HEAD_SIZE
            mask = inside[:, None] & (channels < HEAD_SIZE)[None, :]
            values = tl.load(means[:, None] + channels[None, :], mask=mask, other=0.0)
            estimated += tl.sum(weights, axis=1)
            tail = dot(weights.to(tl.bfloat16), values, tail)
        estimated *= lift
        total += estimated
        summed += tail * lift[:, None]
    where = pair * HEADS * num_partials + WINDOW_TILES + program
    every = tl.arange(0, PADDED)
    tl.store(tail_ptr + where + every * num_partials, estimated, mask=every < HEADS)
    store_partial(partial_ptr, most_ptr, total_ptr, where, num_partials, most, total, summed, HEADS, PADDED, CHANNELS)

"""Exact attention to the tokens that the scan marked, and the tail: what it only weighed.

The tail is the mean value of each group times the estimated weights of its tokens that are not marked. Some heads list
ten times the tokens of others, so all tiles of a batch are dealt out evenly: a program takes a stretch of them, which
may begin in one request's KV head and end in another's, and leaves a partial softmax for each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse import statistics
from vllm_relational.sparse.kernels.attend import (
    LOG2E,
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
from vllm_relational.sparse.kernels.columns import first_group, load_seed

BODY_TOKENS = tl.constexpr(statistics.BODY_TOKENS)
LISTED_TOKENS = tl.constexpr(statistics.LISTED_TOKENS)
DENSE_SPLITS = tl.constexpr(statistics.DENSE_SPLITS)


@triton.jit
def _groups_of_list(groups, part, LISTS: tl.constexpr):
    """How many groups of a body one of its lists is of."""
    share = tl.cdiv(groups, LISTS)
    return tl.minimum(tl.maximum(groups - part * share, 0), share)


@triton.jit
def _tokens_of_list(counts, there, GROUP: tl.constexpr):
    """How many tokens a list of ``there`` groups has: all of them where its count is minus one."""
    return tl.where(counts < 0, there * GROUP, tl.where(there > 0, counts, 0))


@triton.jit
def _work(
    pairs, count_ptr, lens_ptr, statistics_ptr, num_pairs, num_kv_heads, is_first,
    GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr, LISTS: tl.constexpr, TILE: tl.constexpr,
    TAIL_TILE: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Tiles of each request and KV head: those of listed tokens, then those of groups' mean values."""
    real = pairs < num_pairs
    seq_len = tl.load(lens_ptr + pairs // num_kv_heads, mask=real, other=0)
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    groups = (end - start) // GROUP
    parts = tl.arange(0, LISTS)
    counts = tl.load(count_ptr + pairs[:, None] * LISTS + parts[None, :], mask=real[:, None], other=0)
    there = _groups_of_list(groups[:, None], parts[None, :], LISTS)
    tokens = _tokens_of_list(counts, there, GROUP)
    if is_first:
        is_whole = (counts < 0) & (there > 0)
        tl.atomic_add(statistics_ptr + BODY_TOKENS, tl.sum((groups * GROUP).to(tl.int64), axis=0))
        tl.atomic_add(statistics_ptr + LISTED_TOKENS, tl.sum(tl.sum(tokens.to(tl.int64), axis=1), axis=0))
        tl.atomic_add(statistics_ptr + DENSE_SPLITS, tl.sum(tl.sum(is_whole.to(tl.int64), axis=1), axis=0))
    tiles = tl.sum(tl.cdiv(tokens, TILE), axis=1)
    if TAIL:
        is_weighed = tl.max(((counts >= 0) & (there > 0)).to(tl.int32), axis=1)
        tiles += is_weighed * tl.cdiv(groups, TAIL_TILE)
    return tiles


@triton.jit(do_not_specialize=["num_reqs", "num_kv_heads", "total_groups", "total_listed", "spare"])
def gather_kernel(
    query_ptr, key_ptr, mean_ptr, table_ptr, lens_ptr, rows_ptr, acc_ptr, m_ptr, l_ptr, tail_ptr,
    weight_ptr, list_ptr, count_ptr, span_ptr, statistics_ptr,
    scale, num_reqs, num_kv_heads, stride_qt, stride_kb, stride_kh, stride_kt, stride_ob, stride_oh, stride_table,
    total_groups, total_listed, spare,
    HEADS: tl.constexpr, PADDED: tl.constexpr, COMPACT: tl.constexpr, HEAD_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    PAIRS: tl.constexpr, LISTS: tl.constexpr, TILE: tl.constexpr,
    WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr, TAIL_TILE: tl.constexpr, STAGES: tl.constexpr,
    REQS: tl.constexpr, ROOM: tl.constexpr, TAIL: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Grid: programs. See ``compact_kernel`` for the lists, ``merge_kernel`` for where partials lie.

    span: the first tile of each request and KV head, and the one behind its last; then how many a program has.
    tail: how much of a partial's denominator is estimates, laid out as ``l``.
    """
    program = tl.program_id(0)
    follow(CHAINED)
    pairs, num_pairs = tl.arange(0, PAIRS), num_reqs * num_kv_heads
    tiles = _work(
        pairs, count_ptr, lens_ptr, statistics_ptr, num_pairs, num_kv_heads, program == 0,
        GROUP, SINKS, RECENT, LISTS, TILE, TAIL_TILE, TAIL,
    )  # fmt: skip
    behind = tl.cumsum(tiles, axis=0)
    num_tiles = tl.sum(tiles, axis=0)
    share = tl.cdiv(num_tiles, tl.num_programs(0))
    if program == 0:
        tl.store(span_ptr + 2 * pairs, behind - tiles, mask=pairs < num_pairs)
        tl.store(span_ptr + 2 * pairs + 1, behind, mask=pairs < num_pairs)
        tl.store(span_ptr + 2 * num_pairs, share)
    at, last = program * share, tl.minimum(program * share + share, num_tiles)
    while at < last:
        pair = tl.sum((behind <= at).to(tl.int32), axis=0)
        end = tl.sum(tl.where(pairs == pair, behind, 0), axis=0)
        begin = end - tl.sum(tl.where(pairs == pair, tiles, 0), axis=0)
        stop = tl.minimum(last, end)
        _attend(
            query_ptr, key_ptr, mean_ptr, table_ptr, lens_ptr, rows_ptr, acc_ptr, m_ptr, l_ptr, tail_ptr,
            weight_ptr, list_ptr, count_ptr, scale, num_reqs, num_kv_heads, stride_qt, stride_kb, stride_kh, stride_kt,
            stride_ob, stride_oh, stride_table, total_groups, total_listed, spare, pair, at - begin, stop - begin,
            (num_pairs * WINDOW_TILES + program + pair).to(tl.int64) * HEADS,
            HEADS, PADDED, COMPACT, HEAD_SIZE, CHANNELS, BLOCK_SIZE, GROUP, SINKS, RECENT, LISTS, TILE, WINDOW_TILES,
            WINDOW_PADDED, TAIL_TILE, STAGES, REQS, ROOM, TAIL,
        )  # fmt: skip
        at = stop
    lead(CHAINED)


@triton.jit
def _attend(
    query_ptr, key_ptr, mean_ptr, table_ptr, lens_ptr, rows_ptr, acc_ptr, m_ptr, l_ptr, tail_ptr,
    weight_ptr, list_ptr, count_ptr, scale, num_reqs, num_kv_heads, stride_qt, stride_kb, stride_kh, stride_kt,
    stride_ob, stride_oh, stride_table, total_groups, total_listed, spare, pair, first, last, where,
    HEADS: tl.constexpr, PADDED: tl.constexpr, COMPACT: tl.constexpr, HEAD_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    LISTS: tl.constexpr, TILE: tl.constexpr, WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr,
    TAIL_TILE: tl.constexpr, STAGES: tl.constexpr, REQS: tl.constexpr, ROOM: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """The tiles from ``first`` up to ``last`` of one request and KV head, as the partial at ``where``."""
    request, head = pair // num_kv_heads, pair % num_kv_heads
    parts = tl.arange(0, LISTS)
    from_counts = count_ptr + pair * LISTS
    counts = tl.load(from_counts + parts)
    row, seq_len = tl.load(rows_ptr + request), tl.load(lens_ptr + request)
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    groups = (end - start) // GROUP
    share = tl.cdiv(groups, LISTS)
    there = _groups_of_list(groups, parts, LISTS)
    tiles = tl.cdiv(_tokens_of_list(counts, there, GROUP), TILE)
    behind = tl.cumsum(tiles, axis=0)
    num_tiles = tl.sum(tiles, axis=0)
    queries = load_queries(query_ptr, row, head, stride_qt, HEADS, PADDED, HEAD_SIZE, CHANNELS)
    table = table_ptr + request.to(tl.int64) * stride_table
    place = first_group(lens_ptr, request, num_reqs, spare, REQS, GROUP)
    # ---- exact attention to listed tokens
    lists = list_ptr + head.to(tl.int64) * total_listed + place * ROOM
    m = tl.full([PADDED], float("-inf"), tl.float32)
    l = tl.zeros([PADDED], tl.float32)
    acc = tl.zeros([PADDED, CHANNELS], tl.float32)
    for tile in tl.range(first, tl.minimum(last, num_tiles), num_stages=STAGES):
        passed = behind <= tile
        part = tl.sum(passed.to(tl.int32), axis=0)
        offset = (tile - tl.sum(tl.where(passed, tiles, 0), axis=0)) * TILE + tl.arange(0, TILE)
        count = tl.sum(tl.where(parts == part, counts, 0), axis=0)
        inside = offset < tl.where(count < 0, _groups_of_list(groups, part, LISTS) * GROUP, count)
        tokens = tl.load(lists + part * share * ROOM + offset, mask=offset < count, other=0)
        tokens = tl.where(count < 0, start + part * share * GROUP + offset, tokens)
        rows = token_rows(key_ptr, table, tokens, inside, head, stride_kb, stride_kh, stride_kt, BLOCK_SIZE)
        keys = load_rows(rows, inside, HEAD_SIZE, CHANNELS)
        values = load_rows(rows + HEAD_SIZE, inside, HEAD_SIZE, CHANNELS)
        m, l, acc = accumulate(scores_of(queries, keys, inside), values, m, l, acc, scale)
    # ---- the tail, with the window's greatest score as base
    heads = tl.arange(0, PADDED)
    estimated = tl.zeros([PADDED], tl.float32)
    if TAIL and last > num_tiles:
        seed = load_seed(m_ptr, pair, HEADS, PADDED, WINDOW_TILES, WINDOW_PADDED)
        new_m = tl.maximum(m, seed)
        rescale = tl.exp2((m - new_m) * (scale * LOG2E))
        lift = tl.exp2((seed - new_m) * (scale * LOG2E))
        l, acc, m = l * rescale, acc * rescale[:, None], new_m
        tail = tl.zeros([PADDED, CHANNELS], tl.float32)
        per_block: tl.constexpr = BLOCK_SIZE // GROUP
        weights_of = weight_ptr + (head.to(tl.int64) * total_groups + place) * COMPACT
        for tile in tl.range(tl.maximum(first - num_tiles, 0), last - num_tiles, num_stages=STAGES):
            of_body = tile * TAIL_TILE + tl.arange(0, TAIL_TILE)
            inside = of_body < groups
            each = start // GROUP + of_body
            is_weighed = tl.load(from_counts + of_body // share, mask=inside, other=-1) >= 0
            mask = (heads < HEADS)[:, None] & is_weighed[None, :]
            weights = tl.load(weights_of + each[None, :] * COMPACT + heads[:, None], mask=mask, other=0.0)
            blocks = tl.load(table + each // per_block, mask=inside, other=0).to(tl.int64)
            means = mean_ptr + blocks * stride_ob + head * stride_oh + each % per_block * HEAD_SIZE
            estimated += tl.sum(weights, axis=1)
            tail = dot(weights.to(tl.bfloat16), load_rows(means, inside, HEAD_SIZE, CHANNELS), tail)
        estimated *= lift
        l += estimated
        acc += tail * lift[:, None]
    tl.store(tail_ptr + where + heads, estimated, mask=heads < HEADS)
    store_partial(acc_ptr, m_ptr, l_ptr, where, 1, m, l, acc, HEADS, PADDED, CHANNELS)

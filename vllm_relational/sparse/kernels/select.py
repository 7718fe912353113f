"""Chooses whole groups by what zero point and scale say of them, so many per KV head: ``naive.TopPages`` on the device.

Two launches after ``prepare`` with OUTLINE, in the place of scan and compact. ``select_kernel`` finds the score that
the wanted number of groups reach, by bisection over the bits of the scores, which a program holds in registers;
``list_kernel`` lists the tokens of the chosen groups and weighs the others. Equal scores go by position, so that the
groups are always the same, and exactly so many.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import LOG2E, body_of, follow, lead, share_of
from vllm_relational.sparse.kernels.columns import first_group, has_scratch, load_seed

NOTHING = tl.constexpr(-(2**31))
"""Below the order of every score."""
MAX_LIFT = tl.constexpr(64.0)
"""``naive.MAX_LIFT``."""


@triton.jit
def _in_order(scores):
    """float32 -> int32 in the same order; NaN, of groups without codes, stands with plus infinity."""
    bits = tl.where(scores != scores, float("inf"), scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _threshold(order, wanted):
    """The greatest value that at least ``wanted`` of ``order`` reach, and how many are above it.

    The order of nothing is ``NOTHING``; more than ``wanted`` are something. The search ends early where a value parts
    exactly ``wanted`` from the rest.
    """
    most = tl.max(order, axis=0)
    low = tl.min(tl.where(order == NOTHING, most, order), axis=0)
    high = most + 1
    while low + 1 < high:
        middle = (low & high) + ((low ^ high) >> 1)
        reach = tl.sum((order >= middle).to(tl.int32), axis=0)
        low = tl.where(reach >= wanted, middle, low)
        high = tl.where(reach == wanted, middle + 1, tl.where(reach < wanted, middle, high))
    return low, tl.sum((order > low).to(tl.int32), axis=0)


@triton.jit
def _last(equal, places, wanted, behind):
    """The place of the ``wanted``-th of those that are ``equal``, before ``behind``."""
    low, high = tl.full([], -1, tl.int32), behind
    if tl.sum(equal.to(tl.int32), axis=0) > wanted:
        while low + 1 < high:
            middle = (low + high) // 2
            enough = tl.sum((equal & (places <= middle)).to(tl.int32), axis=0) >= wanted
            low = tl.where(enough, low, middle)
            high = tl.where(enough, middle, high)
    return high


@triton.jit(do_not_specialize=["num_reqs", "total_groups", "spare", "wanted"])
def select_kernel(
    rank_ptr, m_ptr, lens_ptr, order_ptr, limit_ptr,
    num_reqs, total_groups, spare, wanted,
    HEADS: tl.constexpr, COMPACT: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr, REQS: tl.constexpr, MAX_GROUPS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Which ``wanted`` groups of a body have the greatest scores. Grid: (KV heads, requests).

    rank:  of a query head and group, as ``prepare`` left it.
    order: int32 ``[num_kv_heads, total_groups]``, by which groups compare: the greatest, over the heads, of how far the
           rank is above the window's greatest score.
    limit: int32 ``[requests, num_kv_heads, 2]``: groups of a greater order are chosen, and of the same order those up
           to a place, counted from the request's first group.
    """
    head, request = tl.program_id(0), tl.program_id(1)
    follow(CHAINED)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    place = first_group(lens_ptr, request, num_reqs, spare, REQS, GROUP)
    if not has_scratch(place, seq_len, spare, total_groups, GROUP):
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    pair = request.to(tl.int64) * tl.num_programs(0) + head
    groups = start // GROUP + tl.arange(0, MAX_GROUPS)
    inside = groups < end // GROUP
    order = tl.full([MAX_GROUPS], NOTHING, tl.int32)
    for each in range(HEADS):
        tiles = tl.arange(0, WINDOW_PADDED)
        seen = m_ptr + (pair * HEADS + each) * WINDOW_TILES + tiles
        seed = tl.max(tl.load(seen, mask=tiles < WINDOW_TILES, other=float("-inf")), axis=0)
        ranks = rank_ptr + (head * COMPACT + each).to(tl.int64) * total_groups + place
        ahead = tl.load(ranks + groups, mask=inside, other=0.0) - seed
        order = tl.maximum(order, _in_order(ahead))
    tl.store(order_ptr + head.to(tl.int64) * total_groups + place + groups, order, mask=inside)
    order = tl.where(inside, order, NOTHING)
    limit, last = tl.full([], NOTHING, tl.int32), tl.full([], -1, tl.int32)
    if (end - start) // GROUP > wanted:
        limit, above = _threshold(order, wanted)
        last = _last(order == limit, groups, wanted - above, end // GROUP)
    tl.store(limit_ptr + pair * 2, limit)
    tl.store(limit_ptr + pair * 2 + 1, last)
    lead(CHAINED)


@triton.jit(do_not_specialize=["num_reqs", "total_groups", "total_listed"])
def list_kernel(
    lens_ptr, middle_ptr, m_ptr, order_ptr, limit_ptr, weight_ptr, list_ptr, count_ptr,
    scale, num_reqs, total_groups, total_listed,
    HEADS: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr, REQS: tl.constexpr, ROOM: tl.constexpr,
    TILE: tl.constexpr, TAIL: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The tokens of the chosen groups of every split as a list, as ``compact_kernel`` makes it, and the weights of the
    other groups: as if all their keys were their middle. Grid: (splits, KV heads, requests).

    count: tokens listed by a split; minus one where there is no scratch for the request: all tokens then count.
    """
    split, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    follow(CHAINED)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    splits = tl.num_programs(0)
    share, first, last = share_of(split, splits, start, end, GROUP)
    pair = request.to(tl.int64) * tl.num_programs(1) + head
    counted = count_ptr + pair * splits + split
    if first >= last:
        tl.store(counted, 0)
        return
    place = first_group(lens_ptr, request, num_reqs, splits, REQS, GROUP)
    if not has_scratch(place, seq_len, splits, total_groups, GROUP):
        tl.store(counted, -1)
        return
    limit, last_equal = tl.load(limit_ptr + pair * 2), tl.load(limit_ptr + pair * 2 + 1)
    heads, tokens = tl.arange(0, PADDED), tl.arange(0, GROUP)
    seed = load_seed(m_ptr, pair, HEADS, PADDED, WINDOW_TILES, WINDOW_PADDED)
    shared = head.to(tl.int64) * total_groups + place
    listed = list_ptr + head.to(tl.int64) * total_listed + (place + split * share) * ROOM
    count = 0
    for tile in range(first, last, TILE):
        groups = tile + tl.arange(0, TILE)
        inside = groups < last
        order = tl.load(order_ptr + shared + groups, mask=inside, other=NOTHING)
        kept = inside & ((order > limit) | ((order == limit) & (groups <= last_equal)))
        to = count + tl.cumsum(kept.to(tl.int32), axis=0) - kept.to(tl.int32)
        to = to[:, None] * GROUP + tokens[None, :]
        tl.store(listed + to, groups[:, None] * GROUP + tokens[None, :], mask=kept[:, None] & (to >= 0))
        count += tl.sum(kept.to(tl.int32), axis=0)
        if TAIL:
            from_head = (head * PADDED + heads).to(tl.int64) * total_groups + place
            mask = inside[:, None] & (heads < HEADS)[None, :]
            middle = tl.load(middle_ptr + from_head[None, :] + groups[:, None], mask=mask, other=0.0)
            lift = tl.minimum((middle - seed[None, :]) * (scale * LOG2E), MAX_LIFT)
            weights = tl.where(kept[:, None] | (middle != middle), 0.0, tl.exp2(lift) * GROUP)
            tl.store(weight_ptr + (shared + groups)[:, None] * PADDED + heads[None, :], weights, mask=mask)
    tl.store(counted, count * GROUP)
    lead(CHAINED)

"""Reads the 4-bit codes of the body, marks the tokens that may be in the DIPR set, and weighs all others.

A token is marked when, for some head of the group, the estimate of its product plus the error bound reaches the
greatest product of the window minus beta. No product of the window is above the greatest of all, so the marks hold the
DIPR set of arXiv 2504.10326 whatever the keys are. Tokens that are not marked leave their estimated weights, summed by
group. Nothing is passed from warp to warp: lists are made of the marks afterwards (``compact_kernel``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import INTERPRETED, LOG2E, body_of, dot
from vllm_relational.sparse.kernels.columns import compact, first_group, head_of, load_seed

# The K axis of a product with one quarter of the head is ordered so that a thread of the tensor cores' layout holds
# what lies together in memory. Axis k is (slice of 16, half, lane, neighbour); word w of a token is (lane, slice, half)
# and holds both neighbours; word u of the steps is (lane, slice) and holds (half, neighbour).


@triton.jit
def _channel(k, WORDS: tl.constexpr):
    """The channel within its quarter that stands at place ``k``."""
    slice16, half, lane, neighbour = k // 16, k // 8 % 2, k // 2 % 4, k % 2
    return 2 * (lane * (WORDS // 4) + 2 * slice16 + half) + neighbour


@triton.jit
def _codes(words, QUARTER: tl.constexpr):
    """The codes of one quarter as float16, plus 64: words ``[tokens, WORDS]`` -> ``[tokens, 2 * WORDS]``.

    A code in bits 4 to 7 of 0x5400 is the float16 64 + code, without a conversion.
    """
    moved = words << 4 if QUARTER == 0 else words >> (4 * QUARTER - 4)
    if INTERPRETED:
        both = (moved & 0x00F000F0) | 0x54005400
        first = (both & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
        second = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        first, second = tl.inline_asm_elementwise(
            "{ .reg .b32 t; lop3.b32 t, $2, 0x00F000F0, 0x54005400, 0xEA; mov.b32 {$0, $1}, t; }",
            "=h,=h,r",
            [moved],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )
    tokens: tl.constexpr = words.shape[0]
    slices: tl.constexpr = words.shape[1] // 8
    pairs = tl.reshape(tl.join(first, second), [tokens, 4, slices, 2, 2])
    return tl.reshape(tl.permute(pairs, (0, 2, 3, 1, 4)), [tokens, slices * 16])


@triton.jit
def _steps(words):
    """Steps of one quarter as float16: words ``[groups, n]`` of four bytes -> ``[groups, 4 * n]``."""
    if INTERPRETED:
        first = ((words & 0xFF) << 7).to(tl.int16).to(tl.float16, bitcast=True)
        second = (((words >> 8) & 0xFF) << 7).to(tl.int16).to(tl.float16, bitcast=True)
        third = (((words >> 16) & 0xFF) << 7).to(tl.int16).to(tl.float16, bitcast=True)
        fourth = (((words >> 24) & 0xFF) << 7).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        first, second, third, fourth = tl.inline_asm_elementwise(
            "{ .reg .b32 a, b; prmt.b32 a, $4, 0, 0x1404; prmt.b32 b, $4, 0, 0x3424;"
            " shr.u32 a, a, 1; shr.u32 b, b, 1; mov.b32 {$0, $1}, a; mov.b32 {$2, $3}, b; }",
            "=h,=h,=h,=h,r",
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )
    groups: tl.constexpr = words.shape[0]
    slices: tl.constexpr = words.shape[1] // 4
    both = tl.join(tl.join(first, second), tl.join(third, fourth))  # [groups, words, neighbour, half]
    spread = tl.permute(tl.reshape(both, [groups, 4, slices, 2, 2]), (0, 2, 4, 1, 3))
    return tl.reshape(spread, [groups, slices * 16])


@triton.jit
def _by_token(values, GROUP: tl.constexpr):
    """Rows of groups ``[groups, n]`` -> rows of their tokens ``[groups * GROUP, n]``."""
    spread = tl.broadcast_to(values[:, None, :], [values.shape[0], GROUP, values.shape[1]])
    return tl.reshape(spread, [values.shape[0] * GROUP, values.shape[1]])


@triton.jit
def _load_quarter(
    query_ptr, HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr,
    QUARTER: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """One quarter of the queries of a group ``[2 * WORDS, 16]``."""
    channels = _channel(tl.arange(0, 2 * WORDS), WORDS)
    head = head_of(tl.arange(0, 16), PADDED)
    there = (channels < HEAD_SIZE // 4)[:, None] & (head < HEADS)[None, :]
    place = head[None, :] * HEAD_SIZE + QUARTER * (HEAD_SIZE // 4) + channels[:, None]
    return tl.load(query_ptr + place, mask=there, other=0.0).to(NUMBER)


@triton.jit
def _quarter(
    words, query, step_ptr, in_step, inside, scores,
    HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr, QUARTER: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Add one quarter of the channels to q.(64 + code) step ``[tokens, 16]``."""
    fours = tl.arange(0, WORDS // 2)
    mask = inside[:, None] & (fours < HEAD_SIZE // 16)[None, :]
    raw = tl.load(step_ptr + in_step[:, None] + QUARTER * (HEAD_SIZE // 16) + fours[None, :], mask=mask, other=0)
    keys = _codes(words, QUARTER) * _by_token(_steps(raw), GROUP)
    return dot(keys.to(NUMBER), query, scores)


@triton.jit(do_not_specialize=["num_reqs", "num_partials", "total_groups"])
def scan_kernel(
    query_ptr, words_ptr, step_ptr, table_ptr, lens_ptr, rows_ptr, most_ptr, base_ptr, bound_ptr, weight_ptr,
    mark_ptr, scale, beta, alpha_length, num_reqs, stride_qt, stride_wb, stride_wh, stride_sb, stride_sh, stride_table,
    num_partials, total_groups,
    HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    GROUPS: tl.constexpr, WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr, REQS: tl.constexpr,
    TAIL: tl.constexpr, BY_LENGTH: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Grid: (splits, KV heads, requests). A request without scratch has no marks: see ``compact_kernel``."""
    split, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    # ---- which groups are ours
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    splits = tl.num_programs(0)
    share = tl.cdiv(tl.cdiv((end - start) // GROUP, GROUPS), splits) * GROUPS
    first = start // GROUP + split * share
    last = tl.minimum(first + share, end // GROUP)
    pair = request.to(tl.int64) * tl.num_programs(1) + head
    if first >= last:
        return
    place = first_group(lens_ptr, request, num_reqs, splits * GROUPS, REQS, GROUP)
    if place + tl.cdiv(seq_len, GROUP) + splits * GROUPS > total_groups:
        return
    # ---- the queries by quarters, and what the window found
    row = tl.load(rows_ptr + request).to(tl.int64)
    query = query_ptr + row * stride_qt + head * HEADS * HEAD_SIZE
    query0 = _load_quarter(query, HEADS, PADDED, HEAD_SIZE, WORDS, 0, NUMBER)
    query1 = _load_quarter(query, HEADS, PADDED, HEAD_SIZE, WORDS, 1, NUMBER)
    query2 = _load_quarter(query, HEADS, PADDED, HEAD_SIZE, WORDS, 2, NUMBER)
    query3 = _load_quarter(query, HEADS, PADDED, HEAD_SIZE, WORDS, 3, NUMBER)
    heads = tl.arange(0, PADDED)
    seed = load_seed(most_ptr, pair, num_partials, HEADS, PADDED, WINDOW_TILES, WINDOW_PADDED)
    if BY_LENGTH:
        beta = tl.maximum(tl.log(seq_len.to(tl.float32) / alpha_length), 0.0) / scale
    least = tl.where(heads < HEADS, seed - beta, float("inf"))
    # ---- tile by tile
    word_offsets, token_offsets = tl.arange(0, WORDS), tl.arange(0, GROUPS * GROUP)
    table = table_ptr + request.to(tl.int64) * stride_table
    per_block: tl.constexpr = BLOCK_SIZE // GROUP
    shared = head * total_groups + place
    for tile in range(first, last, GROUPS):
        groups = tile + tl.arange(0, GROUPS)
        inside = groups < last
        blocks = tl.load(table + groups // per_block, mask=inside, other=0).to(tl.int64)
        in_step = blocks * stride_sb + head * stride_sh + groups % per_block * (HEAD_SIZE // 4)
        own = tile + token_offsets // GROUP
        own_inside = own < last
        own_blocks = tl.load(table + own // per_block, mask=own_inside, other=0).to(tl.int64)
        in_words = own_blocks * stride_wb + head * stride_wh
        in_words += (own % per_block * GROUP + token_offsets % GROUP) * (HEAD_SIZE // 8)
        there = (word_offsets < HEAD_SIZE // 8)[None, :]
        words = tl.load(words_ptr + in_words[:, None] + word_offsets[None, :], mask=there, other=0)
        of_group = (shared + own)[:, None] * PADDED + heads[None, :]
        base = tl.load(base_ptr + of_group, mask=own_inside[:, None], other=0.0)
        bound = tl.load(bound_ptr + of_group, mask=own_inside[:, None], other=0.0)
        scores = tl.zeros([GROUPS * GROUP, 16], tl.float32)
        scores = _quarter(words, query0, step_ptr, in_step, inside, scores, HEAD_SIZE, WORDS, GROUP, 0, NUMBER)
        scores = _quarter(words, query1, step_ptr, in_step, inside, scores, HEAD_SIZE, WORDS, GROUP, 1, NUMBER)
        scores = _quarter(words, query2, step_ptr, in_step, inside, scores, HEAD_SIZE, WORDS, GROUP, 2, NUMBER)
        scores = _quarter(words, query3, step_ptr, in_step, inside, scores, HEAD_SIZE, WORDS, GROUP, 3, NUMBER)
        scores = compact(scores, PADDED) + base
        # Keys that fit no code have NaN: not less than anything, so they are marked.
        far = (scores + bound < least[None, :]) | (heads >= HEADS)[None, :]
        keep = tl.min(far.to(tl.int32), axis=1) == 0
        tl.store(mark_ptr + (shared + tile) * GROUP + token_offsets, keep.to(tl.uint8), mask=own_inside)
        if TAIL:
            weights = tl.exp2((scores - seed[None, :]) * (scale * LOG2E))
            weights = tl.where((keep | ~own_inside)[:, None], 0.0, weights)
            by_group = tl.sum(tl.reshape(weights, [GROUPS, GROUP, PADDED]), axis=1)
            to_group = (shared + groups)[:, None] * PADDED + heads[None, :]
            tl.store(weight_ptr + to_group, by_group, mask=inside[:, None])


@triton.jit(do_not_specialize=["num_reqs", "total_groups", "total_listed"])
def compact_kernel(
    lens_ptr, mark_ptr, list_ptr, count_ptr, num_reqs, total_groups, total_listed,
    GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr, GROUPS: tl.constexpr,
    REQS: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The marked tokens of every split as a list. Grid: (splits, KV heads, requests).

    count: tokens listed by a split; minus one where its room, ``ROOM`` tokens a group, was too small, or where there is
    no scratch for the request: all tokens of the split then count.
    """
    split, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    splits = tl.num_programs(0)
    share = tl.cdiv(tl.cdiv((end - start) // GROUP, GROUPS), splits) * GROUPS
    first = start + split * share * GROUP
    last = tl.minimum(first + share * GROUP, end)
    counted = count_ptr + (request.to(tl.int64) * tl.num_programs(1) + head) * splits + split
    if first >= last:
        tl.store(counted, 0)
        return
    place = first_group(lens_ptr, request, num_reqs, splits * GROUPS, REQS, GROUP)
    if place + tl.cdiv(seq_len, GROUP) + splits * GROUPS > total_groups:
        tl.store(counted, -1)
        return
    marks = mark_ptr + (head * total_groups + place) * GROUP
    listed = list_ptr + head.to(tl.int64) * total_listed + (place + split * share) * ROOM
    capacity = share * ROOM
    count = 0
    for tile in range(first, last, TILE):
        tokens = tile + tl.arange(0, TILE)
        kept = tl.load(marks + tokens, mask=tokens < last, other=0).to(tl.int32)
        to = count + tl.cumsum(kept, axis=0) - kept
        tl.store(listed + to, tokens, mask=(kept > 0) & (to < capacity))
        count += tl.sum(kept, axis=0)
    tl.store(counted, tl.where(count > capacity, -1, count))

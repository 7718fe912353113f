"""Reads the 4-bit index of the body, lists the tokens that may be in the DIPR set, and estimates all others.

A token is listed when, for some head of the group, the estimate of its product plus the error bound reaches the
greatest product known so far (a lower bound: from the window, and from estimates minus the bound) minus beta. So the
list holds the DIPR set of arXiv 2504.10326 whatever the keys are. Tokens that are not listed add their estimated
weights, times the mean value of their group, to a partial softmax: no token counts twice, whatever the threshold was
when it passed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import INTERPRETED, LOG2E, body_of, dot

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
def _head_of(column, PADDED: tl.constexpr):
    """The head in a column of a product, 16 columns wide; ``PADDED`` where there is none. See ``_compact``."""
    if PADDED == 4:
        return tl.where((column < 8) & (column % 2 == 0), column // 2, 4)
    elif PADDED == 8:
        return tl.where(column < 8, column, 8)
    else:
        return column


@triton.jit
def _compact(product, PADDED: tl.constexpr):
    """Drop the columns without a head, which are zero: ``[rows, 16]`` -> ``[rows, PADDED]``, each thread its own."""
    rows: tl.constexpr = product.shape[0]
    if PADDED == 4:
        return tl.sum(tl.sum(tl.reshape(product, [rows, 2, 4, 2]), axis=3), axis=1)
    elif PADDED == 8:
        return tl.sum(tl.reshape(product, [rows, 2, 8]), axis=1)
    else:
        return product


@triton.jit
def _widen(values, PADDED: tl.constexpr):
    """``_compact`` undone, copies of heads in the columns without one: ``[rows, PADDED]`` -> ``[rows, 16]``."""
    rows: tl.constexpr = values.shape[0]
    if PADDED == 4:
        return tl.reshape(tl.broadcast_to(values[:, None, :, None], [rows, 2, 4, 2]), [rows, 16])
    elif PADDED == 8:
        return tl.reshape(tl.broadcast_to(values[:, None, :], [rows, 2, 8]), [rows, 16])
    else:
        return values


@triton.jit
def _load_quarter(
    query_ptr, HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr,
    QUARTER: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """One quarter of the queries of a group ``[2 * WORDS, 16]``."""
    channels = _channel(tl.arange(0, 2 * WORDS), WORDS)
    head = _head_of(tl.arange(0, 16), PADDED)
    there = (channels < HEAD_SIZE // 4)[:, None] & (head < HEADS)[None, :]
    place = head[None, :] * HEAD_SIZE + QUARTER * (HEAD_SIZE // 4) + channels[:, None]
    return tl.load(query_ptr + place, mask=there, other=0.0).to(NUMBER)


@triton.jit
def _quarter(
    words, query, origin_ptr, step_ptr, in_origin, in_step, inside, scores, base, bound,
    HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr, QUARTER: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Add one quarter of the channels to estimates ``[tokens, 16]``, and per group to their common part and bound.

    Estimates are q.(64 + code) step; the common part is q.origin, the bound |q|.step.
    """
    channels = _channel(tl.arange(0, 2 * WORDS), WORDS)
    there = channels < HEAD_SIZE // 4
    fours = tl.arange(0, WORDS // 2)
    mask = inside[:, None] & (fours < HEAD_SIZE // 16)[None, :]
    raw = tl.load(step_ptr + in_step[:, None] + QUARTER * (HEAD_SIZE // 16) + fours[None, :], mask=mask, other=0)
    step = _steps(raw)
    place = QUARTER * (HEAD_SIZE // 4) + channels
    origin = tl.load(origin_ptr + in_origin[:, None] + place[None, :], mask=inside[:, None] & there[None, :], other=0.0)
    keys = _codes(words, QUARTER) * _by_token(step, GROUP)
    scores = dot(keys.to(NUMBER), query, scores)
    base = dot(origin.to(NUMBER), query, base)
    bound = dot(step.to(NUMBER), tl.abs(query), bound)
    return scores, base, bound


@triton.jit
def scan_kernel(
    query_ptr, words_ptr, origin_ptr, step_ptr, mean_ptr, table_ptr, lens_ptr, rows_ptr,
    partial_ptr, most_ptr, total_ptr, list_ptr, count_ptr,
    scale, beta, alpha_length, stride_qt, stride_wb, stride_wh, stride_ob, stride_oh, stride_sb, stride_sh,
    stride_table, num_partials, capacity,
    HEADS: tl.constexpr, PADDED: tl.constexpr, HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    GROUPS: tl.constexpr, SPLITS: tl.constexpr, WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr,
    TAIL: tl.constexpr, BY_LENGTH: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Grid: (SPLITS, KV heads, requests). Partial ``WINDOW_TILES + split`` is the estimate of what is not listed.

    count: tokens listed by a split; minus one where they were more than ``capacity``: all of the split then count.
    """
    split, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    # ---- which groups are ours
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    num_groups = (end - start) // GROUP
    share = tl.cdiv(tl.cdiv(num_groups, GROUPS), SPLITS) * GROUPS
    first = start // GROUP + split * share
    last = tl.minimum(first + share, end // GROUP)
    pair = request.to(tl.int64) * tl.num_programs(1) + head
    heads = tl.arange(0, PADDED)
    real = heads < HEADS
    if first >= last:
        tl.store(count_ptr + pair * SPLITS + split, 0)
        empty = pair * HEADS * num_partials + WINDOW_TILES + split + heads * num_partials
        tl.store(total_ptr + empty, tl.zeros([PADDED], tl.float32), mask=real)
        return
    # ---- what the window found
    row = tl.load(rows_ptr + request).to(tl.int64)
    query = query_ptr + row * stride_qt + head * HEADS * HEAD_SIZE
    query0 = _load_quarter(query, HEADS, PADDED, HEAD_SIZE, WORDS, 0, NUMBER)
    query1 = _load_quarter(query, HEADS, PADDED, HEAD_SIZE, WORDS, 1, NUMBER)
    query2 = _load_quarter(query, HEADS, PADDED, HEAD_SIZE, WORDS, 2, NUMBER)
    query3 = _load_quarter(query, HEADS, PADDED, HEAD_SIZE, WORDS, 3, NUMBER)
    tiles = tl.arange(0, WINDOW_PADDED)
    seen = most_ptr + pair * HEADS * num_partials + heads[:, None] * num_partials + tiles[None, :]
    known = tl.load(seen, mask=real[:, None] & (tiles[None, :] < WINDOW_TILES), other=float("-inf"))
    greatest = tl.where(real, tl.max(known, axis=1), 0.0)
    if BY_LENGTH:
        beta = tl.maximum(tl.log(seq_len.to(tl.float32) / alpha_length), 0.0) / scale
    # ---- tile by tile
    total = tl.zeros([PADDED], tl.float32)
    summed = tl.zeros([16, CHANNELS], tl.float32)
    count = 0
    group_offsets, channels, word_offsets = tl.arange(0, GROUPS), tl.arange(0, CHANNELS), tl.arange(0, WORDS)
    token_offsets = tl.arange(0, GROUPS * GROUP)
    table = table_ptr + request.to(tl.int64) * stride_table
    per_block: tl.constexpr = BLOCK_SIZE // GROUP
    half: tl.constexpr = HEAD_SIZE // 8
    listed = list_ptr + (pair * SPLITS + split) * capacity
    for tile in range(first, last, GROUPS):
        groups = tile + group_offsets
        inside = groups < last
        blocks = tl.load(table + groups // per_block, mask=inside, other=0).to(tl.int64)
        within = groups % per_block
        in_origin = blocks * stride_ob + head * stride_oh + within * HEAD_SIZE
        in_step = blocks * stride_sb + head * stride_sh + within * (HEAD_SIZE // 4)
        own = tile + token_offsets // GROUP
        own_blocks = tl.load(table + own // per_block, mask=own < last, other=0).to(tl.int64)
        in_words = own_blocks * stride_wb + head * stride_wh
        in_words += ((own % per_block) * GROUP + token_offsets % GROUP) * half
        words = tl.load(
            words_ptr + in_words[:, None] + word_offsets[None, :], mask=(word_offsets < half)[None, :], other=0
        )
        scores = tl.zeros([GROUPS * GROUP, 16], tl.float32)
        base = tl.zeros([GROUPS, 16], tl.float32)
        bound = tl.zeros([GROUPS, 16], tl.float32)
        scores, base, bound = _quarter(
            words, query0, origin_ptr, step_ptr, in_origin, in_step, inside, scores, base, bound,
            HEAD_SIZE, WORDS, GROUP, 0, NUMBER,
        )  # fmt: skip
        scores, base, bound = _quarter(
            words, query1, origin_ptr, step_ptr, in_origin, in_step, inside, scores, base, bound,
            HEAD_SIZE, WORDS, GROUP, 1, NUMBER,
        )  # fmt: skip
        scores, base, bound = _quarter(
            words, query2, origin_ptr, step_ptr, in_origin, in_step, inside, scores, base, bound,
            HEAD_SIZE, WORDS, GROUP, 2, NUMBER,
        )  # fmt: skip
        scores, base, bound = _quarter(
            words, query3, origin_ptr, step_ptr, in_origin, in_step, inside, scores, base, bound,
            HEAD_SIZE, WORDS, GROUP, 3, NUMBER,
        )  # fmt: skip
        # ---- by group: a group whose keys fit no code has NaN, and all of its tokens are listed
        base, scores = _compact(base, PADDED), _compact(scores, PADDED)
        bound = _compact(bound, PADDED) * 0.503 + 1e-3  # 0.5 * codec.SLACK, and what is lost between code + 64 and 64
        good = (base == base) & inside[:, None]
        base = tl.where(good, base, 0.0)
        best = tl.max(tl.reshape(scores, [GROUPS, GROUP, PADDED]), axis=1) + base
        before = greatest
        greatest = tl.maximum(greatest, tl.max(tl.where(good, best - bound, float("-inf")), axis=0))
        need = tl.where(good, base + bound - (greatest[None, :] - beta), float("inf"))
        need = tl.where(inside[:, None] & real[None, :], need, float("-inf"))
        # ---- by token
        keep = tl.max(scores + _by_token(need, GROUP), axis=1) >= 0
        ones = keep.to(tl.int32)
        place = count + tl.cumsum(ones, axis=0) - ones
        tl.store(listed + place, tile * GROUP + token_offsets, mask=keep & (place < capacity))
        count += tl.sum(ones, axis=0)
        if TAIL:
            factor = scale * LOG2E
            below = tl.where(inside[:, None], (base - greatest[None, :]) * factor, float("-inf"))
            weights = tl.exp2(scores * factor + _by_token(below, GROUP))
            weights = tl.where(keep[:, None], 0.0, weights)
            by_group = tl.sum(tl.reshape(weights, [GROUPS, GROUP, PADDED]), axis=1)
            fade = tl.exp2((before - greatest) * factor)
            total = total * fade + tl.sum(by_group, axis=0)
            in_mean = mean_ptr + in_origin[:, None] + channels[None, :]
            means = tl.load(in_mean, mask=inside[:, None] & (channels[None, :] < HEAD_SIZE), other=0.0)
            number = tl.float32 if tl.float32 == NUMBER else tl.bfloat16
            fade = tl.reshape(_widen(fade[None, :], PADDED), [16])
            weights = tl.trans(_widen(by_group, PADDED)).to(number)
            summed = dot(weights, means.to(number), summed * fade[:, None])
    full = count > capacity
    tl.store(count_ptr + pair * SPLITS + split, tl.where(full, -1, count))
    if full:
        total = tl.zeros([PADDED], tl.float32)
    where = pair * HEADS * num_partials + WINDOW_TILES + split
    tl.store(most_ptr + where + heads * num_partials, greatest, mask=real)
    tl.store(total_ptr + where + heads * num_partials, total, mask=real)
    columns = _head_of(tl.arange(0, 16), PADDED)
    place = (where + columns * num_partials)[:, None] * CHANNELS + channels[None, :]
    tl.store(partial_ptr + place, summed, mask=(columns < HEADS)[:, None])

"""Reads the 4-bit codes of the body, marks the tokens that may be in the DIPR set, and weighs all others.

A token is marked when, for some head of the group, the estimate of its score plus the error bound reaches the
greatest score of the window minus beta. No score of the window is above the greatest of all, so the marks hold the
DIPR set of arXiv 2504.10326 whatever the keys are. Tokens that are not marked leave their estimated weights, summed by
group. Lists are made of the marks afterwards (``compact_kernel``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_relational.sparse.kernels.attend import INTERPRETED, LOG2E, body_of, dot, follow, lead, share_of
from vllm_relational.sparse.kernels.columns import compact, first_group, has_scratch, head_of, load_seed

# A program is one warp: nothing is passed between warps, and while one waits for its codes others of the card work. It
# goes from group to group: the steps of a group multiply its queries, not its codes, which are 64 times as many.

# The K axis of a product with one quarter of the head is ordered so that a thread of the tensor cores' layout holds
# what lies together in memory. Axis k is (slice of 16, lane, half, neighbour); word w of a token is (lane, slice, half)
# and holds both neighbours; word u of the steps is (lane, slice) and holds (half, neighbour).


@triton.jit
def _channel(k, WORDS: tl.constexpr):
    """The channel within its quarter that stands at place ``k``."""
    slice16, lane, half, neighbour = k // 16, k // 4 % 4, k // 2 % 2, k % 2
    return 2 * (lane * (WORDS // 4) + 2 * slice16 + half) + neighbour


@triton.jit
def _codes(words, QUARTER: tl.constexpr):
    """The codes of one quarter as float16: words ``[tokens, WORDS]`` -> ``[tokens, 2 * WORDS]``.

    Masked, a pair of codes is a pair of float16, without a conversion: 2 ** -24 times the code where it stands in bits
    0 to 3, 2 ** -20 times where in bits 4 to 7. ``_load_quarter`` makes up for that.
    """
    moved = words >> 8 if QUARTER >= 2 else words
    both = moved & (0x000F000F if QUARTER % 2 == 0 else 0x00F000F0)
    if INTERPRETED:
        first = (both & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
        second = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        first, second = tl.inline_asm_elementwise(
            "mov.b32 {$0, $1}, $2;", "=h,=h,r", [both], dtype=(tl.float16, tl.float16), is_pure=True, pack=1
        )
    tokens: tl.constexpr = words.shape[0]
    slices: tl.constexpr = words.shape[1] // 8
    pairs = tl.reshape(tl.join(first, second), [tokens, 4, slices, 2, 2])
    return tl.reshape(tl.permute(pairs, (0, 2, 1, 3, 4)), [tokens, slices * 16])


@triton.jit
def _key_scales(words):
    """Steps of one quarter as float16: words ``[n]`` of four bytes -> ``[4 * n]``."""
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
    slices: tl.constexpr = words.shape[0] // 4
    both = tl.join(tl.join(first, second), tl.join(third, fourth))  # [words, neighbour, half]
    return tl.reshape(tl.permute(tl.reshape(both, [4, slices, 2, 2]), (1, 0, 3, 2)), [slices * 16])


@triton.jit
def _load_quarter(
    query_ptr, HEADS: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, HEAD_SIZE: tl.constexpr,
    WORDS: tl.constexpr, QUARTER: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """One quarter of the queries of a group ``[2 * WORDS, COLUMNS]``, 2 ** -20 the size of what the codes ask for."""
    channels = _channel(tl.arange(0, 2 * WORDS), WORDS)
    head = head_of(tl.arange(0, COLUMNS), PADDED)
    there = (channels < HEAD_SIZE // 4)[:, None] & (head < HEADS)[None, :]
    place = head[None, :] * HEAD_SIZE + QUARTER * (HEAD_SIZE // 4) + channels[:, None]
    return tl.load(query_ptr + place, mask=there, other=0.0).to(NUMBER) * (16 if QUARTER % 2 == 0 else 1)


@triton.jit
def _quarter(
    words, query, from_scale, scores,
    HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr, QUARTER: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Add one quarter of the channels to 2 ** -20 q.code step ``[tokens, COLUMNS]``."""
    fours = tl.arange(0, WORDS // 2)
    raw = tl.load(from_scale + QUARTER * (HEAD_SIZE // 16) + fours, mask=fours < HEAD_SIZE // 16, other=0)
    return dot(_codes(words, QUARTER).to(NUMBER), query * _key_scales(raw).to(NUMBER)[:, None], scores)


@triton.jit(do_not_specialize=["num_reqs", "total_groups", "spare"])
def scan_kernel(
    query_ptr, words_ptr, key_scale_ptr, table_ptr, lens_ptr, rows_ptr, m_ptr, base_ptr, bound_ptr, weight_ptr,
    mark_ptr, scale, beta, alpha_length, num_reqs, stride_qt, stride_wb, stride_wh, stride_sb, stride_sh, stride_table,
    total_groups, spare,
    HEADS: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr,
    WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr, REQS: tl.constexpr, STAGES: tl.constexpr,
    MARKS: tl.constexpr, TAIL: tl.constexpr, BY_LENGTH: tl.constexpr, NUMBER: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Grid: (programs, KV heads, requests). A request without scratch has no marks: see ``compact_kernel``.

    mark: bits of int32 ``[num_kv_heads, total_groups, MARKS]``, the first token of a word lowest.
    """
    program, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    follow(CHAINED)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    # ---- which groups are ours
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    _, first, last = share_of(program, tl.num_programs(0), start, end, GROUP)
    pair = request.to(tl.int64) * tl.num_programs(1) + head
    if first >= last:
        return
    place = first_group(lens_ptr, request, num_reqs, spare, REQS, GROUP)
    if not has_scratch(place, seq_len, spare, total_groups, GROUP):
        return
    # ---- the queries by quarters, and what the window found
    row = tl.load(rows_ptr + request).to(tl.int64)
    query = query_ptr + row * stride_qt + head * HEADS * HEAD_SIZE
    query0 = _load_quarter(query, HEADS, PADDED, COLUMNS, HEAD_SIZE, WORDS, 0, NUMBER)
    query1 = _load_quarter(query, HEADS, PADDED, COLUMNS, HEAD_SIZE, WORDS, 1, NUMBER)
    query2 = _load_quarter(query, HEADS, PADDED, COLUMNS, HEAD_SIZE, WORDS, 2, NUMBER)
    query3 = _load_quarter(query, HEADS, PADDED, COLUMNS, HEAD_SIZE, WORDS, 3, NUMBER)
    heads = tl.arange(0, PADDED)
    seed = load_seed(m_ptr, pair, HEADS, PADDED, WINDOW_TILES, WINDOW_PADDED)
    if BY_LENGTH:
        beta = tl.maximum(tl.log(seq_len.to(tl.float32) / alpha_length), 0.0) / scale
    least = tl.where(heads < HEADS, seed - beta, float("inf"))
    # ---- group by group
    columns, tokens = tl.arange(0, WORDS), tl.arange(0, GROUP)
    table = table_ptr + request.to(tl.int64) * stride_table
    per_block: tl.constexpr = BLOCK_SIZE // GROUP
    shared = head.to(tl.int64) * total_groups + place
    for group in tl.range(first, last, num_stages=STAGES):
        block = tl.load(table + group // per_block).to(tl.int64)
        from_words = words_ptr + block * stride_wb + head * stride_wh + group % per_block * GROUP * (HEAD_SIZE // 8)
        places = tokens[:, None] * (HEAD_SIZE // 8) + columns[None, :]
        words = tl.load(from_words + places, mask=(columns < HEAD_SIZE // 8)[None, :], other=0)
        from_scale = key_scale_ptr + block * stride_sb + head * stride_sh + group % per_block * (HEAD_SIZE // 4)
        scores = tl.zeros([GROUP, COLUMNS], tl.float32)
        scores = _quarter(words, query0, from_scale, scores, HEAD_SIZE, WORDS, 0, NUMBER)
        scores = _quarter(words, query1, from_scale, scores, HEAD_SIZE, WORDS, 1, NUMBER)
        scores = _quarter(words, query2, from_scale, scores, HEAD_SIZE, WORDS, 2, NUMBER)
        scores = _quarter(words, query3, from_scale, scores, HEAD_SIZE, WORDS, 3, NUMBER)
        of_group = (shared + group) * PADDED + heads
        base, bound = tl.load(base_ptr + of_group), tl.load(bound_ptr + of_group)
        scores = compact(scores, PADDED) * 1048576.0 + base[None, :]
        # Keys that fit no code have NaN: not less than anything, so they are marked. So are all that a query's products
        # with steps, beyond float16, leave without an estimate.
        far = (scores > float("-inf")) & (scores + bound[None, :] < least[None, :]) | (heads >= HEADS)[None, :]
        keep = tl.min(far.to(tl.int32), axis=1) == 0
        bits = keep.to(tl.int32) << (tokens % (GROUP // MARKS))
        for word in tl.static_range(MARKS):
            ours = tl.where(tokens // (GROUP // MARKS) == word, bits, 0)
            tl.store(mark_ptr + (shared + group) * MARKS + word, tl.sum(ours, axis=0))
        if TAIL:
            weights = tl.exp2((scores - seed[None, :]) * (scale * LOG2E))
            tl.store(weight_ptr + of_group, tl.sum(tl.where(keep[:, None], 0.0, weights), axis=0))
    lead(CHAINED)


@triton.jit
def _ones(bits):
    """How many bits are set, of uint32."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits += bits >> 8
    return ((bits + (bits >> 16)) & 0x3F).to(tl.int32)


@triton.jit(do_not_specialize=["num_reqs", "total_groups", "total_listed"])
def compact_kernel(
    lens_ptr, mark_ptr, list_ptr, count_ptr, num_reqs, total_groups, total_listed,
    GROUP: tl.constexpr, MARKS: tl.constexpr, SINKS: tl.constexpr, RECENT: tl.constexpr, REQS: tl.constexpr,
    ROOM: tl.constexpr, TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The marked tokens of every part of a body as a list. Grid: (lists, KV heads, requests).

    count: tokens listed; minus one where its room, ``ROOM`` tokens a group, was too small, or where there is no scratch
    for the request: all tokens of the part then count.
    """
    part, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    follow(CHAINED)
    seq_len = tl.load(lens_ptr + request)
    if seq_len == 0:
        return
    start, end = body_of(seq_len, SINKS, RECENT, GROUP)
    parts = tl.num_programs(0)
    share, first, last = share_of(part, parts, start, end, GROUP)
    counted = count_ptr + (request.to(tl.int64) * tl.num_programs(1) + head) * parts + part
    if first >= last:
        tl.store(counted, 0)
        return
    place = first_group(lens_ptr, request, num_reqs, parts, REQS, GROUP)
    if not has_scratch(place, seq_len, parts, total_groups, GROUP):
        tl.store(counted, -1)
        return
    a_word: tl.constexpr = GROUP // MARKS
    marks = mark_ptr + (head.to(tl.int64) * total_groups + place) * MARKS
    listed = list_ptr + head.to(tl.int64) * total_listed + (place + part * share) * ROOM
    capacity = share * ROOM
    count = 0
    for tile in range(first * MARKS, last * MARKS, TILE):
        words = tile + tl.arange(0, TILE)
        bits = tl.load(marks + words, mask=words < last * MARKS, other=0).to(tl.uint32, bitcast=True)
        found = _ones(bits)
        to = count + tl.cumsum(found, axis=0) - found
        count += tl.sum(found, axis=0)
        most = tl.max(found, axis=0)
        for _ in range(most):  # the lowest token of every word, then the next: few words have many
            lowest = bits & (~bits + 1)
            token = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127  # log2
            tl.store(listed + to, words * a_word + token, mask=(bits != 0) & (to < capacity))
            to += 1
            bits ^= lowest
    tl.store(counted, tl.where(count > capacity, -1, count))
    lead(CHAINED)

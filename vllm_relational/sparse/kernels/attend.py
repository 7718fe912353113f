"""Exact attention of one tile of tokens, online over tiles: the piece that window, gather and v_skip share."""

from __future__ import annotations

import os

import triton
import triton.language as tl
from triton.language.extra import cuda

LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def follow(CHAINED: tl.constexpr):
    """Wait for the kernel before, where ours was started before its end: see ``lead``."""
    if CHAINED:
        cuda.gdc_wait()


@triton.jit
def lead(CHAINED: tl.constexpr):
    """Let the kernel behind start, now that little is left to do; it waits for our end, but is on its way then. It
    starts when all our programs have come by or ended."""
    if CHAINED:
        cuda.gdc_launch_dependents()


@triton.jit
def dot(left, right, added):
    """``added + left @ right`` in float32; the interpreter multiplies bfloat16 as whole numbers, so not there."""
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, added, input_precision="ieee")


@triton.jit
def load_queries(query_ptr, row, head, stride_qt, HEADS: tl.constexpr, PADDED: tl.constexpr,
                 HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """The queries of a KV head's group ``[PADDED heads, CHANNELS]``; zero where there is none."""
    heads, channels = tl.arange(0, PADDED), tl.arange(0, CHANNELS)
    place = row.to(tl.int64) * stride_qt + (head * HEADS + heads[:, None]) * HEAD_SIZE + channels[None, :]
    return tl.load(query_ptr + place, mask=(heads[:, None] < HEADS) & (channels[None, :] < HEAD_SIZE), other=0.0)


@triton.jit
def token_rows(key_ptr, table_ptr, tokens, there, head, stride_kb, stride_kh, stride_kt, BLOCK_SIZE: tl.constexpr):
    """Where the keys of tokens of a request lie: pointers ``[tokens]``; values lie one head size behind."""
    blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
    return key_ptr + blocks * stride_kb + head.to(tl.int64) * stride_kh + (tokens % BLOCK_SIZE) * stride_kt


@triton.jit
def load_rows(rows, there, HEAD_SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Keys or values ``[tokens, CHANNELS]``; zero where there is no token."""
    channels = tl.arange(0, CHANNELS)
    inside = channels < HEAD_SIZE
    return tl.load(rows[:, None] + channels[None, :], mask=there[:, None] & inside[None, :], other=0.0)


@triton.jit
def scores_of(queries, keys, there):
    """Unscaled ``q.k``: float32 ``[PADDED heads, tokens]``, minus infinity where there is no token."""
    found = dot(queries, tl.trans(keys), tl.zeros([queries.shape[0], keys.shape[0]], tl.float32))
    return tl.where(there[None, :], found, float("-inf"))


@triton.jit
def accumulate(scores, values, m, l, acc, scale):
    """Add tokens with given scores to a softmax under way: its greatest score, denominator and numerator."""
    new_m = tl.maximum(m, tl.max(scores, axis=1))
    base = tl.where(new_m == float("-inf"), 0.0, new_m)  # no token so far
    weights = tl.exp2((scores - base[:, None]) * (scale * LOG2E))
    rescale = tl.exp2((m - base) * (scale * LOG2E))
    l = l * rescale + tl.sum(weights, axis=1)
    return new_m, l, dot(weights.to(values.dtype), values, acc * rescale[:, None])


@triton.jit
def store_partial(
    acc_ptr, m_ptr, l_ptr, place, num_partials, m, l, acc,
    HEADS: tl.constexpr, PADDED: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Keep a softmax under way for ``merge``: at ``place``, int64, for the first head of a group; each further one has
    its own ``num_partials`` behind.
    """
    heads, channels = tl.arange(0, PADDED), tl.arange(0, CHANNELS)
    real = heads < HEADS
    where = place + heads * num_partials
    tl.store(m_ptr + where, m, mask=real)
    tl.store(l_ptr + where, l, mask=real)
    tl.store(acc_ptr + where[:, None] * CHANNELS + channels[None, :], acc, mask=real[:, None])


@triton.jit
def share_of(part, parts, start, end, GROUP: tl.constexpr):
    """How many groups each of ``parts`` of a body has at most, and a part's first one and the one behind its last."""
    share = tl.cdiv((end - start) // GROUP, parts)
    first = start // GROUP + part * share
    return share, first, tl.minimum(first + share, end // GROUP)


@triton.jit
def body_of(seq_len, SINKS: tl.constexpr, RECENT: tl.constexpr, GROUP: tl.constexpr):
    """``naive.Window.body``: first token and the one behind the last; SINKS is a multiple of the group."""
    end = tl.maximum(seq_len - RECENT, 0) // GROUP * GROUP
    return SINKS, tl.maximum(end, SINKS)

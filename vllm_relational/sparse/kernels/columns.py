"""Heads in the columns of a product: tensor cores make 8 or 16 columns, a KV head's group may have fewer queries.

With up to 4 heads a thread holds every second column, so heads stand in even ones (``PADDED`` is 4); with up to 8 they
stand in the first 8 columns (8). ``compact`` drops empty columns within each thread, so that what follows is not done
for nobody.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_of(column, PADDED: tl.constexpr):
    """The head in a column; ``PADDED`` where there is none."""
    if PADDED == 4:
        return tl.where((column < 8) & (column % 2 == 0), column // 2, 4)
    elif PADDED == 8:
        return tl.where(column < 8, column, 8)
    else:
        return column


@triton.jit
def compact(product, PADDED: tl.constexpr):
    """``[rows, 8 or 16]``, zero in the columns without a head -> ``[rows, PADDED]``."""
    rows: tl.constexpr = product.shape[0]
    eights: tl.constexpr = product.shape[1] // 8
    if PADDED == 4:
        return tl.sum(tl.sum(tl.reshape(product, [rows, eights, 4, 2]), axis=3), axis=1)
    elif PADDED == 8:
        return tl.sum(tl.reshape(product, [rows, eights, 8]), axis=1)
    else:
        return product


@triton.jit
def first_group(lens_ptr, request, num_reqs, spare, REQS: tl.constexpr, GROUP: tl.constexpr):
    """Where a request's groups begin in scratch that all requests share: each has ``spare`` more than it needs."""
    others = tl.arange(0, REQS)
    before = (others < request) & (others < num_reqs)
    lens = tl.load(lens_ptr + others, mask=before, other=0)
    return tl.sum(tl.where(before, tl.cdiv(lens, GROUP) + spare, 0), axis=0).to(tl.int64)


@triton.jit
def has_scratch(place, seq_len, spare, total_groups, GROUP: tl.constexpr):
    """Whether the groups of a request, from ``first_group`` on, fit in."""
    return place + tl.cdiv(seq_len, GROUP) + spare <= total_groups


@triton.jit
def load_seed(m_ptr, pair, HEADS: tl.constexpr, PADDED: tl.constexpr,
              WINDOW_TILES: tl.constexpr, WINDOW_PADDED: tl.constexpr):  # fmt: skip
    """The greatest score that the window found, for each head; 0 where there is none."""
    heads, tiles = tl.arange(0, PADDED), tl.arange(0, WINDOW_PADDED)
    seen = m_ptr + (pair * HEADS + heads[:, None]) * WINDOW_TILES + tiles[None, :]
    there = (heads[:, None] < HEADS) & (tiles[None, :] < WINDOW_TILES)
    known = tl.max(tl.load(seen, mask=there, other=float("-inf")), axis=1)
    return tl.where(heads < HEADS, known, 0.0)

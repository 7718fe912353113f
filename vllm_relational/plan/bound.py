"""The most that a prefix cache without limit can serve of a batch, whatever the order of its rows and fields.

Seen as token ids, a prompt is a header, the segments of its cells in some order, and a tail. No segment begins with
another one whole (each is one line of text with its line break at the end), so whatever two prompts begin with in
common ends at the same segment of both: whole segments, then the beginning of one in which they differ. So of a row

- some leading segments are served whole, the others are not: call those N(row);
- one segment b of N(row) at most is served in part, as far as it begins like another value: L(b) tokens at most.

What must be computed of the cells is therefore the sum over rows of the lengths in N(row), less one L(b) a row. Every
distinct value is in N of the first row that has it. A segment that is in N once more costs its length again and gives
back no more than L(b), which is less: leaving it out computes less. So

    computed >= sum over distinct values of their lengths - sum over rows of L(b),   b a value that is new in its row.

The last sum chooses at most one value a row and each value at most once, and it is at most the least of

1. for each row the greatest L of its values that occur once, and L of all values that occur more often;
2. the greatest L, as many as there are rows;
3. the tokens that the distinct values share as a prefix tree of their own: inserted one after the other, in whatever
   order they are computed first, they find no more than that.

Where values are equal or differ in their first token the bound is that of whole cells: every token of a cell that
occurred before in its column. Headers are served in all rows but the first; tails of rows that differ are not. What
was asked before with the same header counts as served, and as something that values may begin like.

KV blocks, limits of the cache and constraints on the order only make less of it. Time: that of sorting the distinct
values, which ``PlanInput.overlaps`` has done already, and one pass over the codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vllm_relational import native
from vllm_relational.records import PromptSegments, TokenSegments, ValueOverlaps


@dataclass(frozen=True)
class Earlier:
    """Prompts that were asked before.

    known: by column of the batch at hand the codes whose segments those prompts hold; empty where their header is
           another, since nothing behind it can be found.
    """

    segments: PromptSegments
    known: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class _Alike:
    """How the distinct values of a batch begin alike.

    like:    by column int64 ``[num_values]``: L, the most tokens that a value begins with like another one.
    own:     by column, bool: whether the tokens are nobody else's; of equal ones the first in sorted order has them.
    tail:    L of the tail.
    in_tree: tokens that the values share as a prefix tree; None where that is not known.
    aligned: whether no value begins with another one whole.
    """

    like: tuple[np.ndarray, ...]
    own: tuple[np.ndarray, ...]
    tail: int
    in_tree: int | None
    aligned: bool


def max_served(
    segments: PromptSegments,
    codes: np.ndarray,
    overlaps: Sequence[ValueOverlaps] = (),
    earlier: Sequence[Earlier] = (),
) -> tuple[int, int]:
    """Tokens that can be served at most, and the tokens of all prompts.

    codes:    int32 ``[num_columns, num_rows]``, rows that differ; overlaps: of ``segments.cells``, if known.
    The last token of a prompt is always computed. Values that no row of the batch has do not count.
    """
    segments, codes, overlaps, earlier = _used_only(segments, codes, overlaps, earlier)
    num_rows, header, tail = codes.shape[1], len(segments.header), len(segments.tail)
    total = num_rows * (header + tail) + sum(map(_total, segments.cells, codes))
    if not num_rows:
        return 0, 0
    same = [asked for asked in earlier if np.array_equal(asked.segments.header, segments.header)]
    used = [np.bincount(codes[i], minlength=len(cells.lengths)) for i, cells in enumerate(segments.cells)]
    alike = _alike(segments, overlaps, same)
    if not alike.aligned or _is_ambiguous(segments.header, earlier):
        longest = 0 if earlier else header + tail + int(_row_tokens(segments, codes).max())
        return total - max(longest, num_rows), total
    fresh = [(count > 0) & own for count, own in zip(used, alike.own, strict=True)]
    for asked in same:
        for mask, known in zip(fresh, asked.known, strict=True):
            mask[known] = False
    computed = sum(int(cells.lengths[mask].sum()) for cells, mask in zip(segments.cells, fresh, strict=True))
    tails = num_rows * tail if all(own.all() for own in alike.own) else 0  # with equal values, rows may be equal too
    computed += tails - _begun(codes, used, fresh, alike)
    computed += header - max((_common(asked.segments.header, segments.header) for asked in earlier), default=0)
    return min(total - computed, total - num_rows), total


def _used_only(
    segments: PromptSegments, codes: np.ndarray, overlaps: Sequence[ValueOverlaps], earlier: Sequence[Earlier]
) -> tuple[PromptSegments, np.ndarray, Sequence[ValueOverlaps], Sequence[Earlier]]:
    """The same batch without the values that it does not have: of a part of a table, or where rows are answered."""
    used = [
        np.bincount(column, minlength=len(cells.lengths)) > 0
        for column, cells in zip(codes, segments.cells, strict=True)
    ]
    if all(mask.all() for mask in used):
        return segments, codes, overlaps, earlier
    number = [np.cumsum(mask) - 1 for mask in used]
    cells = tuple(map(_cells_of, segments.cells, used))
    return (
        dataclasses.replace(segments, cells=cells),
        np.array([of[column] for of, column in zip(number, codes, strict=True)], np.int32).reshape(codes.shape),
        tuple(map(_overlaps_of, overlaps, used)),
        [_known_of(asked, used, number) for asked in earlier],
    )


def _cells_of(cells: TokenSegments, used: np.ndarray) -> TokenSegments:
    offsets = np.append(0, np.cumsum(cells.lengths[used])).astype(np.int64)
    return TokenSegments(cells.tokens[np.repeat(used, cells.lengths)], offsets)


def _overlaps_of(values: ValueOverlaps, used: np.ndarray) -> ValueOverlaps:
    """Neighbours in sorted order share the least that is shared between them."""
    kept = np.sort(values.rank[used])
    if not len(kept):
        return ValueOverlaps(np.empty(0, np.int32), np.empty(0, values.shared.dtype))
    between = np.minimum.reduceat(values.shared[: kept[-1] + 1], np.append(0, kept[:-1] + 1))
    between[0] = 0
    return ValueOverlaps(np.searchsorted(kept, values.rank[used]).astype(np.int32), between)


def _known_of(asked: Earlier, used: Sequence[np.ndarray], number: Sequence[np.ndarray]) -> Earlier:
    columns = zip(asked.known, used, number, strict=True)
    return Earlier(asked.segments, tuple(of[known[mask[known]]] for known, mask, of in columns))


def _is_ambiguous(header: np.ndarray, earlier: Sequence[Earlier]) -> bool:
    """Whether one header begins with another, so that cells may agree with what is not aligned with them."""
    headers = [asked.segments.header for asked in earlier]
    return any(_common(one, header) == min(len(one), len(header)) and len(one) != len(header) for one in headers)


def _total(cells: TokenSegments, codes: np.ndarray) -> int:
    return int(cells.lengths[codes].sum())


def _row_tokens(segments: PromptSegments, codes: np.ndarray) -> np.ndarray:
    """int64 ``[num_rows]``: the tokens of the cells of each row."""
    tokens = np.zeros(codes.shape[1], np.int64)
    for cells, column in zip(segments.cells, codes, strict=True):
        tokens += cells.lengths[column]
    return tokens


def _begun(codes: np.ndarray, used: Sequence[np.ndarray], fresh: Sequence[np.ndarray], alike: _Alike) -> int:
    """At most so many tokens are served of segments that are not served whole: the least of the three sums above."""
    num_rows = codes.shape[1]
    of_row = np.full(num_rows, alike.tail, np.int64)
    repeated = 0
    for column, count, mask, like in zip(codes, used, fresh, alike.like, strict=True):
        once = np.where(mask & (count == 1), like, 0)
        np.maximum(of_row, once[column], out=of_row)
        repeated += int(like[mask & (count > 1)].sum())
    values = np.concatenate(
        [np.full(num_rows, alike.tail), *(like[mask] for like, mask in zip(alike.like, fresh, strict=True))]
    )
    greatest = int(np.partition(values, len(values) - num_rows)[len(values) - num_rows :].sum())
    least = min(int(of_row.sum()) + repeated, greatest)
    return least if alike.in_tree is None else min(least, alike.in_tree + num_rows * alike.tail)


# ------------------------------------------------------------------------------------- which values begin alike
def _alike(segments: PromptSegments, overlaps: Sequence[ValueOverlaps], earlier: Sequence[Earlier]) -> _Alike:
    found = None if earlier else _by_column(segments.cells, overlaps or [_sorted(column) for column in segments.cells])
    return found or _all_together(segments, earlier)


def _by_column(cells: Sequence[TokenSegments], overlaps: Sequence[ValueOverlaps]) -> _Alike | None:
    """From the sorted values of each column; None unless their names tell all segments of two columns apart."""
    stems = _joined([_stem(column, values) for column, values in zip(cells, overlaps, strict=True)])
    of_stems = _sorted(stems)
    if not (_is_aligned(stems, of_stems) and _own(stems, of_stems).all()):
        return None
    columns = list(zip(cells, overlaps, _like(of_stems).tolist(), strict=True))
    like = tuple(np.maximum(_like(values), across) for _, values, across in columns)
    own = tuple(_own(column, values) for column, values, _ in columns)
    in_tree = int(of_stems.shared.sum()) + sum(int(values.shared.sum()) for values in overlaps)
    return _Alike(like, own, 0, in_tree, all(_is_aligned(column, values) for column, values, _ in columns))


def _all_together(segments: PromptSegments, earlier: Sequence[Earlier]) -> _Alike:
    """From one sort of all segments; those that were asked before, and the tails behind them, are among them."""
    ours, num_columns = _joined(segments.cells), len(segments.cells)
    before = [column for asked in earlier for column in (*asked.segments.cells, _single(asked.segments.tail))]
    there = [*segments.cells, _single(segments.tail), *before] if earlier else [*segments.cells]
    together = _joined(there)
    values = _sorted(together)
    like = _split(_like(values), there)
    own = _split(_own(ours, _sorted(ours)), segments.cells)
    tail = int(like[num_columns][0]) if earlier else 0
    in_tree = None if earlier else int(values.shared.sum())
    return _Alike(tuple(like[:num_columns]), tuple(own), tail, in_tree, _is_aligned(together, values))


def _split(of_values: np.ndarray, columns: Sequence[TokenSegments]) -> list[np.ndarray]:
    return np.split(of_values, np.cumsum([len(column.lengths) for column in columns])[:-1]) if columns else []


def _like(values: ValueOverlaps) -> np.ndarray:
    """int64 ``[num_values]``: the most tokens that a value begins with like another one: a neighbour in the order."""
    found: np.ndarray = np.maximum(values.shared[values.rank], np.append(values.shared, 0)[values.rank + 1])
    return found


def _single(tokens: np.ndarray) -> TokenSegments:
    return TokenSegments(tokens, np.array([0, len(tokens)]))


def _joined(columns: Sequence[TokenSegments]) -> TokenSegments:
    tokens = np.concatenate([np.empty(0, np.int32), *(column.tokens for column in columns)])
    lengths = np.concatenate([np.empty(0, np.int64), *(column.lengths for column in columns)])
    return TokenSegments(tokens.astype(np.int32), np.append(0, np.cumsum(lengths)).astype(np.int64))


def _own(cells: TokenSegments, values: ValueOverlaps) -> np.ndarray:
    """bool ``[num_values]``: false for a value whose tokens are those of the one before it in sorted order."""
    in_order = np.empty(len(cells.lengths), np.int64)
    in_order[values.rank] = cells.lengths
    same: np.ndarray = (values.shared == in_order) & (np.append(-1, in_order[:-1]) == in_order)
    own: np.ndarray = ~same[values.rank]
    return own


def _is_aligned(cells: TokenSegments, values: ValueOverlaps) -> bool:
    """Whether no value is empty or begins with another, shorter one."""
    in_order = np.empty(len(cells.lengths), np.int64)
    in_order[values.rank] = cells.lengths
    longer = (values.shared[1:] == in_order[:-1]) & (in_order[1:] > in_order[:-1])
    return bool((in_order > 0).all() and not longer.any())


def _stem(cells: TokenSegments, values: ValueOverlaps) -> TokenSegments:
    """What all values of a column begin with; all of a single value."""
    if not len(cells.lengths):
        return _single(np.empty(0, np.int32))
    size = int(values.shared[1:].min()) if len(values.shared) > 1 else int(cells.lengths[0])
    return _single(cells.tokens[cells.offsets[0] : cells.offsets[0] + size])


def _sorted(cells: TokenSegments) -> ValueOverlaps:
    if native.AVAILABLE:
        return native.sort_values(cells.tokens, cells.offsets)
    pieces = [cells.tokens[start:end].tolist() for start, end in pairwise(cells.offsets.tolist())]
    order = sorted(range(len(pieces)), key=pieces.__getitem__)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    arrays = [np.array(pieces[value], np.int32) for value in order]
    return ValueOverlaps(rank, np.array([0, *map(_common, arrays, arrays[1:])][: len(order)], np.int64))


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Leading tokens that are equal."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size

"""What a plan is worth with a cache of limited size: the objective that ``plan/objective.py`` leaves the limit out of.

How far the policy at work is from ``belady`` tells what a better eviction could still win; how far ``belady`` is from a
cache without limit tells what only more memory, or another plan, can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vllm_relational import native
from vllm_relational.kv.policy import sort_key
from vllm_relational.records import CacheForecast, Plan, PromptBatch, PromptSegments, TokenSegments


def replay(
    segments: PromptSegments,
    codes: np.ndarray,
    plan: Plan,
    block_size: int,
    capacity_blocks: int,
    policies: Iterable[str] = ("lru", "belady"),
) -> dict[str, CacheForecast]:
    """Prompt tokens, and how many of them the cache serves, under each policy (``kv/policy.py``) by name.

    ``lru`` is stock vLLM, ``belady`` the bound of all policies. Arguments, errors and rules are those of
    ``native.simulate_prefix_cache``.
    """
    forecasts = {}
    for policy in policies:
        hits, lengths = native.simulate_prefix_cache(segments, codes, plan, block_size, capacity_blocks, policy)
        forecasts[policy] = CacheForecast(int(lengths.sum(dtype=np.int64)), int(hits.sum(dtype=np.int64)))
    return forecasts


def replay_last(
    batches: Sequence[PromptBatch], block_size: int, capacity_blocks: int, policy: str = "lru"
) -> CacheForecast:
    """The forecast of the last batch, with the cache as those before it left it; at least one batch.

    What an engine runs by its queue, as ``batch``, counts as ``lru`` here: it knows one batch at a time, and its replay
    would know them all.
    """
    known = sort_key(policy)
    policy = "lru" if known.reads_queue and known.serves else policy
    hits, lengths = native.simulate_prefix_cache(*joined(batches), block_size, capacity_blocks, policy)
    last = slice(len(hits) - len(batches[-1].plan.rows), None)
    return CacheForecast(int(lengths[last].sum(dtype=np.int64)), int(hits[last].sum(dtype=np.int64)))


def joined(batches: Sequence[PromptBatch]) -> tuple[PromptSegments, np.ndarray, Plan]:
    """Batches that are asked one after the other as one: ``(segments, codes, plan)`` for a replay.

    Headers and tails become columns, as batches differ in them. Column c of every batch shares one column of the
    result; a batch with fewer columns has empty cells in the rest.
    """
    width = max(len(batch.segments.cells) for batch in batches)
    heads = _end_to_end([batch.segments.header for batch in batches])
    tails = _end_to_end([batch.segments.tail for batch in batches])
    columns = [_stacked(batches, place) for place in range(width)]
    number = np.repeat(np.arange(len(batches)), [batch.codes.shape[1] for batch in batches])
    codes = np.stack([number, *(codes for _, codes in columns), number]).astype(np.int32)
    nothing = np.empty(0, np.int32)
    segments = PromptSegments(nothing, (heads, *(cells for cells, _ in columns), tails), nothing)
    return segments, codes, _joined_plan(batches, width)


def _stacked(batches: Sequence[PromptBatch], place: int) -> tuple[TokenSegments, np.ndarray]:
    """The cells of that column of every batch, code 0 being an empty one, and the codes of all rows."""
    tokens, lengths, codes, num_cells = [np.empty(0, np.int32)], [np.zeros(1, np.int64)], [], 1
    for batch in batches:
        if place >= len(batch.segments.cells):
            codes.append(np.zeros(batch.codes.shape[1], np.int32))
            continue
        cells = batch.segments.cells[place]
        tokens.append(cells.tokens)
        lengths.append(cells.lengths)
        codes.append(batch.codes[place] + num_cells)
        num_cells += len(cells.lengths)
    return _segments(tokens, np.concatenate(lengths)), np.concatenate(codes)


def _joined_plan(batches: Sequence[PromptBatch], width: int) -> Plan:
    rows, fields, first = [], [], 0
    for batch in batches:
        num_rows, num_columns = batch.plan.fields.shape
        order = np.empty((num_rows, width + 2), np.int32)
        order[:, 0] = 0
        order[:, 1 : num_columns + 1] = batch.plan.fields + 1
        order[:, num_columns + 1 :] = np.arange(num_columns + 1, width + 2)
        rows.append(batch.plan.rows + first)
        fields.append(order)
        first += batch.codes.shape[1]
    return Plan("joined", np.concatenate(rows), np.concatenate(fields))


def _end_to_end(pieces: Sequence[np.ndarray]) -> TokenSegments:
    return _segments(pieces, np.array([len(piece) for piece in pieces], np.int64))


def _segments(pieces: Sequence[np.ndarray], lengths: np.ndarray) -> TokenSegments:
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return TokenSegments(np.concatenate(pieces), offsets)

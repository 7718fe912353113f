"""plan -> prompts: what planners see and say, and the tokens of the prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_relational.records.table import EncodedTable


@dataclass(frozen=True)
class ValueOverlaps:
    """How the distinct values of one column begin alike, from sorting their tokens.

    rank:   int32 ``[num_values]``: the place of the value with that code in sorted order.
    shared: int64 ``[num_values]``, by rank: the tokens that the value begins with like the one before it.
    """

    rank: np.ndarray
    shared: np.ndarray


@dataclass(frozen=True)
class PlanInput:
    """What a planner sees: integers only.

    codes:        int32 ``[num_columns, num_distinct]``, no nulls, columns in original order.
    cell_tokens:  per column int64 ``[num_values]``: the prompt tokens of one cell, name and punctuation included.
    pinned:       columns (by original position) that must stay at that position in every row.
    overlaps:     per column; or empty when not known: then cells count as shared whole or not at all.
    before:       pairs of columns, in this order originally, that keep it in every row.
    header_tokens, block_size: what all prompts begin with, and the tokens a KV block: a prefix counts in whole blocks.
    """

    codes: np.ndarray
    cell_tokens: tuple[np.ndarray, ...]
    pinned: frozenset[int] = frozenset()
    overlaps: tuple[ValueOverlaps, ...] = ()
    before: tuple[tuple[int, int], ...] = ()
    header_tokens: int = 0
    block_size: int = 1

    @property
    def num_rows(self) -> int:
        return int(self.codes.shape[1])

    @property
    def num_columns(self) -> int:
        return int(self.codes.shape[0])


@dataclass(frozen=True)
class Plan:
    """An order for the rows and, inside each row, for the fields.

    rows:   int64 ``[num_distinct]``: a permutation of the distinct rows, in the order they are asked.
    fields: int32 ``[num_distinct, num_columns]``: ``fields[i]`` is the column order of row ``rows[i]``. A planner
            that gives all rows one order returns a broadcast view.
    """

    planner: str
    rows: np.ndarray
    fields: np.ndarray


@dataclass(frozen=True)
class TokenSegments:
    """The token ids of one column's distinct cells, end to end.

    tokens:  int32 ``[sum of lengths]``
    offsets: int64 ``[num_values + 1]``: the cell with code c is ``tokens[offsets[c]:offsets[c + 1]]``.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class PromptSegments:
    """Everything a prompt is made of: ``header + cells in planned order + tail``, all token ids.

    header: int32, the same for all rows: the system prompt, the instruction if it stands first, the opening of the row.
    cells:  per column the segments of its distinct values.
    tail:   int32, the same for all rows: what closes the row, the instruction if it stands last, the answer's start.
    """

    header: np.ndarray
    cells: tuple[TokenSegments, ...]
    tail: np.ndarray


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as an engine was asked them: what they left in its KV cache, later prompts may find there.

    table: its names and values, which ``codes`` count; codes: int32 ``[num_columns, n]`` of the planned rows.
    row_first: whether the prompts begin with the row.
    """

    table: EncodedTable
    segments: PromptSegments
    codes: np.ndarray
    plan: Plan
    row_first: bool

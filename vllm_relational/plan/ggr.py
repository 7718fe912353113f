"""Greedy Group Recursion: arXiv 2403.05821 v2, section 4.2, Algorithm 1, on integer codes.

Line numbers are those of Algorithm 1. Where the text and the authors' published Python differ from it, or from this:

- Line 6 adds the average lengths of inferred columns; the text measures hits in squared lengths, so they are squared.
- Line 29 prepends the chosen value only; the inferred values must go with it, since their columns are removed.
- Functional dependencies are an input of the paper (primary keys, schema). Here they are discovered: columns whose
  values map one to one over the batch. The published Python merges columns that the caller names.
- Table statistics and early stopping follow the published Python: columns with more than 0.7 distinct values a row go
  last; recursion ends at row depth 4, column depth 2 or a hit count under 100,000, in the fixed order with the v2
  score over the rows and columns at hand. Lengths are those of ``PlanInput``: the published limit counts characters.
- As the published Python, ``plan_ggr`` sorts the rows in the fixed order of the v2 score and cuts them in halves until
  no part has more than 2,000 rows; each part is planned by itself. Algorithm 1 plans the table as a whole:
  ``ALGORITHM_1``. Parts find values that matter in a few thousand rows only, which the stop at row depth 4 would hide.
- The published Python counts a value without regard to its column. Algorithm 1 does not, nor does this.

Time: a sort of the rows, and for each part one of its cells and a scan of them for each chosen value, of which early
stopping leaves a few. Without early stopping and parts the scans grow with the distinct values: quadratic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_relational import native
from vllm_relational.plan.constraints import in_allowed_orders
from vllm_relational.plan.fixed import repeat_score, repeat_scores
from vllm_relational.plan.objective import depth_first_rows
from vllm_relational.records import Plan, PlanInput

Unit = tuple[int, ...]
"""Columns that determine each other one to one, in published order; most units are one column."""


@dataclass(frozen=True)
class GgrOptions:
    """Early stopping; the defaults are the published ones.

    early_stop:         least hit count, squared length x repeats, worth a recursion.
    row_stop, col_stop: depth at which the recursion over the other rows, over the remaining columns, ends.
    distinct_threshold: a column with more distinct values than this share of the rows goes last.
    split_rows:         above this many rows, halves of the sorted rows are planned apart; None: never.
    """

    early_stop: float = 100_000
    row_stop: int = 4
    col_stop: int = 2
    distinct_threshold: float = 0.7
    split_rows: int | None = 2_000


ALGORITHM_1 = GgrOptions(split_rows=None)
"""The paper's Algorithm 1 with the published early stopping."""


@dataclass(frozen=True)
class Group:
    """The greatest hit count of a sub-table, and the unit and code (of its first column) that reach it."""

    hit_count: float
    unit: Unit
    code: int


def plan_ggr(batch: PlanInput, options: GgrOptions | None = None) -> Plan:
    """Field orders by Greedy Group Recursion, rows in depth-first order of their prefix tree; deterministic.

    Pinned columns keep their position: the recursion orders the others, which then fill the positions between.
    """
    fields = ggr_fields(batch, options)
    rows = depth_first_rows(batch, fields)
    return Plan("ggr", rows, fields[rows])


def ggr_fields(batch: PlanInput, options: GgrOptions | None = None) -> np.ndarray:
    """int32 ``[num_rows, num_columns]``: the field orders of ``plan_ggr`` by row number, for who sorts rows himself."""
    return in_allowed_orders(batch, _with_pinned(batch, _Recursion(batch, options or GgrOptions()).paths()))


def dependent_units(batch: PlanInput, columns: Sequence[int]) -> list[Unit]:
    """``columns`` grouped by exact one-to-one dependence over the rows of the batch, in order of the first of each.

    Numbered by first appearance, the values of such columns are the same numbers.
    """
    units: dict[bytes, list[int]] = {}
    for column in columns:
        numbers = _by_first_appearance(batch.codes[column], len(batch.cell_tokens[column]))
        units.setdefault(numbers.tobytes(), []).append(column)
    return [tuple(unit) for unit in units.values()]


def _by_first_appearance(codes: np.ndarray, num_values: int) -> np.ndarray:
    """int32 ``[num_rows]``: the codes renamed 0, 1, ... in the order in which they appear."""
    rows = np.arange(len(codes), dtype=np.int32)
    first = np.empty(num_values, dtype=np.int32)
    first[codes[::-1]] = rows[::-1]  # the last assignment counts: that of the first row
    appears = codes[first[codes] == rows]
    numbers = np.empty(num_values, dtype=np.int32)
    numbers[appears] = np.arange(len(appears), dtype=np.int32)
    renamed: np.ndarray = numbers[codes]
    return renamed


class _Recursion:
    """What is the same for all parts of a batch, and the field orders found."""

    def __init__(self, batch: PlanInput, options: GgrOptions) -> None:
        self.batch, self.options = batch, options
        movable = [column for column in range(batch.num_columns) if column not in batch.pinned]
        scores = repeat_scores(batch)
        by_score = sorted(movable, key=lambda column: (-scores[column], column))
        too_distinct = {column for column in movable if self._too_distinct(column)}
        self.last = [column for column in by_score if column in too_distinct]
        self.sorted_by = [column for column in by_score if column not in too_distinct]
        self.units = dependent_units(batch, [column for column in movable if column not in too_distinct])
        self.squares = {unit: self._squared_lengths(unit) for unit in self.units}
        self.orders = np.empty((batch.num_rows, len(movable)), dtype=np.int32)

    def paths(self) -> np.ndarray:
        """int32 ``[num_rows, movable columns]``: the field order of each row, by row number."""
        for rows in self._parts():
            part = _Part(self, rows)
            part.recurse(np.arange(len(rows)), [], self.units, row_depth=0, col_depth=0)
            self.orders[rows] = part.orders
        return self.orders

    def _parts(self) -> list[np.ndarray]:
        limit, num_rows = self.options.split_rows, self.batch.num_rows
        if limit is None or num_rows <= limit:
            return [np.arange(num_rows)]
        return _halves(native.sort_rows(self.batch.codes, np.array(self.sorted_by, dtype=np.int32)), limit)

    def _too_distinct(self, column: int) -> bool:
        cardinality = np.count_nonzero(np.bincount(self.batch.codes[column]))
        return bool(cardinality > self.options.distinct_threshold * self.batch.num_rows)

    def _squared_lengths(self, unit: Unit) -> np.ndarray:
        """Line 6: the squared lengths of a value and of those it determines, by code of the unit's first column."""
        total = np.zeros(len(self.batch.cell_tokens[unit[0]]))
        for column in unit:
            lengths = np.zeros(len(total))
            lengths[self.batch.codes[unit[0]]] = self.batch.cell_tokens[column][self.batch.codes[column]]
            total += lengths**2
        return total


class _Part:
    """The recursion over some rows of the batch, numbered from 0 here, as are the values that occur in them."""

    def __init__(self, whole: _Recursion, rows: np.ndarray) -> None:
        self.options, self.last = whole.options, whole.last
        self.codes: dict[int, np.ndarray] = {}  # by column, int64 [rows of the part]
        self.lengths: dict[int, np.ndarray] = {}  # by column, of its values here
        self.squares: dict[Unit, np.ndarray] = {}
        for unit in whole.units:
            for column in unit:
                values, self.codes[column] = np.unique(whole.batch.codes[column].take(rows), return_inverse=True)
                self.lengths[column] = whole.batch.cell_tokens[column].take(values)
                if column == unit[0]:
                    self.squares[unit] = whole.squares[unit].take(values)
        self.orders = np.empty((len(rows), whole.orders.shape[1]), dtype=np.int32)

    def recurse(self, rows: np.ndarray, path: list[int], units: list[Unit], row_depth: int, col_depth: int) -> None:
        """Lines 9 to 29; the recursion over the other rows (line 25) is this loop."""
        while len(rows):
            best = self._best_group(rows, units, row_depth, col_depth)
            if best is None:
                return self._fall_back(rows, path, units)
            chosen = self.codes[best.unit[0]][rows] == best.code  # line 24
            rest = [unit for unit in units if unit != best.unit]
            self.recurse(rows[chosen], [*path, *best.unit], rest, row_depth, col_depth + 1)  # lines 26, 29
            rows, row_depth = rows[~chosen], row_depth + 1

    def _best_group(self, rows: np.ndarray, units: list[Unit], row_depth: int, col_depth: int) -> Group | None:
        """Lines 17 to 23, ties to the first; None for the base cases (lines 10 to 16) and for an early stop."""
        options = self.options
        if len(rows) == 1 or len(units) <= 1 or row_depth >= options.row_stop or col_depth >= options.col_stop:
            return None
        best = max((self._best_value(rows, unit) for unit in units), key=lambda group: group.hit_count)
        return best if best.hit_count > 0 and best.hit_count >= options.early_stop else None

    def _best_value(self, rows: np.ndarray, unit: Unit) -> Group:
        """Lines 3 to 8 for all values of a unit: squared lengths x (rows with the value - 1)."""
        counts = np.bincount(self.codes[unit[0]][rows], minlength=len(self.squares[unit]))
        hit_counts = self.squares[unit] * (counts - 1)
        code = int(np.argmax(hit_counts))
        return Group(float(hit_counts[code]), unit, code)

    def _fall_back(self, rows: np.ndarray, path: list[int], units: list[Unit]) -> None:
        """The remaining columns by the v2 score over ``rows``, descending; ties as published."""
        columns = [column for unit in units for column in unit]
        scores = {column: repeat_score(self.codes[column][rows], self.lengths[column]) for column in columns}
        self.orders[rows] = [*path, *sorted(columns, key=lambda column: (-scores[column], column)), *self.last]


def _halves(rows: np.ndarray, limit: int) -> list[np.ndarray]:
    """``rows`` cut in the middle until no part has more than ``limit``, which is 1 or more."""
    middle = len(rows) // 2
    return [rows] if len(rows) <= max(limit, 1) else [*_halves(rows[:middle], limit), *_halves(rows[middle:], limit)]


def _with_pinned(batch: PlanInput, paths: np.ndarray) -> np.ndarray:
    """int32 ``[num_rows, num_columns]``: pinned columns at their positions, ``paths`` in the positions between."""
    fields = np.empty((batch.num_rows, batch.num_columns), dtype=np.int32)
    fields[:] = np.arange(batch.num_columns)
    fields[:, [column for column in range(batch.num_columns) if column not in batch.pinned]] = paths
    return fields

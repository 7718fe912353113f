"""The best plan there is, by trying all: the oracle of the tests (OPHR of arXiv 2403.05821 v2, section 4.1).

The paper's recursion splits a table on every (column, value) and maximises squared lengths between neighbours. This
one has the objective we plan for, ``objective.hit_tokens``: it minimises the tokens of a prefix tree in which each
row chooses its own column order.

    cost({}, used)   = 0
    cost(rows, used) = min over an unused column c, and sets T of rows with the first row's value v in c, that row
                       among them, of   tokens(c, v) + cost(T, used + c) + cost(rows - T, used)

It is exact: some child of a tree node holds the first row, T is what that child holds, and the rest are the node's
other children. (The rest may open the same child again; that costs no less than T with those rows in it, so the
minimum does not change.) Two short cuts keep it exact: equal rows share a path in some optimal tree and are solved
once; a value that all rows of a sub-problem hold goes first, unless columns are pinned (it is computed once, the
least there is, and taking it out of the paths below lengthens none). The time is exponential in rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from vllm_relational.plan.objective import depth_first_rows
from vllm_relational.records import Plan, PlanInput, RelationalError

MAX_DISTINCT_ROWS = 10
MAX_COLUMNS = 6


def plan_exhaustive(batch: PlanInput) -> Plan:
    """A plan with the most ``hit_tokens`` of all plans that leave pinned columns in place.

    Raises ``RelationalError`` for more than ``MAX_DISTINCT_ROWS`` distinct rows or ``MAX_COLUMNS`` columns.
    """
    distinct, inverse = np.unique(batch.codes, axis=1, return_inverse=True)
    if distinct.shape[1] > MAX_DISTINCT_ROWS or batch.num_columns > MAX_COLUMNS:
        raise RelationalError(
            f"order 'exhaustive' takes exponential time: {distinct.shape[1]} distinct rows x {batch.num_columns} "
            f"columns exceed {MAX_DISTINCT_ROWS} x {MAX_COLUMNS}; use another order, e.g. 'ggr'"
        )
    paths = _Search(PlanInput(distinct, batch.cell_tokens, batch.pinned, before=batch.before)).paths()
    fields = np.asarray(paths, dtype=np.int32).reshape(len(paths), batch.num_columns)[inverse.reshape(-1)]
    rows = depth_first_rows(batch, fields)
    return Plan("exhaustive", rows, fields[rows])


class _Search:
    """Sets of rows and of used columns are bit masks; equal sub-problems are solved once."""

    def __init__(self, batch: PlanInput) -> None:
        self.batch = batch
        self.codes = batch.codes.tolist()
        self.lengths = [tokens[codes].tolist() for tokens, codes in zip(batch.cell_tokens, batch.codes, strict=True)]
        self.needs = [0] * batch.num_columns  # per column the set of those that must stand before it
        for first, second in batch.before:
            self.needs[second] |= 1 << first
        self.solve = cache(self._solve)

    def paths(self) -> list[list[int]]:
        """The field order of each row in a best tree."""
        orders: list[list[int]] = [[] for _ in range(self.batch.num_rows)]
        self._follow(2**self.batch.num_rows - 1, 0, orders)
        return orders

    def _follow(self, rows: int, used: int, orders: list[list[int]]) -> None:
        while rows and used != 2**self.batch.num_columns - 1:
            _, column, group = self.solve(rows, used)
            for row in _bits(group):
                orders[row].append(column)
            self._follow(group, used | 1 << column, orders)
            rows ^= group

    def _solve(self, rows: int, used: int) -> tuple[int, int, int]:
        """(cost, column, T) of a best tree over ``rows``, which share one path of the columns ``used``."""
        if not rows or used == 2**self.batch.num_columns - 1:
            return 0, -1, 0
        first = next(_bits(rows))
        if rows == 1 << first:
            rest = [c for c in range(self.batch.num_columns) if not used >> c & 1]
            return sum(self.lengths[c][first] for c in rest), self._columns(used)[0], rows
        choices = self._shared(rows, used, first) or [
            (column, group) for column in self._columns(used) for group in self._groups(rows, column, first)
        ]
        return min((self._cost(rows, used, column, group, first), column, group) for column, group in choices)

    def _shared(self, rows: int, used: int, first: int) -> list[tuple[int, int]]:
        """The first unused column in which all ``rows`` agree, for all of them; empty if there is none."""
        if self.batch.pinned:
            return []
        agreed = (c for c in self._columns(used) if next(self._groups(rows, c, first)) == rows)
        return [(column, rows) for column in agreed][:1]

    def _cost(self, rows: int, used: int, column: int, group: int, first: int) -> int:
        below = self.solve(group, used | 1 << column)[0]
        beside = self.solve(rows ^ group, used)[0]
        return int(self.lengths[column][first] + below + beside)

    def _columns(self, used: int) -> list[int]:
        """Columns that may come next: the pinned one of this position, or any other unused one."""
        position = used.bit_count()
        if position in self.batch.pinned:
            return [] if self.needs[position] & ~used else [position]
        free = (c for c in range(self.batch.num_columns) if not used >> c & 1 and c not in self.batch.pinned)
        return [c for c in free if not self.needs[c] & ~used]

    def _groups(self, rows: int, column: int, first: int) -> Iterator[int]:
        """Sets of ``rows`` that hold the value of ``first`` in ``column``, ``first`` among them, largest first."""
        value = self.codes[column][first]
        others = sum(1 << row for row in _bits(rows) if row != first and self.codes[column][row] == value)
        subset = others
        while True:
            yield subset | 1 << first
            if not subset:
                return
            subset = (subset - 1) & others


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low

"""Random batches and plans for the tests of planners."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from vllm_relational.records import Plan, PlanInput, PromptSegments, TokenSegments


def batch_of(columns: list[list[int]], lengths: list[list[int]], pinned: tuple[int, ...] = ()) -> PlanInput:
    """columns: the codes of each column; lengths: of each column's values."""
    codes = np.array(columns, np.int32).reshape(len(columns), len(columns[0]) if columns else 0)
    return PlanInput(codes, tuple(np.array(length, np.int64) for length in lengths), frozenset(pinned))


@st.composite
def batches(draw: st.DrawFn, max_rows: int = 10, max_columns: int = 4, lengths: tuple[int, int] = (0, 5)) -> PlanInput:
    """0 to ``max_rows`` rows of 1 to ``max_columns`` columns with up to 4 values, some pinned.

    lengths: the shortest and the longest cell.
    """
    num_rows, num_columns = draw(st.integers(0, max_rows)), draw(st.integers(1, max_columns))
    column = st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows)
    values = st.lists(st.integers(*lengths), min_size=4, max_size=4)
    pinned = draw(st.sets(st.integers(0, num_columns - 1))) if draw(st.booleans()) else set()
    return batch_of(
        [draw(column) for _ in range(num_columns)], [draw(values) for _ in range(num_columns)], tuple(pinned)
    )


@st.composite
def planned_batches(
    draw: st.DrawFn, max_rows: int = 10, max_columns: int = 4, lengths: tuple[int, int] = (0, 5)
) -> tuple[PlanInput, Plan]:
    """A batch and any plan for it: rows in any order, each with a field order of its own."""
    batch = draw(batches(max_rows, max_columns, lengths))
    rows = draw(st.permutations(range(batch.num_rows)))
    orders = [draw(st.permutations(range(batch.num_columns))) for _ in rows]
    fields = np.array(orders, np.int32).reshape(len(orders), batch.num_columns)
    return batch, Plan("random", np.array(rows, np.int64), fields)


def segments_of(batch: PlanInput, header: tuple[int, ...] = (1,), tail: tuple[int, ...] = (2,)) -> PromptSegments:
    """Token ids for the lengths of the batch; cells that differ differ in every token."""
    cells, first = [], 10
    for lengths in batch.cell_tokens:
        total = int(lengths.sum())
        cells.append(TokenSegments(np.arange(first, first + total, dtype=np.int32), np.append(0, np.cumsum(lengths))))
        first += total
    return PromptSegments(np.array(header, np.int32), tuple(cells), np.array(tail, np.int32))


def assert_valid(batch: PlanInput, plan: Plan) -> None:
    """Every row once, every field of a row once, pinned columns in place."""
    assert plan.rows.dtype == np.int64 and sorted(plan.rows.tolist()) == list(range(batch.num_rows))
    assert plan.fields.dtype == np.int32 and plan.fields.shape == (batch.num_rows, batch.num_columns)
    for fields in plan.fields.tolist():
        assert sorted(fields) == list(range(batch.num_columns))
        assert all(fields[column] == column for column in batch.pinned)

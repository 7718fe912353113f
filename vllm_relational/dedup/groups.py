"""Groups of groups: which row speaks for each, and by which step a row came to its group."""

from __future__ import annotations

import numpy as np

from vllm_relational.records import Distinct, Grouping


def most_frequent(exact: Distinct, coarse: Distinct) -> np.ndarray:
    """For each group of ``coarse`` the row whose exact values are most frequent; the first of those as frequent.

    coarse: groups whose members are whole groups of ``exact``. Returns int64 ``[coarse.num_distinct]``.
    """
    counts = row_counts(exact)
    group = coarse.inverse[exact.first_rows]
    order = np.lexsort((exact.first_rows, -counts, group))
    first = np.unique(group[order], return_index=True)[1]
    rows: np.ndarray = exact.first_rows[order[first]]
    return rows


def row_counts(distinct: Distinct) -> np.ndarray:
    """Rows of each group: int64 ``[num_distinct]``."""
    return np.bincount(distinct.inverse[distinct.inverse >= 0], minlength=distinct.num_distinct).astype(np.int64)


def regrouped(fine: Distinct, group: np.ndarray, rows: np.ndarray) -> Distinct:
    """Groups made of whole groups of ``fine``.

    group: int64 ``[fine.num_distinct]``, the new group of each old one; rows: int64 ``[number of new groups]``, the
    row that is asked for each. The new groups are numbered by that row.
    """
    order = np.argsort(rows, kind="stable")
    number = np.empty(len(rows), np.int64)
    number[order] = np.arange(len(rows))
    inverse = np.full(len(fine.inverse), -1, np.int64)
    asked = fine.inverse >= 0
    inverse[asked] = number[group[fine.inverse[asked]]]
    return Distinct(rows[order], inverse)


def origins(grouping: Grouping) -> np.ndarray:
    """For each row the place in ``grouping.levels`` of the step that joined it to the row asked; int8 ``[num_rows]``.

    -1: the row is asked itself, or belongs to no group.
    """
    source = source_rows(grouping.distinct)
    merged = np.flatnonzero((source >= 0) & (source != np.arange(len(source))))
    origin = np.full(len(source), -1, np.int8)
    for place, level in reversed(list(enumerate(grouping.levels.values()))):
        joined = merged[level[merged] == level[source[merged]]]
        origin[joined] = place
    return origin


def source_rows(distinct: Distinct) -> np.ndarray:
    """The row that is asked for each row: int64 ``[num_rows]``; -1 where the row belongs to no group."""
    if not distinct.num_distinct:
        return np.full(len(distinct.inverse), -1, np.int64)
    rows: np.ndarray = np.where(distinct.inverse >= 0, distinct.first_rows[distinct.inverse], -1)
    return rows


def part_of(grouping: Grouping, rows: np.ndarray) -> Grouping:
    """The same groups over some rows of the table only, int64 ascending; rows are numbered anew.

    A group whose row is not among them asks the first of its rows that is.
    """
    inverse = grouping.distinct.inverse[rows]
    kept, first = np.unique(inverse[inverse >= 0], return_index=True)
    stands_in = np.flatnonzero(inverse >= 0)[first]
    place = np.full(len(grouping.distinct.inverse), -1, np.int64)
    place[rows] = np.arange(len(rows))
    asked = place[grouping.distinct.first_rows[kept]]
    asked = np.where(asked >= 0, asked, stands_in)
    number = np.full(grouping.distinct.num_distinct, -1, np.int64)
    number[kept] = np.arange(len(kept))
    everything = Distinct(grouping.distinct.first_rows, inverse)
    levels = {name: level[rows] for name, level in grouping.levels.items()}
    return Grouping(regrouped(everything, number, asked), levels)

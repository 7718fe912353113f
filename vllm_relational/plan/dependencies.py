"""Functional and nearly functional dependencies between columns, found in the values.

A column follows from another when equal values there mean equal values here: ``host_id -> host_name``. Data breaks
such rules in some rows, so a dependency is measured by the share of rows that keep it: those that agree with the
commonest value among the rows with their determinant's value (1 - g3 in J. Kivinen and H. Mannila, Approximate
inference of functional dependencies from relations, 1995).

A high share alone says little. What counts besides:

- A determinant is no key, nor nearly one: everything follows from a key. Its distinct values are at most
  ``MAX_DISTINCT`` of the rows.
- A column with one dominant value is guessed well without any determinant. So of the rows that guessing its commonest
  value gets wrong, a dependency leaves at most ``MAX_UNEXPLAINED`` wrong; a constant follows from nothing.
- A few odd rows follow by chance from any column that is almost a key there. So the determinant's values that say
  something else than the commonest value are at most ``MAX_DISTINCT`` of the rows that do: like the key's values, each
  must speak for more than one row on average.
- A join repeats the rows of its dimensions, and with them every accident among their columns: in 15,000 reviews of 372
  listings the price of a listing gives the day it was scraped. So columns that follow exactly from one key are judged
  once more with one row for each value of that key, as they stood in the dimension's own table.

Only single columns are tried as determinants: groups of columns that together determine another are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from vllm_relational import native
from vllm_relational.plan.pair_dependencies import NOT_DEPENDENT
from vllm_relational.records import PlanInput

MAX_UNEXPLAINED = 0.1
MAX_DISTINCT = 0.8

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(columns, rows) -> what ``pair_dependencies`` says of that part of the table."""


@dataclass(frozen=True)
class Dependency:
    """Columns, by position, and what follows from them; either two determinants or more, or a dependent or more.

    determinants: columns that determine each other exactly, one to one; ascending.
    dependents:   columns that follow from any one of the determinants; ascending.
    share:        the least share, over the dependents, of rows that keep the dependency; 1.0: all rows.
    """

    determinants: tuple[int, ...]
    dependents: tuple[int, ...]
    share: float


def find_dependencies(
    batch: PlanInput, min_share: float = 0.99, max_distinct: float = MAX_DISTINCT
) -> tuple[Dependency, ...]:
    """The dependencies that at least ``min_share`` of the rows keep, without those that follow from others.

    An exact one follows from two exact ones in a row; an approximate one from an approximate one with an exact one
    before it, behind it, or both. Exact and approximate dependents of the same determinants make two entries. Columns
    that determine each other stand together, as determinants and as dependents.

    max_distinct: distinct values that a determinant may have, as a share of the rows (see above).
    Entries come by first determinant, exact before approximate. Lengths and pinned columns do not matter.
    Raises ``ValueError`` when an argument is not from 0 to 1, or a code is out of range.
    """
    for name, value in (("min_share", min_share), ("max_distinct", max_distinct)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, not {value}")
    num_values = np.array([len(lengths) for lengths in batch.cell_tokens], dtype=np.int64)

    def judge(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        codes = batch.codes[np.ix_(columns, rows)]
        return native.pair_dependencies(codes, num_values[columns], 1 - min_share, MAX_UNEXPLAINED, max_distinct)

    wrong = judge(np.arange(batch.num_columns), np.arange(batch.num_rows))
    _judge_in_dimensions(batch.codes, wrong, judge)
    return tuple(_entries(wrong, max(batch.num_rows, 1)))


def _judge_in_dimensions(codes: np.ndarray, wrong: np.ndarray, judge: Judge) -> None:
    """Drop from ``wrong`` what does not hold in the table of a dimension; the largest dimension first."""
    keys = np.flatnonzero((wrong == 0).any(axis=1))
    first_rows = {key: np.unique(codes[key], return_index=True)[1] for key in keys.tolist()}
    for key in sorted(first_rows, key=lambda key: -len(first_rows[key])):
        columns = np.flatnonzero((wrong[key] == 0) & (wrong[:, key] != 0))
        inside = np.ix_(columns, columns)
        refuted = judge(columns, first_rows[key]) == NOT_DEPENDENT
        wrong[inside] = np.where(refuted, NOT_DEPENDENT, wrong[inside])


def _entries(wrong: np.ndarray, num_rows: int) -> Iterator[Dependency]:
    groups = _one_to_one(wrong)
    firsts = [group[0] for group in groups]
    wrong = wrong[np.ix_(firsts, firsts)]
    exact, approximate = _reduced(wrong)
    for i, group in enumerate(groups):
        columns = _columns(groups, exact[i])
        if columns or len(group) > 1:
            yield Dependency(group, columns, 1.0)
        if approximate[i].any():
            share = 1 - int(wrong[i, approximate[i]].max()) / num_rows
            yield Dependency(group, _columns(groups, approximate[i]), share)


def _one_to_one(wrong: np.ndarray) -> list[tuple[int, ...]]:
    """All columns, in groups that determine each other exactly, in order of the first of each."""
    mutual = (wrong == 0) & (wrong == 0).T
    np.fill_diagonal(mutual, True)
    return [tuple(np.flatnonzero(row).tolist()) for i, row in enumerate(mutual) if not row[:i].any()]


def _reduced(wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which exact and which approximate dependencies follow from no others.

    A determinant has more distinct values than what follows from it exactly, once one-to-one columns are merged. So
    there are no cycles, and nothing is left out for the sake of something that is left out for its own.
    """
    exact, approximate = wrong == 0, wrong > 0
    concerned = np.flatnonzero((wrong >= 0).any(axis=0) | (wrong >= 0).any(axis=1))  # of many columns few are
    part = np.ix_(concerned, concerned)
    one, other = exact[part], approximate[part]
    before, behind = _between(one, other), _between(other, one)
    exact[part] &= ~_between(one, one)
    approximate[part] &= ~(before | behind | _between(before, one))
    return exact, approximate


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether some column lies between two: the product of two relations, bool ``[n, n]``."""
    product: np.ndarray = first.astype(np.float32) @ second.astype(np.float32) > 0  # NumPy multiplies bools slowly
    return product


def _columns(groups: list[tuple[int, ...]], chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(column for i in np.flatnonzero(chosen) for column in groups[i]))

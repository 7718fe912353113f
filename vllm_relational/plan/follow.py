"""A plan that follows rows asked before: where the question stands behind the row, their tokens are still in the cache.

Two questions over the same rows share what their prompts begin with. So a row that agrees with one asked before, in
all columns that both questions read, takes that row's leading fields in the same order, as far as this question reads
them; the fields that only this question reads come after. Rows stand in the order of those before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_relational.records import EncodedTable, Plan, PlanInput, PromptBatch


@dataclass(frozen=True)
class Track:
    """Rows asked before, in the columns and codes of a batch to plan.

    codes:  int32 ``[num_columns, num_rows]``, in the order asked; -1 where a value does not occur in the batch.
    fields: int32 ``[num_rows, fields of the earlier question]``: the order of each row; -1 for a column that the batch
            lacks.
    shared: the columns of the batch that the earlier question has too.
    """

    codes: np.ndarray
    fields: np.ndarray
    shared: np.ndarray


def track(asked: PromptBatch, table: EncodedTable) -> Track:
    """A batch that was asked as one over ``table`` sees it: a field is the same where name and value are."""
    place_of = {name: place for place, name in enumerate(table.names)}
    places = np.array([place_of.get(name, -1) for name in asked.table.names], np.int32)
    codes = np.full((table.num_columns, len(asked.plan.rows)), -1, np.int32)
    for column, place in enumerate(places.tolist()):
        if place >= 0:
            code_of = {value: code for code, value in enumerate(table.values[place])}
            known = np.array([code_of.get(value, -1) for value in asked.table.values[column]], np.int32)
            codes[place] = known[asked.codes[column][asked.plan.rows]]
    return Track(codes, places[np.asarray(asked.plan.fields)], np.sort(places[places >= 0]))


def follow(batch: PlanInput, own: Plan, tracks: Sequence[Track]) -> Plan | None:
    """``own`` with every row that can behind the tracks; None where no row can.

    Of several rows to follow, the one with most tokens in common is taken. Rows that follow none come last.
    """
    lead = _Lead(batch)
    for number, found in enumerate(tracks):
        lead.consider(number, found)
    if not lead.tokens.any():
        return None
    place = np.empty(batch.num_rows, np.int64)
    place[own.rows] = np.arange(batch.num_rows)
    rows = np.lexsort((place, lead.row, lead.track))
    return Plan("follow", rows, lead.fields(own)[rows])


def backwards(plan: Plan) -> Plan:
    """The same rows, last first: a full cache holds what was asked last."""
    return Plan(plan.planner, plan.rows[::-1], plan.fields[::-1])


class _Lead:
    """By row of a batch: the track and the row in it that it follows, and the tokens in common."""

    def __init__(self, batch: PlanInput) -> None:
        self._batch = batch
        self.track = np.full(batch.num_rows, np.iinfo(np.int32).max, np.int32)
        self.row = np.zeros(batch.num_rows, np.int64)
        self.tokens = np.zeros(batch.num_rows, np.int64)
        # By row, how far to the front a column goes: 0 for the others, which keep their order.
        self._rank = np.zeros((batch.num_rows, batch.num_columns), np.int32)

    def consider(self, number: int, found: Track) -> None:
        """Follow this track where that has more tokens in common."""
        if not len(found.shared):
            return
        lengths = _leading(found.fields)
        tokens = self._tokens(found, lengths)
        best = _longest_by_key(found.codes[found.shared], tokens)
        for row, key in enumerate(_keys(self._batch.codes[found.shared])):
            earlier = best.get(key, -1)
            if earlier >= 0 and tokens[earlier] > self.tokens[row]:
                self.track[row], self.row[row], self.tokens[row] = number, earlier, tokens[earlier]
                leading = found.fields[earlier, : lengths[earlier]]
                self._rank[row] = 0
                self._rank[row, leading] = np.arange(-len(leading), 0)

    def _tokens(self, found: Track, lengths: np.ndarray) -> np.ndarray:
        """Tokens of the leading fields of each row of a track."""
        tokens = np.zeros(len(lengths), np.int64)
        for place in range(found.fields.shape[1]):
            for column in found.shared.tolist():
                rows = np.flatnonzero((lengths > place) & (found.fields[:, place] == column))
                tokens[rows] += self._batch.cell_tokens[column][found.codes[column, rows]]
        return tokens

    def fields(self, own: Plan) -> np.ndarray:
        """int32 ``[num_rows, num_columns]``, by row number: the leading fields, then the others as ``own`` has them."""
        order = np.empty((self._batch.num_rows, self._batch.num_columns), np.int32)
        order[own.rows] = own.fields
        ranks = np.take_along_axis(self._rank, order, axis=1)
        return np.take_along_axis(order, np.argsort(ranks, axis=1, kind="stable"), axis=1)


def _leading(fields: np.ndarray) -> np.ndarray:
    """How many fields of each row stand before the first that the batch lacks."""
    counts: np.ndarray = np.logical_and.accumulate(fields >= 0, axis=1).sum(axis=1)
    return counts


def _longest_by_key(codes: np.ndarray, tokens: np.ndarray) -> dict[bytes, int]:
    """Among rows with equal codes, the one with most tokens, the first of equals."""
    best: dict[bytes, int] = {}
    for row, key in enumerate(_keys(codes)):
        if key not in best or tokens[row] > tokens[best[key]]:
            best[key] = row
    return best


def _keys(codes: np.ndarray) -> Iterator[bytes]:
    return (row.tobytes() for row in np.ascontiguousarray(codes.T))

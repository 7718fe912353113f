"""What a plan is worth, counted slowly: a trie of cells, and the prefix hit count of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm_relational.plan.objective import cell_ids, cell_lengths
from vllm_relational.records import Plan, PlanInput

Cell = tuple[int, int]  # (column, code)


def phc(batch: PlanInput, plan: Plan) -> int:
    """Prefix hit count (arXiv 2403.05821 v2, equations 1 and 2).

    The sum over rows of the squared lengths of the leading cells equal to those of the row before. The paper compares
    values only; here the column must be the same too, because its name stands in the prompt.
    """
    cells, lengths = cell_ids(batch, plan.rows, plan.fields), cell_lengths(batch)
    leading = np.logical_and.accumulate(cells[1:] == cells[:-1], axis=1)
    return int((lengths[cells[1:]] ** 2)[leading].sum())


class CellTrie:
    """A prefix tree of cells held in dictionaries: slow and plain, the oracle of ``hit_tokens``."""

    def __init__(self) -> None:
        self._children: dict[Cell, CellTrie] = {}

    def insert(self, path: Sequence[Cell], lengths: Sequence[int]) -> int:
        """Add one row; returns the lengths of its leading cells that the tree held already, summed."""
        node, hits, known = self, 0, True
        for cell, length in zip(path, lengths, strict=True):
            known = known and cell in node._children
            hits += length if known else 0
            node = node._children.setdefault(cell, CellTrie())
        return hits


def trie_hit_tokens(batch: PlanInput, plan: Plan) -> int:
    """``hit_tokens``, counted cell by cell with a ``CellTrie``."""
    trie, hits = CellTrie(), 0
    for row, fields in zip(plan.rows.tolist(), plan.fields.tolist(), strict=True):
        path = [(column, int(batch.codes[column, row])) for column in fields]
        hits += trie.insert(path, [int(batch.cell_tokens[column][code]) for column, code in path])
    return hits

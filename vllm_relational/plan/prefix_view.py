"""The prefix tree of a plan as data: which cells rows share, and what that saves.

``objective.hit_tokens`` says how many tokens a plan saves, this module where. Chains are merged: a node holds all the
cells that its rows share before they part, so every node but a leaf has at least two children, and a tree of n rows
has fewer than 2n nodes. Limits keep the nodes that save most; what they leave out is summed, never dropped, so the
tokens saved of all nodes are ``hit_tokens`` whatever the limits.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from vllm_relational.records import Plan, PlanInput

ROOT = -1  # the parent of the first node


@dataclass(frozen=True)
class PrefixNode:
    """Rows that share a path of cells from the start of the row.

    parent:       position of the parent in the list of nodes; ``ROOT`` for the first node, which holds all rows.
    cells:        the (column, code) that the rows share beyond the parent's; none where ``merged`` is not 0.
    num_rows:     rows below, at least 1 unless the plan is empty.
    tokens:       of ``cells``, in one row.
    saved:        tokens served from the cache: all but the first row find ``cells`` there.
    total_tokens, total_saved: tokens, and tokens saved, in the cells of the rows beyond the parent's: this node and all
                  below. For one row that is the rest of the row.
    merged:       0, or the number of siblings that this node sums up, with all below them; ``saved`` is then
                  ``total_saved``, and ``tokens`` is 0.
    """

    parent: int
    cells: tuple[tuple[int, int], ...]
    num_rows: int
    tokens: int
    saved: int
    total_tokens: int
    total_saved: int
    merged: int = 0


def prefix_tree(
    batch: PlanInput,
    plan: Plan,
    max_nodes: int = sys.maxsize,
    max_children: int = sys.maxsize,
    max_depth: int = sys.maxsize,
    min_rows: int = 1,
) -> tuple[PrefixNode, ...]:
    """The nodes that save most, with all below them; parents stand before their children, siblings by tokens saved.

    max_nodes:    1 or more; nodes that sum up others come on top, at most one for each node.
    max_children: of one node, the one that sums up the others not counted.
    max_depth:    levels below the root.
    min_rows:     nodes of fewer rows are summed up; 2 leaves out rows that share nothing more.

    The row order does not matter. Time: one sort a level of the rows that still share a prefix.
    """
    tree = _grow(batch, plan)
    shown = _chosen(tree, max_nodes, max_children, max_depth, min_rows)
    return _nodes(batch, plan, tree, shown)


@dataclass(frozen=True)
class _PrefixTree:
    """All nodes in arrays ``[num_nodes]``, parents before children.

    row: a position in ``plan.rows`` below the node; start, stop: its cells in the field order of that row.
    """

    parent: np.ndarray
    depth: np.ndarray
    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    num_rows: np.ndarray
    tokens: np.ndarray
    total_tokens: np.ndarray
    total_saved: np.ndarray

    @property
    def saved(self) -> np.ndarray:
        """Tokens that the node's own cells save."""
        saved: np.ndarray = np.maximum(self.num_rows - 1, 0) * self.tokens
        return saved


# -------------------------------------------------------------------------------------------------- all the nodes
def _grow(batch: PlanInput, plan: Plan) -> _PrefixTree:
    """Level by level: a group of rows whose next cells differ becomes one node a cell, any other grows longer."""
    growth = _Growth(batch, plan)
    for level in range(batch.num_columns):
        if not len(growth.rows):
            break
        growth.add_level(level)
    return growth.tree()


class _Growth:
    """The nodes so far. ``rows`` (positions in the plan) still share a prefix; ``nodes`` are the nodes they reached."""

    def __init__(self, batch: PlanInput, plan: Plan) -> None:
        self.batch, self.plan = batch, plan
        sizes = [len(tokens) for tokens in batch.cell_tokens]
        self.first_cell = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.lengths = np.concatenate([np.empty(0, np.int64), *batch.cell_tokens]).astype(np.int64)
        self.left = _row_tokens(batch)[plan.rows]  # tokens of each row that no node holds yet
        self.rows = np.arange(len(plan.rows))
        self.nodes = np.zeros(len(plan.rows), dtype=np.int64)
        self.parent, self.depth = [np.array([ROOT])], [np.array([0])]
        self.row, self.start = [np.array([0])], [np.array([0])]
        self.stop, self.tokens = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.num_rows = [np.array([len(plan.rows)])]
        self._close_single_rows(0)

    def add_level(self, level: int) -> None:
        """Give the cell at ``level`` of every row to a node, old or new."""
        columns = self.plan.fields[self.rows, level]
        cells = self.first_cell[columns] + self.batch.codes[columns, self.plan.rows[self.rows]]
        paths = self.nodes * len(self.lengths) + cells
        groups, first, group_of, num_rows = np.unique(paths, return_index=True, return_inverse=True, return_counts=True)
        above, length = groups // len(self.lengths), self.lengths[groups % len(self.lengths)]
        parts = np.bincount(above, minlength=len(self.stop))[above] > 1
        self.left[self.rows] -= length[group_of]
        reached = above.copy()
        reached[parts] = len(self.stop) + np.arange(np.count_nonzero(parts))
        self._add_nodes(above[parts], self.rows[first[parts]], num_rows[parts], level)
        self.tokens[reached] += length
        self.stop[reached] = level + 1
        self.nodes = reached[group_of]
        self._close_single_rows(len(self.stop) - int(np.count_nonzero(parts)))

    def _add_nodes(self, parent: np.ndarray, row: np.ndarray, num_rows: np.ndarray, level: int) -> None:
        depth = np.concatenate(self.depth)[parent] + 1
        for column, values in (("parent", parent), ("depth", depth), ("row", row), ("num_rows", num_rows)):
            getattr(self, column).append(values)
        self.start.append(np.full(len(parent), level))
        self.stop = np.append(self.stop, np.full(len(parent), level))
        self.tokens = np.append(self.tokens, np.zeros(len(parent), np.int64))

    def _close_single_rows(self, first_node: int) -> None:
        """A new node of one row takes the rest of the row."""
        num_rows, row = self.num_rows[-1], self.row[-1]
        single = first_node + np.flatnonzero(num_rows == 1)
        self.tokens[single] += self.left[row[num_rows == 1]]
        self.stop[single] = self.batch.num_columns
        goes_on = np.ones(len(self.stop), dtype=bool)
        goes_on[single] = False
        self.rows, self.nodes = self.rows[goes_on[self.nodes]], self.nodes[goes_on[self.nodes]]

    def tree(self) -> _PrefixTree:
        """The nodes with the sums over all below them."""
        num_rows, parent = np.concatenate(self.num_rows), np.concatenate(self.parent)
        total_tokens = num_rows * self.tokens
        total_saved = np.maximum(num_rows - 1, 0) * self.tokens
        stop = len(parent)
        for level in reversed(self.parent[1:]):  # children are in a later block than their parent
            block = slice(stop - len(level), stop)
            np.add.at(total_tokens, parent[block], total_tokens[block])
            np.add.at(total_saved, parent[block], total_saved[block])
            stop -= len(level)
        depth, row, start = (np.concatenate(values) for values in (self.depth, self.row, self.start))
        return _PrefixTree(parent, depth, row, start, self.stop, num_rows, self.tokens, total_tokens, total_saved)


def _row_tokens(batch: PlanInput) -> np.ndarray:
    """int64 ``[num_rows]``: the tokens in the cells of each row of the batch."""
    total = np.zeros(batch.num_rows, dtype=np.int64)
    for codes, tokens in zip(batch.codes, batch.cell_tokens, strict=True):
        total += tokens[codes]
    return total


# ------------------------------------------------------------------------------------------------ the nodes shown
def _chosen(tree: _PrefixTree, max_nodes: int, max_children: int, max_depth: int, min_rows: int) -> np.ndarray:
    """bool ``[num_nodes]``: the nodes to show; a node's parent is always among them."""
    order = np.lexsort((-tree.total_tokens, -tree.total_saved))  # stable: a parent stands before an equal child
    allowed = (tree.depth <= max_depth) & (tree.num_rows >= min_rows) & (_rank(tree, order) < max_children)
    allowed[0] = True
    for depth in range(1, int(tree.depth.max()) + 1):
        level = tree.depth == depth
        allowed[level] &= allowed[tree.parent[level]]
    shown = np.zeros(len(tree.parent), dtype=bool)
    shown[order[allowed[order]][:max_nodes]] = True
    return shown


def _rank(tree: _PrefixTree, order: np.ndarray) -> np.ndarray:
    """int64 ``[num_nodes]``: the place of each node among its siblings, the one that saves most first."""
    by_parent = order[np.argsort(tree.parent[order], kind="stable")]
    parents = tree.parent[by_parent]
    rank = np.empty(len(parents), dtype=np.int64)
    rank[by_parent] = np.arange(len(parents)) - np.searchsorted(parents, parents)
    return rank


def _nodes(batch: PlanInput, plan: Plan, tree: _PrefixTree, shown: np.ndarray) -> tuple[PrefixNode, ...]:
    order = np.lexsort((-tree.total_tokens, -tree.total_saved, tree.depth))
    kept = order[shown[order]]
    place = np.full(len(shown) + 1, ROOT)  # the last entry is the root's parent
    place[kept] = np.arange(len(kept))
    nodes = [
        PrefixNode(
            int(place[tree.parent[node]]),
            _cells(batch, plan, tree, node),
            *(int(values[node]) for values in (tree.num_rows, tree.tokens, tree.saved)),
            *(int(values[node]) for values in (tree.total_tokens, tree.total_saved)),
        )
        for node in kept.tolist()
    ]
    return (*nodes, *_sums(tree, shown, place))


def _cells(batch: PlanInput, plan: Plan, tree: _PrefixTree, node: int) -> tuple[tuple[int, int], ...]:
    if not tree.num_rows[node]:
        return ()
    position = tree.row[node]
    columns = plan.fields[position, tree.start[node] : tree.stop[node]].tolist()
    return tuple((column, int(batch.codes[column, plan.rows[position]])) for column in columns)


def _sums(tree: _PrefixTree, shown: np.ndarray, place: np.ndarray) -> list[PrefixNode]:
    """One node for the children of each shown node that are not shown."""
    hidden = np.flatnonzero(~shown & np.append(shown, False)[tree.parent])
    parents, group = np.unique(tree.parent[hidden], return_inverse=True)
    totals = np.zeros((4, len(parents)), dtype=np.int64)
    for total, values in zip(totals, (tree.num_rows, tree.total_tokens, tree.total_saved), strict=False):
        np.add.at(total, group, values[hidden])
    np.add.at(totals[3], group, 1)
    return [
        PrefixNode(int(place[parent]), (), rows, 0, saved, tokens, saved, merged)
        for parent, (rows, tokens, saved, merged) in zip(parents.tolist(), totals.T.tolist(), strict=True)
    ]

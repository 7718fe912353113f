"""The prefix tree as data: what its nodes save is what the objective counts, whatever the limits."""

from __future__ import annotations

import sys
import time
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from random_batches import batch_of, planned_batches

from vllm_relational.plan import PLANNERS, plan_fixed, plan_original
from vllm_relational.plan.objective import hit_tokens, total_tokens
from vllm_relational.plan.prefix_view import ROOT, PrefixNode, prefix_tree
from vllm_relational.records import Plan, PlanInput

WIDE = {"max_rows": 20, "max_columns": 6}
LIMITS = st.fixed_dictionaries(
    {
        "max_nodes": st.integers(1, 12),
        "max_children": st.integers(1, 4),
        "max_depth": st.integers(0, 4),
        "min_rows": st.integers(1, 3),
    }
)


def path_of(nodes: tuple[PrefixNode, ...], node: PrefixNode) -> tuple:
    above = () if node.parent == ROOT else path_of(nodes, nodes[node.parent])
    return above + node.cells


def rows_of(batch: PlanInput, plan: Plan) -> list[tuple]:
    return [
        tuple((column, int(batch.codes[column, row])) for column in fields)
        for row, fields in zip(plan.rows.tolist(), plan.fields.tolist(), strict=True)
    ]


@given(planned_batches(**WIDE))
def test_the_nodes_save_what_the_plan_saves(planned):
    nodes = prefix_tree(*planned)
    assert sum(node.saved for node in nodes) == nodes[0].total_saved == hit_tokens(*planned)
    assert sum(node.num_rows * node.tokens for node in nodes) == nodes[0].total_tokens == total_tokens(planned[0])


@given(planned_batches(**WIDE), st.sampled_from(sorted(set(PLANNERS) - {"exhaustive"})))
def test_so_do_those_of_every_planner(planned, name):
    batch, _ = planned
    plan = PLANNERS[name](batch)
    assert sum(node.saved for node in prefix_tree(batch, plan)) == hit_tokens(batch, plan)


@given(planned_batches(**WIDE), LIMITS)
def test_limits_drop_nothing(planned, limits):
    nodes = prefix_tree(*planned, **limits)
    assert sum(node.saved for node in nodes) == hit_tokens(*planned)
    for place, node in enumerate(nodes):
        children = [child for child in nodes if child.parent == place]
        if children:
            assert sum(child.num_rows for child in children) == node.num_rows
            assert sum(child.total_saved for child in children) == node.total_saved - node.saved
            tokens = sum(child.total_tokens for child in children)
            assert tokens == node.total_tokens - node.num_rows * node.tokens


@given(planned_batches(**WIDE), LIMITS)
def test_limits_are_kept(planned, limits):
    nodes = prefix_tree(*planned, **limits)
    plain = [node for node in nodes if not node.merged]
    assert len(plain) <= limits["max_nodes"] and len(nodes) <= 2 * len(plain)
    assert all(node.num_rows >= limits["min_rows"] for node in plain[1:])
    assert max(Counter(node.parent for node in plain).values()) <= limits["max_children"]
    assert max(depth_of(nodes, node) for node in plain) <= limits["max_depth"]
    assert all(count == 1 for count in Counter(node.parent for node in nodes if node.merged).values())


def depth_of(nodes: tuple[PrefixNode, ...], node: PrefixNode) -> int:
    return 0 if node.parent == ROOT else 1 + depth_of(nodes, nodes[node.parent])


@given(planned_batches(**WIDE))
def test_a_node_holds_the_rows_that_begin_with_its_path(planned):
    batch, plan = planned
    nodes, rows = prefix_tree(batch, plan), rows_of(batch, plan)
    assert len({path_of(nodes, node) for node in nodes}) == len(nodes) <= max(2 * len(rows), 1)
    for place, node in enumerate(nodes):
        path = path_of(nodes, node)
        assert node.parent < place and not node.merged
        assert node.num_rows == sum(row[: len(path)] == path for row in rows)
        assert node.tokens == sum(int(batch.cell_tokens[column][code]) for column, code in node.cells)


@given(planned_batches(**WIDE))
def test_a_node_ends_where_its_rows_part(planned):
    nodes = prefix_tree(*planned)
    for place, node in enumerate(nodes):
        firsts = [child.cells[0] for child in nodes if child.parent == place]
        assert len(firsts) == len(set(firsts)) != 1
        if not firsts and planned[0].num_rows:  # the rows end here
            assert len(path_of(nodes, node)) == planned[0].num_columns


@given(planned_batches(**WIDE))
def test_siblings_that_save_most_come_first(planned):
    nodes = prefix_tree(*planned)
    for place in range(len(nodes)):
        saved = [child.total_saved for child in nodes if child.parent == place]
        assert saved == sorted(saved, reverse=True)


def test_the_rows_in_input_order_need_not_be_grouped():
    batch = batch_of([[0, 1, 0]], [[5, 7]])
    root, shared, alone = prefix_tree(batch, plan_original(batch))
    assert root == PrefixNode(ROOT, (), 3, 0, 0, 17, 5)
    assert shared == PrefixNode(0, ((0, 0),), 2, 5, 5, 10, 5)
    assert alone == PrefixNode(0, ((0, 1),), 1, 7, 0, 7, 0)


def test_cells_that_all_rows_share_are_the_roots():
    batch = batch_of([[0, 0], [0, 0], [0, 1]], [[3], [4], [1, 2]])
    nodes = prefix_tree(batch, plan_original(batch), max_nodes=1)
    assert nodes[0].cells == ((0, 0), (1, 0)) and nodes[0].saved == 7
    assert nodes[1] == PrefixNode(0, (), 2, 0, 0, 3, 0, merged=2)


def test_no_rows_one_row_no_columns():
    empty = batch_of([[]], [[]])
    assert prefix_tree(empty, plan_original(empty)) == (PrefixNode(ROOT, (), 0, 0, 0, 0, 0),)
    one = batch_of([[0], [0]], [[3], [4]])
    assert prefix_tree(one, plan_original(one)) == (PrefixNode(ROOT, ((0, 0), (1, 0)), 1, 7, 0, 7, 0),)
    none = PlanInput(np.empty((0, 3), np.int32), ())
    assert prefix_tree(none, plan_original(none)) == (PrefixNode(ROOT, (), 3, 0, 0, 0, 0),)


def test_a_million_cells_take_seconds_at_most():
    random = np.random.default_rng(0)
    codes = np.array([random.integers(0, 2 + 3**column, 100_000) for column in range(10)], np.int32)
    batch = PlanInput(codes, tuple(np.full(2 + 3**column, 10, np.int64) for column in range(10)))
    plan = plan_fixed(batch)
    started = time.perf_counter()
    nodes = prefix_tree(batch, plan, max_nodes=1000)
    assert time.perf_counter() - started < 5
    assert len(nodes) <= 2000 and nodes[0].total_saved == hit_tokens(batch, plan)
    assert nodes[0].num_rows == 100_000 < sys.maxsize

"""The recipes of CONTRIBUTING.md work as written."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from markdown_pages import ROOT, blocks
from random_batches import batches
from vllm_objects import make_manager, make_request

from vllm_relational import native
from vllm_relational.kv import policy as policies
from vllm_relational.kv.future_use import FutureUse
from vllm_relational.kv.policy import POLICIES, Policy
from vllm_relational.plan import PLANNERS, Planner, planner
from vllm_relational.records import Plan, PromptSegments, TokenSegments
from vllm_relational.sql import functions
from vllm_relational.sql.functions import Argument, CallQuestion, answer_format_of, canonical_template
from vllm_relational.vllm_ext.scheduler.free_queue import make_free_queue

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAX_LINES = 40


def recipe(heading):
    """The block of Python, the lines added by the block of a diff, and how many lines the recipe adds to the code."""
    (section,) = [part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE) if part.startswith(heading)]
    code = "".join(block.text for block in blocks(section, "python"))
    lines = "".join(block.text for block in blocks(section, "diff")).splitlines()
    added = [line[1:] for line in lines if line.startswith("+")]
    return code, added, len(code.splitlines()) + len(added)


@pytest.fixture(scope="module")
def fewest():
    code, _, num_lines = recipe("Add a planner")
    assert num_lines < MAX_LINES
    made = {"__name__": "vllm_relational.plan.fewest"}
    exec(compile(code, "fewest.py", "exec"), made)
    return made["plan_fewest"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(batch=batches())
def test_the_planner_is_found_by_name_and_its_plans_are_valid(fewest, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PLANNERS, "fewest", Planner(fewest))
        plan = planner("fewest")(batch)
    assert sorted(plan.rows.tolist()) == list(range(batch.num_rows)) and plan.planner == "fewest"
    for fields in plan.fields.tolist():
        assert sorted(fields) == list(range(batch.num_columns))
        assert all(fields[column] == column for column in batch.pinned)
    free = [column for column in plan.fields[0].tolist() if column not in batch.pinned] if batch.num_rows else []
    counts = [len(np.unique(batch.codes[column])) for column in free]
    assert counts == sorted(counts)


@pytest.fixture
def deepest(monkeypatch):
    code, _, num_lines = recipe("Add an eviction policy")
    assert num_lines < MAX_LINES
    made = dict(vars(policies))
    exec(compile(code, "policy.py", "exec"), made)
    monkeypatch.setitem(POLICIES, "deepest", Policy(made["deepest"]))


def test_the_policy_is_replayed(deepest):
    """Rows that begin alike keep their beginning; by least recent use the block before the tail would stay."""
    cells = TokenSegments(np.repeat(np.arange(1, 5), 4).astype(np.int32), np.arange(0, 17, 4))
    segments = PromptSegments(np.empty(0, np.int32), (cells,) * 2, np.array([9], np.int32))
    codes = np.array([[0, 1, 0, 1, 0], [1, 2, 3, 1, 2]], dtype=np.int32)
    plan = Plan("test", np.arange(5), np.broadcast_to(np.arange(2, dtype=np.int32), (5, 2)))
    hits, _ = native.simulate_prefix_cache(segments, codes, plan, 4, 3, "deepest")
    assert hits.tolist() == [0, 0, 4, 4, 4]


def test_the_policy_runs_under_the_block_pool_of_vllm(deepest):
    manager = make_manager(6)
    queue = manager.block_pool.free_block_queue = make_free_queue(manager.block_pool, "deepest", FutureUse())
    for number, prompt in enumerate(([1, 1, 2, 2, 9], [3, 3, 9], [1, 1, 4, 4, 9])):
        request = make_request(str(number), prompt)
        found, hit, _ = manager.get_computed_blocks(request)
        assert manager.allocate_slots(request, len(prompt) - hit, hit, found) is not None
        manager.free(request)
    assert hit == 2  # the beginning of the first prompt stayed
    assert sum(queue.evictions.values()) > 0


def test_the_function_is_a_row(monkeypatch):
    _, added, num_lines = recipe("Add a SQL function")
    assert num_lines < MAX_LINES
    (name, function), *_ = eval("{" + "\n".join(added) + "}", dict(vars(functions))).items()
    monkeypatch.setitem(functions.LLM_FUNCTIONS, name, function)
    question = CallQuestion(
        name,
        canonical_template(name, "{a} is true", [Argument("a")]),
        answer_format_of(name, (), max_tokens=64, max_json_tokens=256),
        ("a",),
    )
    assert question.template == "How likely is it, in per cent, that this is true? {a} is true"
    assert question.sql_type() == "BIGINT" and question.value(40) == 40

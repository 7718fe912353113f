"""Every record is a frozen value: no later stage changes it, and another process can be sent it."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import numpy as np
import pytest

from vllm_relational.records import engine, errors, plan, results, table

MODULES = [engine, plan, results, table]
RECORDS = [
    kind
    for module in MODULES
    for _, kind in inspect.getmembers(module, dataclasses.is_dataclass)
    if kind.__module__ == module.__name__
]


def test_there_are_records_in_every_module():
    assert {kind.__module__ for kind in RECORDS} == {module.__name__ for module in MODULES}


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_records_say_what_they_are_and_pickle_by_name(kind):
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")
    assert pickle.loads(pickle.dumps(kind)) is kind


def test_a_plan_cannot_be_changed_and_is_the_same_in_another_process():
    made = plan.Plan("tree", np.array([1, 0]), np.array([[0], [0]]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.planner = "ggr"
    again = pickle.loads(pickle.dumps(made))
    assert again.planner == "tree" and (again.rows == made.rows).all() and (again.fields == made.fields).all()


def test_numbers_follow_from_arrays():
    codes = np.zeros((2, 3), np.int32)
    encoded = table.EncodedTable(("a", "b"), codes, (["1"], ["2"]))
    assert (encoded.num_columns, encoded.num_rows, encoded.is_text) == (2, 3, (True, True))
    given = plan.PlanInput(codes, (np.ones(1, np.int64),) * 2)
    assert (given.num_columns, given.num_rows) == (2, 3)
    assert plan.TokenSegments(np.arange(5), np.array([0, 2, 5])).lengths.tolist() == [2, 3]
    assert table.Distinct(np.array([0, 2]), np.array([0, 0, 1])).num_distinct == 2


@pytest.mark.parametrize("kind", [errors.EngineDiedError, errors.RowFailedError])
def test_all_errors_that_a_user_can_mend_are_of_one_kind(kind):
    with pytest.raises(errors.RelationalError, match="mend"):
        raise kind("mend it")

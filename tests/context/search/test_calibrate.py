"""Costs are measured once, kept, and measured again where the file says nothing of this machine."""

import json

import numpy as np
import pytest

from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import calibrate
from vllm_relational.context.search.calibrate import costs, costs_path, machine_name
from vllm_relational.context.search.optimizer import Optimizer, SearchCosts, Situation, WayCost

GIVEN = SearchCosts(
    {"flat": WayCost(1, 0.5, measured=((8, 1.5), (9, 2.0))), "graph": WayCost(2, 0.25, recall=0.9)},
    0.1,
    0.2,
    3.0,
    "this one",
)


@pytest.fixture
def this_machine(monkeypatch):
    monkeypatch.setattr(calibrate, "machine_name", lambda: "this one")


def measured(calls):
    def measure():
        calls.append(1)
        return GIVEN

    return measure


def test_measured_once_and_kept(tmp_path, this_machine):
    path, calls = tmp_path / "some" / "costs.json", []
    assert costs(path, measured(calls)) == GIVEN
    assert costs(path, measured(calls)) == GIVEN
    assert len(calls) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("this one", "another"),
        lambda text: text.replace('"format": 2', '"format": 1'),
        lambda text: text.replace('"fixed_us"', '"fixed"'),
        lambda text: text.replace('"hit_us": 0.1', '"hit_us": "much"'),
        lambda text: json.dumps([1]),
    ],
)
def test_what_says_nothing_of_this_machine_is_measured_again(tmp_path, damage, this_machine):
    path, calls = tmp_path / "costs.json", []
    costs(path, measured(calls))
    path.write_text(damage(path.read_text()))
    assert costs(path, measured(calls)) == GIVEN and len(calls) == 2
    assert costs(path, measured(calls)) == GIVEN and len(calls) == 2


def test_a_place_that_cannot_be_written_is_no_error(tmp_path, this_machine):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "costs.json", tmp_path / "folder", tmp_path / ("x" * 300)):
        assert costs(place, measured([])) == GIVEN


def test_where_costs_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert costs_path() == tmp_path / "vllm-relational" / "context_costs.json"
    monkeypatch.setenv("VLLM_RELATIONAL_CONTEXT_COSTS", str(tmp_path / "here.json"))
    assert costs_path() == tmp_path / "here.json"


@pytest.mark.parametrize("loaded", [True, False])
def test_attention_to_all_tokens_is_that_of_sessions_where_torch_is_loaded(monkeypatch, loaded):
    if loaded:
        import torch

        threads = torch.get_num_threads()
    else:
        monkeypatch.setattr(calibrate, "_torch", lambda: None)
    assert machine_name().endswith(", torch") == loaded
    for dtype in (np.uint16, np.float32):

        def samples(length, dtype=dtype):
            keys, values, queries = calibrate.synthetic(length)
            return keys.astype(dtype), values.astype(dtype), queries

        table = calibrate.calibrate((), (130, 700), samples)
        assert min(table.ways["full"].measured)[1] > 0
    assert not loaded or torch.get_num_threads() == threads


def test_a_small_calibration_gives_a_table_to_choose_by():
    table = calibrate.calibrate(
        ("flat", "int4", "clusters", "graph"), (130, 520), sampled=calibrate.synthetic(64)[2][0]
    )
    assert set(table.ways) == {"full", "flat", "int4", "clusters", "graph"} and table.machine == machine_name()
    for kind, way in table.ways.items():
        assert [length for length, _ in way.measured] == [130, 520] and way.resident <= 1 and way.recall <= 1
        assert (way.index_bytes > 0) == (kind in ("int4", "clusters", "graph"))
    assert all(table.ways[kind].recall == 1 for kind in ("flat", "int4"))
    assert Optimizer(table).choose(Situation(1000)).kind in ("full", "flat", "int4")
    with pytest.raises(ContextError, match="two or more ascending lengths"):
        calibrate.calibrate(lengths=(100,))

"""The sparse method of an engine, and from which length on a step uses it."""

from __future__ import annotations

import pytest
import torch
from attention_objects import HEAD_SIZE, HEADS, KV_HEADS, make_config, make_spec

from vllm_relational.sparse.decoder import DecodeShape
from vllm_relational.sparse.optimizer import H100, H200
from vllm_relational.sparse.pages import PageLayout
from vllm_relational.sparse.settings import read_dipr
from vllm_relational.vllm_ext.attention import backend as dipr_layers

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def warnings(monkeypatch):
    """What the log warns of; the GPU is an H100."""
    said = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(dipr_layers.logger, "warning_once", lambda text, *names: said.append(text % names))
    return said


@pytest.mark.parametrize(
    ("given", "device", "method"),
    [
        ({}, GPU, "scan"),
        ({"approximate": True, "top_tokens": 512}, GPU, "topk_pages"),
        ({"approximate": True, "top_tokens": 2**17}, GPU, "scan"),  # as many as the engine's contexts have
        ({"method": "v_skip"}, GPU, "v_skip"),
        ({"method": "topk_pages"}, GPU, "topk_pages"),
        ({"method": "topk_pages"}, CPU, "topk_pages"),
        ({"approximate": True}, CPU, "auto"),  # no costs are known
    ],
)
def test_an_engine_has_one_sparse_method(given, device, method):
    shape, config = DecodeShape(HEADS, KV_HEADS, HEAD_SIZE, 0.1, 16, 2**17, 32), make_config(given)
    config.model_config.max_model_len = shape.max_seq_len
    found = dipr_layers._with_method(config, read_dipr(given), shape, device)
    assert found.method == method and found.top_tokens == given.get("top_tokens", 2048)


def test_a_step_uses_it_from_the_length_on_from_which_it_pays():
    given = {"dense_below": 100, "approximate": True}
    config, settings = make_config(given), read_dipr(given)
    pays_from = dipr_layers._pays_from(config, settings, make_spec(), GPU)
    assert pays_from(1) > pays_from(16) > 100
    assert dipr_layers._pays_from(config, settings, make_spec(), CPU)(1) == 100
    fixed = {**given, "method": "topk_pages"}
    assert dipr_layers._pays_from(make_config(fixed), read_dipr(fixed), make_spec(), GPU)(1) == 100


@pytest.mark.parametrize(
    ("name", "costs", "warning"),
    [
        ("NVIDIA H100 80GB HBM3", H100, None),
        ("NVIDIA H200", H200, None),
        ("NVIDIA L40S", H100, "not measured on NVIDIA L40S: it is chosen by the costs on NVIDIA H100 80GB HBM3"),
        ("NVIDIA B200", H200, "not measured on NVIDIA B200: it is chosen by the costs on NVIDIA H200"),
    ],
)
def test_the_costs_are_those_of_the_device_and_the_log_says_where_they_are_not(
    name, costs, warning, warnings, monkeypatch
):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: asked.append(device) or name)
    second = torch.device("cuda:1")
    found = dipr_layers.costs_of(make_config(), read_dipr({}), PageLayout(64, 128, torch.bfloat16), 8, second)
    assert found.table == costs and asked == [second]
    assert [warning in said for said in warnings] == ([True] if warning else [])


def test_on_a_cpu_there_are_no_costs_and_nothing_to_warn_of(warnings, monkeypatch):
    monkeypatch.delattr(torch.cuda, "get_device_name")
    settings = read_dipr({"dense_below": 100})
    assert dipr_layers._pays_from(make_config(), settings, make_spec(), CPU)(1) == 100
    shape = DecodeShape(HEADS, KV_HEADS, HEAD_SIZE, 0.1, 16, 2**17, 32)
    assert dipr_layers._with_method(make_config(), settings, shape, CPU) == settings
    assert warnings == []

"""The sparse method of an engine, and from which length on a step uses it."""

from __future__ import annotations

import pytest
import torch
from attention_objects import HEAD_SIZE, HEADS, KV_HEADS, make_config, make_spec

from vllm_relational.sparse.decoder import DecodeShape
from vllm_relational.sparse.settings import read_dipr
from vllm_relational.vllm_ext import dipr_layers

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "device", "method"),
    [
        ({}, GPU, "scan"),
        ({"approximate": True, "top_tokens": 512}, GPU, "pages"),
        ({"approximate": True, "top_tokens": 2**17}, GPU, "scan"),  # as many as the engine's contexts have
        ({"method": "v_skip"}, GPU, "v_skip"),
        ({"method": "pages"}, GPU, "pages"),
        ({"method": "pages"}, CPU, "pages"),
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
    fixed = {**given, "method": "pages"}
    assert dipr_layers._pays_from(make_config(fixed), read_dipr(fixed), make_spec(), GPU)(1) == 100

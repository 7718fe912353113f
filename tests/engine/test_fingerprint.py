"""A model is told from others of its name by its files, precision and revision."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from vllm_relational.vllm_ext.process.facts import engine_info


def fingerprint(folder, **changes) -> str:
    facts = {"dtype": "bfloat16", "quantization": None, "revision": None, "model": str(folder), "max_model_len": 9}
    facts |= {"hf_overrides": {}, "cache_dtype": "auto", "attention": None, "dipr": {}} | changes
    cache = SimpleNamespace(
        num_gpu_blocks=9, block_size=16, enable_prefix_caching=True, cache_dtype=facts.pop("cache_dtype")
    )
    attention, dipr = facts.pop("attention"), facts.pop("dipr")
    config = SimpleNamespace(
        model_config=SimpleNamespace(**facts),
        cache_config=cache,
        scheduler_config=SimpleNamespace(scheduler_cls=None),
        attention_config=SimpleNamespace(backend=attention),
        additional_config={"relational": {"dipr": dipr}},
    )
    return engine_info(SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config)), "name").fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"quantization": "fp8"},
        {"revision": "v2"},
        {"cache_dtype": "fp8"},
        {"hf_overrides": {"rope_theta": 1e6}},
        {"attention": "CUSTOM"},
    ],
)
def test_settings_that_change_answers_change_it(tmp_path, change):
    assert fingerprint(tmp_path) != fingerprint(tmp_path, **change)


def test_settings_of_sparse_attention_change_it_where_it_is_on(tmp_path):
    assert fingerprint(tmp_path, dipr={"alpha": 0.1}) == fingerprint(tmp_path)
    assert fingerprint(tmp_path, attention="FLASH_ATTN") == fingerprint(tmp_path)
    sparse = fingerprint(tmp_path, attention="CUSTOM")
    assert fingerprint(tmp_path, attention="CUSTOM", dipr={"alpha": 0.1}) != sparse


def test_other_files_change_it(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    stat = weights.stat()
    weights.write_bytes(b"two")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint(tmp_path) != first


def test_a_hub_name_has_no_files():
    assert fingerprint("owner/model") == "bfloat16; None; None; ; auto; {}"

"""Which arguments make vLLM keep contexts."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from vllm_relational.context import vllm_arguments
from vllm_relational.context.vllm_arguments import GIB, check_model, context_arguments, default_memory
from vllm_relational.records import RelationalError


def config(*args, **more):
    return context_arguments(*args, **more)["kv_transfer_config"]


def test_on_a_cpu_it_is_our_connector(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = config("kept", True, size_gib=1.5)
    assert found["kv_connector"] == "ContextConnector" and found["kv_load_failure_policy"] == "recompute"
    assert found["kv_connector_extra_config"] == {"root": str(tmp_path / "kept"), "max_bytes": GIB * 3 // 2}


def test_on_a_gpu_it_is_vllms_with_our_tier(tmp_path):
    found = config(tmp_path, False, memory_gib=2)
    assert found["kv_connector"] == "ContextOffloadingConnector" and found["kv_load_failure_policy"] == "recompute"
    extra = found["kv_connector_extra_config"]
    assert extra["spec_name"] == "TieringOffloadingSpec" and extra["cpu_bytes_to_use"] == 2 * GIB
    (tier,) = extra["secondary_tiers"]
    assert tier["type"] == "ContextTier" and tier["root"] == str(tmp_path) and "max_bytes" not in tier


@pytest.mark.parametrize("name", ["kv_transfer_config", "kv_offloading_size"])
def test_what_the_user_gives_himself_is_not_overruled(tmp_path, name):
    with pytest.raises(RelationalError, match=f"contexts and {name} exclude each other"):
        context_arguments(tmp_path, True, given={name, "dtype"})


def test_memory_is_a_quarter_or_what_is_shared(monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=100 * GIB // 4096, f_frsize=4096))
    assert default_memory() == 4 * GIB
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=GIB // 4096, f_frsize=4096))
    assert default_memory() == 3 * GIB // 4
    monkeypatch.setattr(vllm_arguments, "SHARED_MEMORY", "/no/such/folder")
    monkeypatch.undo()
    monkeypatch.setattr(vllm_arguments, "SHARED_MEMORY", "/no/such/folder")
    assert default_memory() > 0


def test_a_model_whose_contexts_cannot_be_kept_is_refused_before_it_starts(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(RelationalError, match="holds no weights"):
        check_model(str(model), tmp_path / "kept")


def test_a_folder_that_cannot_be_is_refused_before_it_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RelationalError, match=r"contexts cannot be kept in .*file.*: (File exists|Not a directory)"):
        check_model("hub/name", tmp_path / "file")
    check_model("hub/name", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()

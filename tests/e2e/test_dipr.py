"""Sparse attention in real engines, on the CPU through its reference: what is cached, evicted, copied and preempted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from vllm_relational import RelationalLLM
from vllm_relational.sparse.pages import PageLayout

from .conftest import ENGINE_ARGS

CHILD = Path(__file__).with_name("dipr_engines.py")
HEAD_SIZE, BLOCK_SIZE = 32, 32
EXACT = {"alpha": 0, "dense_below": 0, "dense_layers": 0}


def run_child(model: Path, part: str) -> tuple[dict[str, Any], str]:
    """Its lines by name, and its log. In a process of its own: an engine binds the threads of its process."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(CHILD.parent), os.environ.get("PYTHONPATH", "")]),
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    command = [sys.executable, str(CHILD), str(model), part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("RUN ")]
    return {line["name"]: line for line in lines}, done.stderr


@pytest.fixture(scope="module")
def peaked_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with greater queries and keys: random weights attend to all tokens nearly alike."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("peaked") / "tiny"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    scaled = {name: part * (12 if "q_proj" in name or "k_proj" in name else 1) for name, part in weights.items()}
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def exact(peaked_model: Path) -> tuple[dict[str, Any], str]:
    return run_child(peaked_model, "exact")


@pytest.fixture(scope="module")
def sparse(peaked_model: Path) -> dict[str, Any]:
    return run_child(peaked_model, "sparse")[0]


def test_alpha_0_answers_as_stock_token_for_token(exact: tuple[dict[str, Any], str]) -> None:
    runs, log = exact
    assert runs["exact"]["answers"] == runs["stock"]["answers"]
    assert runs["exact, many"]["answers"] == runs["stock, many"]["answers"]
    assert log.count("DIPR attention: DiprSettings(") == 1


def test_sparse_attention_begins_with_the_second_token(
    exact: tuple[dict[str, Any], str], sparse: dict[str, Any]
) -> None:
    """And changes answers, otherwise the tests below say nothing."""
    pairs = list(zip(sparse["many, fresh"]["answers"], exact[0]["stock, many"]["answers"], strict=True))
    assert all(ours[0] == dense[0] for ours, dense in pairs)
    assert all(ours != dense for ours, dense in pairs)


def test_the_index_is_accounted_in_the_number_of_blocks(exact: tuple[dict[str, Any], str]) -> None:
    import torch

    layout = PageLayout(BLOCK_SIZE, HEAD_SIZE, torch.float32)
    plain = layout.token_bytes - layout.index_bytes
    runs, _ = exact
    assert runs["exact"]["num_blocks"] == runs["stock"]["num_blocks"] * plain // layout.token_bytes


def test_a_cached_prefix_changes_no_answer(sparse: dict[str, Any]) -> None:
    assert sparse["cached"]["answers"] == sparse["fresh"]["answers"]
    assert 192 in sparse["cached"]["cached"]  # of a prompt of 193: its last token is a query of its own
    assert all(sparse["cached"]["cached"]) and not any(sparse["fresh"]["cached"])


def test_chunks_change_no_answer(sparse: dict[str, Any]) -> None:
    assert sparse["in chunks"]["answers"] == sparse["fresh"]["answers"]


def test_copied_blocks_change_no_answer(sparse: dict[str, Any]) -> None:
    assert sparse["parting, copied"]["answers"] == sparse["parting, fresh"]["answers"]
    assert any(cached % BLOCK_SIZE for cached in sparse["parting, copied"]["cached"])


def test_preemption_changes_no_answer_of_alpha_0(exact: tuple[dict[str, Any], str], sparse: dict[str, Any]) -> None:
    assert sparse["many, preempted, alpha 0"]["preemptions"] > 0
    assert sparse["many, preempted, alpha 0"]["answers"] == exact[0]["stock, many"]["answers"]


@pytest.mark.parametrize("run", ["many, preempted", "many, interrupted"])
def test_preemption_changes_no_answer(run: str, sparse: dict[str, Any]) -> None:
    """What was decoded sparsely is computed again sparsely: after some blocks were lost, or all of them."""
    fresh, preempted = sparse["many, fresh"], sparse[run]
    assert preempted["preemptions"] > 0 and fresh["preemptions"] == 0
    assert preempted["answers"] == fresh["answers"]


def test_every_cached_block_has_the_index_of_its_keys(sparse: dict[str, Any]) -> None:
    """After evictions, hits, copies and preemptions alike."""
    checks = {name: run["index"] for name, run in sparse.items() if "index" in run}
    assert len(checks) == 4
    for name, (checked, stale) in checks.items():
        assert checked > 0 and stale == 0, name


def test_the_offline_class(llm: RelationalLLM, tiny_model: Path, reviews: pd.DataFrame) -> None:
    rows, prompt = reviews.head(4), "Would a family like this home? {comments} {name}"
    with RelationalLLM(str(tiny_model), attention="dipr", dipr=EXACT, **ENGINE_ARGS) as ours:
        assert ours.run(rows, prompt, max_tokens=4).answers == llm.run(rows, prompt, max_tokens=4).answers
        assert "DiprSettings(" in ours.engine.start().fingerprint
    assert "DiprSettings(" not in llm.engine.start().fingerprint

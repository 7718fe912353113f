"""Short forms of the robustness runs over files: damaged ones, and jobs that are killed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "robustness"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_damaged_files_give_no_wrong_answer_and_lose_no_row(capsys):
    pytest.importorskip("faiss")
    assert script("damaged_files").run_cases(range(7000, 7040)) == []
    counts = capsys.readouterr().out
    assert all(
        kind in counts for kind in ("checkpoint: went on", "cache: went on", "output parquet", "index", "side file")
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_damage_that_is_not_found_is_found_by_the_script(monkeypatch, capsys):
    pytest.importorskip("faiss")
    damaged_files = script("damaged_files")
    from vllm_relational.results import checkpoint_lines

    monkeypatch.setattr(checkpoint_lines, "_checksum", lambda data, seed: b"0" * 16)
    assert any("wrong answers" in line for line in damaged_files.run_cases(range(0, 300, 10)))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_damaged_contexts_give_the_right_bytes_or_none():
    assert script("context_damage").run_cases(range(40)) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["layer_00.kv", "layer_01.kv"])
def test_a_damaged_layer_that_is_not_found_is_found_by_the_script(monkeypatch, name):
    context_damage = script("context_damage")
    from vllm_relational.context.stored import StoredContext

    monkeypatch.setattr(StoredContext, "verify", lambda *_: None)
    assert any(f"{name}, one bit: wrong bytes" in line for line in context_damage.run_cases(range(40)))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_contexts_survive_a_full_disk():
    assert script("context_full_disk").run_cases(range(20)) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "what"), [("context_kills", "4 points: 0 wrong"), ("context_processes", "1 rounds: 0 wrong")]
)
def test_contexts_survive_kills_and_other_processes(name, what):
    command = [sys.executable, str(FOLDER / f"{name}.py"), what.partition(" ")[0]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and what in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks and /proc")
@pytest.mark.timeout(300)
def test_killed_jobs_lose_no_row_and_ask_nothing_twice():
    command = [sys.executable, str(FOLDER / "kill_points.py"), "3", "--start", "500"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 points: 0 wrong" in done.stdout and "0 kills" not in done.stdout.splitlines()

"""Jobs that are killed, interrupted, or lose their engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from vllm_relational import EngineDiedError, RelationalLLM

ENGINE_ARGS = ["--engine-arg", "dtype=float32", "--engine-arg", "max_model_len=2048", "--engine-arg", "max_num_seqs=4"]
SLOW = {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 4}
PROMPT = "Describe this home: {comments} {name}"
STARTED = 240  # seconds a slow machine may take to answer the first rows


def _command(table: Path, model: Path, output: Path, *more: str, max_tokens: int = 60) -> list[str]:
    options = ["--prompt", PROMPT, "--model", str(model), "--max-tokens", str(max_tokens), "-o", str(output)]
    options += [*ENGINE_ARGS, *more]
    return [sys.executable, "-m", "vllm_relational.cli", "run", str(table), *options]


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_interruptible
        )


def _interruptible() -> None:
    """The children of a background job inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _lines(checkpoint: Path) -> list[list[Any]]:
    if not checkpoint.exists():
        return []
    text = checkpoint.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()[1:]]


def _wait_for_answers(checkpoint: Path, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTED
    while len(_lines(checkpoint)) < count:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def _members(group: int) -> list[int]:
    """Living processes of a process group."""
    alive = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            alive.append(int(entry.name))
    return alive


def _wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 40
    while _members(group):
        assert time.monotonic() < deadline, f"processes left: {_members(group)}"
        time.sleep(0.2)


@pytest.fixture
def table(tmp_path: Path, reviews: pd.DataFrame) -> Path:
    path = tmp_path / "reviews.parquet"
    reviews.head(120).to_parquet(path)
    return path


@pytest.mark.timeout(900)
def test_kill_9_then_resume_answers_every_row_once(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    output, checkpoint = tmp_path / "answers.parquet", tmp_path / "answers.parquet.checkpoint.jsonl"
    long = 100  # tokens an answer: the job is far from its end when a busy machine gets to see its first answers
    killed = _start(_command(table, tiny_model, output, max_tokens=long), tmp_path / "first.log")
    _wait_for_answers(checkpoint, 4, killed, tmp_path / "first.log")
    killed.kill()
    killed.wait()
    _wait_until_gone(killed.pid)  # no engine may keep the memory that the resumed run needs
    before = _lines(checkpoint)
    assert 0 < len(before) < 120 and not output.exists()
    with checkpoint.open("ab") as file:
        file.write(b'[99, "half a li')  # what a crash in the middle of a write leaves

    refused = subprocess.run(_command(table, tiny_model, output, max_tokens=long), capture_output=True, text=True)
    assert refused.returncode == 2 and "--resume" in refused.stderr

    again = _command(table, tiny_model, output, "--resume", max_tokens=long)
    resumed = subprocess.run(again, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    answered = pd.read_parquet(output)
    assert len(answered) == 120 and answered["answer"].notna().all() and answered["error"].isna().all()
    assert re.search(rf"resumed from the checkpoint +{len(before)}\n", resumed.stderr)
    assert re.search(rf"asked in this run +{120 - len(before)}\n", resumed.stderr)
    assert not checkpoint.exists()
    kept = {key: text.strip() for key, text, *_ in before}
    assert {key: answered["answer"][key] for key in kept} == kept


@pytest.mark.timeout(600)
def test_interrupt_leaves_a_resumable_checkpoint(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "answers.jsonl", tmp_path / "log"
    checkpoint = tmp_path / "answers.jsonl.checkpoint.jsonl"
    running = _start(_command(table, tiny_model, output), log)
    _wait_for_answers(checkpoint, 4, running, log)

    os.killpg(running.pid, signal.SIGINT)  # as a terminal sends Ctrl-C: to the engine as well

    assert running.wait(timeout=60) == 130, log.read_text()
    assert "continue with --resume" in log.read_text() and "Traceback" not in log.read_text()
    assert len(_lines(checkpoint)) >= 4
    _wait_until_gone(running.pid)


@pytest.mark.timeout(300)
def test_interrupt_ends_the_loading_of_a_model(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "answers.jsonl", tmp_path / "log"
    running = _start(_command(table, tiny_model, output), log)
    deadline = time.monotonic() + STARTED
    while len(_members(running.pid)) < 3:  # the command, Python's resource tracker, the engine
        assert running.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)

    os.killpg(running.pid, signal.SIGINT)

    assert running.wait(timeout=60) == 130, log.read_text()
    assert "interrupted before the first answer" in log.read_text()
    _wait_until_gone(running.pid)
    assert not list(tmp_path.glob("answers*"))


@pytest.mark.timeout(600)
def test_dead_engine_ends_the_job_and_a_new_one_finishes_it(
    tiny_model: Path, reviews: pd.DataFrame, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "job.jsonl"
    question = {"prompt": PROMPT, "max_tokens": 40, "checkpoint": checkpoint}
    killer = _kill_engine_after(checkpoint, answers=6)
    with RelationalLLM(str(tiny_model), **SLOW) as doomed, pytest.raises(EngineDiedError, match="--resume"):
        doomed.run(reviews.head(80), **question)
    killer.join()
    saved = len(_lines(checkpoint))
    assert 6 <= saved < 80

    with RelationalLLM(str(tiny_model), **SLOW) as fresh:
        result = fresh.run(reviews.head(80), **question, resume=True)

    assert result.num_failed == 0 and all(isinstance(answer, str) for answer in result.answers)
    assert result.report.num_resumed == saved and result.report.num_asked == 80 - saved


def _kill_engine_after(checkpoint: Path, answers: int):
    import threading

    import psutil

    known = {child.pid for child in psutil.Process().children()}

    def kill() -> None:
        deadline = time.monotonic() + STARTED
        while len(_lines(checkpoint)) < answers and time.monotonic() < deadline:
            time.sleep(0.05)
        for child in psutil.Process().children():
            if child.pid not in known and "EngineCore" in child.name():
                child.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread

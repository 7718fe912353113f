"""SQL statements that are interrupted while the engine answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pandas as pd
import pytest

ENGINE_ARGS = ["--engine-arg", "dtype=float32", "--engine-arg", "max_model_len=2048", "--engine-arg", "max_num_seqs=4"]
ROWS = 60
STARTED = 240  # seconds a slow machine may take to answer the first rows


def _interruptible() -> None:
    """The children of a background job inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _answers(folder: Path) -> int:
    """Answers in the checkpoint beside the side file."""
    found = list(folder.glob("answers.duckdb.op_1.*.checkpoint.jsonl"))
    return found[0].read_text().count("\n") - 1 if found else 0


@pytest.mark.timeout(900)
def test_the_same_command_goes_on_after_ctrl_c(tiny_model: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    reviews.head(ROWS).to_parquet(tmp_path / "t.parquet")
    query = f"SELECT name, LLM('Describe this home: {{comments}}', comments) AS d FROM '{tmp_path / 't.parquet'}'"
    output, side, log = tmp_path / "out.parquet", tmp_path / "answers.duckdb", tmp_path / "log"
    command = [sys.executable, "-m", "vllm_relational.cli", "sql", query, "--model", str(tiny_model), *ENGINE_ARGS]
    long = "150"  # tokens an answer: the job is far from its end when a busy machine gets to see its first answers
    command += ["--max-tokens", long, "--side", str(side), "-o", str(output)]
    with log.open("wb") as out:
        running = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_interruptible
        )
    deadline = time.monotonic() + STARTED
    while _answers(tmp_path) < 4:
        assert running.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)

    os.killpg(running.pid, signal.SIGINT)  # as a terminal sends Ctrl-C: to the engine as well

    assert running.wait(timeout=60) == 130, log.read_text()
    assert "the same command goes on from them" in log.read_text() and "Traceback" not in log.read_text()
    kept = _answers(tmp_path)
    assert 4 <= kept < ROWS and not list(tmp_path.glob("*out.parquet*"))
    with duckdb.connect(str(side), read_only=True) as plain:
        assert plain.sql("SELECT count(*) FROM operators").fetchall() == [(1,)]
        assert plain.sql("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'op%'").fetchall() == [
            ("operators",)
        ]

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{ROWS - kept} asked, {kept} resumed" in done.stderr
    assert pd.read_parquet(output)["d"].notna().sum() == ROWS
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "answers.duckdb",
        "log",
        "out.parquet",
        "t.parquet",
    ]

"""The same questions through a real vLLM server, as ``vllm-relational serve`` starts it without options for a CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from vllm_relational import RelationalLLM

PROMPT = "Would a family like this home? {comments} {name} {description}"
STARTED = 240  # seconds a slow machine may take to start the server


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-c", "from vllm_relational.cli.app import main; main()", "serve", str(tiny_model)]
    options = ["--served-model-name", "tiny", "--max-model-len", "2048", "--max-num-seqs", "32"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details"]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *options, *place],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTED
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            time.sleep(0.3)


@pytest.mark.timeout(600)
def test_a_server_gets_the_prompts_that_the_engine_gets(
    server: str, llm: RelationalLLM, tiny_model: Path, reviews: pd.DataFrame
) -> None:
    rows = reviews.head(30)
    remote = RelationalLLM(base_url=server, tokenizer=str(tiny_model), concurrency=4)

    there = remote.run(rows, PROMPT, max_tokens=6)
    llm.reset_cache()
    here = llm.run(rows, PROMPT, max_tokens=6)

    assert there.num_failed == 0
    assert there.report.model == "tiny"
    assert there.answers == here.answers
    # The server counts prompt tokens itself: equal counts mean that its chat template gave our prompts.
    assert there.report.measured_prompt_tokens == there.report.predicted.prompt_tokens
    # Blocks of 32 on both sides: of 128, vLLM's own choice for a CPU, a server would find far less again.
    assert there.report.measured_hit_rate == pytest.approx(here.report.measured_hit_rate, abs=0.02)
    assert here.report.measured_hit_rate > 0.3


@pytest.mark.timeout(600)
def test_a_server_enforces_decisions_and_reports_bad_rows(server: str, reviews: pd.DataFrame) -> None:
    rows = reviews.head(6).copy()
    rows.loc[1, "comments"] = "x" * 50_000
    rows.loc[2, "comments"] = None
    remote = RelationalLLM(base_url=server)

    labels = remote.run(rows, PROMPT, choices=["very good", "very bad"])
    numbers = remote.run(rows.drop([1, 2]), PROMPT, range=(1, 5))

    assert [reason is not None for reason in labels.errors] == [False, True, True, False, False, False]
    assert {answer for answer in labels.answers if answer} <= {"very good", "very bad"}
    assert all(1 <= answer <= 5 for answer in numbers.answers)

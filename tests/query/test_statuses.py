"""Texts that were cut off at max_tokens are kept and marked everywhere: results, files, checkpoints, reports."""

from __future__ import annotations

import csv
import json

import pandas as pd
import pytest
from fake_engine import FakeEngine
from fake_server import chat
from typer.testing import CliRunner

from vllm_relational import RelationalLLM
from vllm_relational.cli import options as cli_options
from vllm_relational.cli.app import app

FRAME = pd.DataFrame({"text": ["a", "b", "c", "a"]})


def llm_of(**options) -> RelationalLLM:
    return RelationalLLM(engine=FakeEngine(lambda row: f"about {row['text']}", **options))


def run(llm, **options):
    with llm:
        return llm.run(FRAME, "On {text}?", **options)


def test_statuses_of_whole_cut_and_failed_rows():
    result = run(llm_of(cuts=[0], fails=[2]))
    assert result.statuses == ["cut", "ok", "failed", "cut"]  # the last row has the answer of the first
    assert result.answers == ["about a", "about b", None, "about a"]
    assert (result.report.num_cut, result.report.num_failed) == (2, 1)


def test_rows_that_were_never_asked_have_failed():
    frame = pd.DataFrame({"text": ["a", None]})
    with llm_of(cuts=[0]) as llm:
        assert llm.run(frame, "On {text}?").statuses == ["cut", "failed"]


@pytest.mark.parametrize("options", [{"choices": ["about a", "about b", "about c"]}, {"schema": {}}])
def test_only_texts_may_be_cut(options):
    answer = (lambda row: json.dumps(row["text"])) if "schema" in options else (lambda row: f"about {row['text']}")
    with RelationalLLM(engine=FakeEngine(answer, cuts=[0])) as llm:
        result = llm.run(FRAME, "On {text}?", **options)
    assert result.statuses == ["failed", "ok", "ok", "failed"] and result.report.num_cut == 0


def test_the_mark_survives_a_checkpoint(tmp_path):
    path = tmp_path / "c.jsonl"
    run(llm_of(cuts=[0]), checkpoint=path)
    resumed = llm_of()
    result = run(resumed, checkpoint=path, resume=True)
    assert resumed.engine.asked == [] and result.statuses == ["cut", "ok", "ok", "cut"]
    assert result.report.num_cut == 2


def test_the_mark_survives_the_result_cache(tmp_path):
    path = tmp_path / "answers.sqlite"
    run(llm_of(cuts=[1]), cache=path)
    cached = llm_of()
    result = run(cached, cache=path)
    assert cached.engine.asked == [] and result.statuses == ["ok", "cut", "ok", "ok"]


def test_a_longer_answer_is_asked_again(tmp_path):
    path = tmp_path / "answers.sqlite"
    run(llm_of(cuts=[1]), cache=path, max_tokens=64)
    assert run(llm_of(), cache=path, max_tokens=128).statuses == ["ok"] * 4


def test_query_warns_with_the_fix():
    with llm_of(cuts=[0]) as llm, pytest.warns(UserWarning, match=r"2 of 4 answers were cut off .*: raise it"):
        assert llm.query(FRAME, "On {text}?").tolist()[0] == "about a"


def test_an_audit_compares_cut_answers_as_they_are():
    report = run(llm_of(cuts=[0]), audit=3).report
    assert report.audit.samples[0].num_agreed == report.audit.samples[0].num_asked == 3


# -------------------------------------------------------------------------------------------------------- command line
@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs ``run`` over the frame with an engine; returns exit status, output rows and standard error."""
    FRAME.to_csv(tmp_path / "t.csv", index=False)

    def call(*arguments, **options):
        monkeypatch.setattr(cli_options, "make_llm", lambda *_, **__: llm_of(**options))
        output = tmp_path / "o.csv"
        line = ["run", str(tmp_path / "t.csv"), "-p", "On {text}?", "-o", str(output), *map(str, arguments)]
        done = CliRunner().invoke(app, line)
        rows = list(csv.DictReader(output.open())) if output.exists() else []
        return done.exit_code, rows, done.stderr

    return call


def test_the_status_column_and_the_report(command):
    status, rows, said = command(cuts=[0])
    assert status == 0  # every row has an answer
    assert [row["status"] for row in rows] == ["cut", "ok", "ok", "cut"]
    assert "cut off" in said and "2: raise --max-tokens" in said


def test_failed_rows_have_a_status_too(command):
    status, rows, said = command(fails=[1])
    assert status == 1 and [row["status"] for row in rows] == ["ok", "failed", "ok", "ok"]
    assert "cut off" not in said


def test_another_name_for_the_column(command):
    assert list(command("--status-column", "how")[1][0]) == ["text", "answer", "error", "how"]


@pytest.mark.parametrize("name", ["text", "answer"])
def test_a_name_that_is_taken_is_refused(command, name):
    status, rows, said = command("--status-column", name)
    assert status == 2 and rows == [] and name in said


@pytest.mark.parametrize("suffix", ["json", "html"])
def test_reports_in_files_count_cut_rows(command, tmp_path, suffix):
    page = tmp_path / f"report.{suffix}"
    command("--report", page, cuts=[0])
    text = page.read_text()
    assert json.loads(text)["num_cut"] == 2 if suffix == "json" else "2: raise --max-tokens" in text


def test_bench_says_which_rows_were_cut(tmp_path, monkeypatch):
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.setattr(cli_options, "make_llm", lambda *_, **__: llm_of(cuts=[0]))
    line = ["bench", str(tmp_path / "t.csv"), "-p", "On {text}?", "--orders", "original,tree", "-o"]
    done = CliRunner().invoke(app, [*line, str(tmp_path / "o.csv")])
    assert done.exit_code == 0 and "2: raise --max-tokens" in done.stderr
    assert [row["status"] for row in csv.DictReader((tmp_path / "o.csv").open())] == ["cut", "ok", "ok", "cut"]


# ------------------------------------------------------------------------------------------------------------- a server
@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "ok", None),
        ("length", "cut", None),
        ("content_filter", "failed", "failed request: the server stopped the answer (finish reason content_filter)"),
        ("error", "failed", "failed request: the server stopped the answer (finish reason error)"),
        ("abort", "failed", "failed request: the server stopped the answer (finish reason abort)"),
    ],
)
def test_what_a_server_says_of_the_end(fake_server, finish, status, reason):
    fake_server.reply = lambda body: chat("half a sen", finish)
    with RelationalLLM("tiny", base_url=fake_server.root) as llm:
        result = llm.run(FRAME[:1], "On {text}?")
    assert (result.statuses, result.errors) == ([status], [reason])
    assert result.answers == [None if reason else "half a sen"]


@pytest.mark.parametrize("vllm", [True, False])
def test_a_thinking_server_is_read_behind_its_thought(fake_server, vllm):
    if not vllm:
        fake_server.other()
    fake_server.reply = lambda body: chat("<think>\nbad? no.\n</think>\n\ngood")
    with RelationalLLM("tiny", base_url=fake_server.root) as llm:
        assert llm.run(FRAME[:1], "On {text}?").answers == ["good"]
        assert llm.run(FRAME[:1], "On {text}?", choices=["bad", "good"]).answers == ["good"]
    with RelationalLLM("tiny", base_url=fake_server.root) as llm:  # room for the thought
        llm.run(FRAME[:1], "On {text}?", choices=["bad", "good"], max_tokens=512)
        llm.run(FRAME[:1], "On {text}?", choices=["bad", "good"])
        assert fake_server.bodies[-2]["max_tokens"] == 512 and fake_server.bodies[-1]["max_tokens"] < 64
    fake_server.reply = lambda body: chat("<think>\nbad?", "length")
    with RelationalLLM("tiny", base_url=fake_server.root) as llm:
        for options in ({}, {"choices": ["bad", "good"]}):
            (reason,) = llm.run(FRAME[:1], "On {text}?", **options).errors
            assert "thought that does not end: raise --max-tokens" in reason

"""Deduplication, cache and audit on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from hashed_embedder import HashedTrigrams
from typer.testing import CliRunner

from vllm_relational import RelationalLLM
from vllm_relational.cli.app import app
from vllm_relational.records import RelationalError
from vllm_relational.table import read_table

TEXTS = ["Good", "good!", "good!", "Bad", '=1+1; DROP TABLE "x" {a}', "\x01 é"]


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": TEXTS, "n": [1, 1, 1, 2, 3, 4]}), path)
    return path


def run_cli(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_merged_rows_and_where_their_answers_come_from(table, tmp_path, cli_engine):
    output = tmp_path / "out.parquet"
    options = ["--dedup", "normalized", "--explain-dedup", "from", "-o", output]
    result = run_cli("run", table, "-p", "{text}?", *options)
    assert result.exit_code == 0, result.output
    answered = read_table(output)
    assert answered["from"].to_pylist() == [1, 1, 1, 3, 4, 5]
    assert answered["from_how"].to_pylist() == ["normalized", "asked", "exact", "asked", "asked", "asked"]
    assert answered["answer"].to_pylist() == ["good!", "good!", "good!", "Bad", TEXTS[4], "\x01 é"]
    assert "row 0 <- row 1" in result.stderr and "equal in normal form" in result.stderr


def test_failed_rows_have_no_source(table, tmp_path, cli_engine):
    cli_engine.fails = {3}
    result = run_cli("run", table, "-p", "{text}?", "--explain-dedup", "from", "-o", tmp_path / "o.parquet")
    assert result.exit_code == 1
    answered = read_table(tmp_path / "o.parquet")
    assert answered["from"].to_pylist()[3] is None and answered["from_how"].to_pylist()[3] == "failed"


def test_rules_by_column(table, cli_engine):
    options = ["--dedup", "normalized", "--normalize", "text=case,stem", "--normalize", "*=exact"]
    assert run_cli("run", table, "-p", "{*}?", *options).exit_code == 0
    assert len(cli_engine.asked) == 5  # 'Good' and 'good!' differ in punctuation


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--dedup", "fuzzy"], "dedup is 'fuzzy'"),
        (["--normalize", "text=case"], "add --dedup normalized"),
        (["--dedup", "normalized", "--normalize", "case"], "COLUMN=rule,rule"),
        (["--dedup", "normalized", "--normalize", "nope=case"], "'nope', which the prompt does not use"),
        (["--dedup", "normalized", "--normalize", "text=nope"], "no rule 'nope'"),
        (["--dedup", "semantic", "--similarity", "2"], "similarity is 2.0"),
        (["--explain-dedup", "text"], "has a column 'text' already"),
        (["--explain-dedup", "answer"], "cannot share the column 'answer'"),
        (["--cache", "nowhere/c.db"], "cannot open the result cache"),
        (["--audit", "-1"], "audit is -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_before_anything_is_sent(table, cli_engine, options, reason):
    result = run_cli("run", table, "-p", "{text}?", *options)
    assert result.exit_code == 2 and reason in result.stderr, result.output
    assert cli_engine.asked == [] and "Traceback" not in result.stderr


def test_a_second_run_takes_its_answers_from_the_cache(table, tmp_path, cli_engine):
    arguments = ["run", table, "-p", "{text}?", "--cache", tmp_path / "c.db"]
    first = run_cli(*arguments)
    asked = len(cli_engine.asked)
    second = run_cli(*arguments)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout == second.stdout and len(cli_engine.asked) == asked == 5
    assert "found in the result cache" in second.stderr
    assert "fake: 5 answers" in run_cli("cache", tmp_path / "c.db").stdout
    assert "5 answers dropped" in run_cli("cache", tmp_path / "c.db", "--clear").stdout
    run_cli(*arguments)
    assert len(cli_engine.asked) == 2 * asked


def test_the_cache_command_makes_no_file(tmp_path):
    result = run_cli("cache", tmp_path / "c.db")
    assert result.exit_code == 2 and "there is no file" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_audit_is_in_every_form_of_the_report(table, tmp_path, cli_engine):
    pytest.importorskip("matplotlib")
    options = ["--dedup", "normalized", "--audit", "3"]
    result = run_cli("run", table, "-p", "{text}?", *options, "--report", tmp_path / "r.json")
    assert result.exit_code == 0
    assert "merged beyond exact equality" in result.stderr and "95% interval" in result.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    asked, merged = report["audit"]["samples"]
    assert (asked["num_asked"], asked["share"]) == (3, 1.0)
    assert (merged["num_asked"], merged["share"], merged["changed"]) == (1, 0.0, [[0, "good!", "Good"]])
    assert report["dedup"]["merged"] == {"exact": 1, "normalized": 1}
    run_cli("run", table, "-p", "{text}?", *options, "--report", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "95% interval" in page and "row 0 &lt;- row 1" in page


def test_a_dry_run_and_a_plan_count_merged_rows(table, cli_engine):
    exact, merged = (
        run_cli("run", table, "-p", "{text}?", "--dry-run", "--dedup", mode).stderr for mode in ("exact", "normalized")
    )
    assert "5 (1 duplicates not sent)" in exact and "4 (2 duplicates not sent)" in merged
    plan = run_cli("plan", table, "-p", "{text}?", "--dedup", "normalized", "--planner", "original")
    assert "6 rows (4 distinct)" in plan.stdout


def test_an_embedder_may_be_a_function():
    llm = RelationalLLM(engine=FakeEngine())
    frame = pa.table({"a": ["a fine place", "a fine place!", "other"]})
    result = llm.run(frame, "{a}?", dedup="semantic", embedder=HashedTrigrams(), similarity=0.8, progress=False)
    assert result.origins.count("semantic") == 1


def test_rules_without_columns_are_refused():
    with pytest.raises(RelationalError, match=r"normalize is 'default': give rules by column, e\.g\. \{'\*'"):
        RelationalLLM(engine=FakeEngine()).run(pa.table({"a": ["x"]}), "{a}?", dedup="normalized", normalize="default")


@pytest.mark.parametrize("options", [["--audit", "-1"], ["--seed", "-1"]])
def test_a_dry_run_refuses_what_a_run_refuses(table, options):
    result = run_cli("run", table, "-p", "{text}?", "--dry-run", *options)
    assert result.exit_code == 2 and "from 0" in result.stderr


def test_a_taken_column_is_named_with_all_options_that_name_columns(table):
    result = run_cli("run", table, "-p", "{text}?", "--explain-dedup", "text")
    assert result.exit_code == 2 and "--explain-dedup" in result.stderr

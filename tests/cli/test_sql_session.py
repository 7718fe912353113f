"""The commands ``sql`` and ``explain``."""

from __future__ import annotations

import duckdb
import pandas as pd
import pytest
from fake_engine import FakeEngine
from hashed_embedder import HashedTrigrams
from typer.testing import CliRunner

from vllm_relational import embed
from vllm_relational.cli.app import app
from vllm_relational.config import DEFAULT_EMBEDDER
from vllm_relational.table import read_table

QUERY = "SELECT n, LLM('Sum up {text}', text) AS s FROM t ORDER BY n"


@pytest.fixture
def db(tmp_path):
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as plain:
        plain.execute("CREATE TABLE t AS SELECT * FROM (VALUES (1, 'good'), (2, 'bad'), (3, NULL)) v(n, text)")
    return path


@pytest.fixture
def engine(cli_engine) -> FakeEngine:
    cli_engine.answer = lambda row: row["text"].upper()
    return cli_engine


def run(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


def test_rows_are_printed_and_the_report_is_on_standard_error(db, engine):
    result = run("sql", QUERY, "--db", db)
    assert result.exit_code == 0, result.output
    assert "GOOD" in result.stdout and "NULL" in result.stdout and "prompts asked" not in result.stdout
    assert "2 prompts asked" in result.stderr
    assert engine.closed


def test_the_layout_of_all_prompts_can_be_set(db, engine):
    result = run("sql", QUERY, "--db", db, "--layout", "row-first")
    assert result.exit_code == 0 and "layout: the row first, the question behind it" in result.stderr
    assert all(prompt.user.startswith("{\n") for prompt in engine.asked)
    result = run("explain", QUERY, "--db", db, "--layout", "rows")
    assert result.exit_code == 2 and "layout is 'rows': use one of question-first, row-first" in result.stderr


@pytest.mark.parametrize("name", ["out.csv", "out.parquet", "it's.jsonl", "out.tsv"])
def test_rows_are_written_by_suffix(db, engine, tmp_path, name):
    result = run("sql", QUERY, "--db", db, "-o", tmp_path / name)
    assert result.exit_code == 0 and result.stdout == ""
    assert read_table(tmp_path / name)["s"].to_pylist() == ["GOOD", "BAD", None]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "shop.duckdb"])


def test_a_file_of_statements(db, engine, tmp_path):
    script = tmp_path / "q.sql"
    script.write_text(
        "-- a comment; with LLM(\nCREATE TEMP TABLE u AS SELECT 'x' AS text;\nSELECT LLM('{text}', text) FROM u;\n"
    )
    result = run("sql", "--file", script)
    assert result.exit_code == 0 and "X" in result.stdout
    result = run("explain", "--file", script)
    assert result.exit_code == 0 and "1 rows in, 1 distinct" in result.stdout


def test_an_embedder_narrows_a_semantic_join(db, engine, monkeypatch):
    monkeypatch.setattr(embed, "load_embedder", lambda name: HashedTrigrams())
    join = "SELECT a.n, b.n FROM t a JOIN t b ON LLM_FILTER('{a.text} and {b.text} are the same', a.text, b.text)"
    result = run("explain", join, "--db", db, "--embedder", "model", "--candidates", 1)
    assert result.exit_code == 0 and "at most 2 candidates of 4 pairs are asked" in result.stdout
    assert "--candidates is 0" in run("explain", join, "--db", db, "--embedder", "model", "--candidates", 0).stderr


def test_spellings_are_merged_and_audited_and_answers_cached(db, engine, tmp_path):
    query = "SELECT LLM('Sum up {x}', x) FROM (VALUES ('Good'), ('good!'), ('Bad')) t(x)"
    engine.answer = lambda row: row["x"]
    merged = ("--db", db, "--dedup", "normalized", "--normalize", "x=default", "--seed", 1)
    assert "3 distinct, 1 inherit the answer" in run("explain", query, *merged).stdout
    for asked in ("2 asked, 1 inherited", "0 asked, 1 inherited, 2 from the result cache"):
        result = run("sql", query, *merged, "--cache", tmp_path / "cache.db", "--audit", 1)
        assert result.exit_code == 0 and asked in result.stderr and "1 of 1 the same" in result.stderr


def test_one_embedder_serves_semantic_joins_and_semantic_deduplication(db, engine, monkeypatch):
    named = []
    monkeypatch.setattr(embed, "load_embedder", lambda name: named.append(name) or HashedTrigrams())
    similar = ("--dedup", "semantic", "--similarity", 0.1, "--similar", "text")
    assert run("sql", QUERY, "--db", db, *similar, "--embedder", "mine").exit_code == 0
    assert run("sql", QUERY, "--db", db, *similar).exit_code == 0
    assert set(named) == {"mine", DEFAULT_EMBEDDER}


def test_explain_asks_nothing_and_prices_it(db, engine):
    result = run("explain", QUERY, "--db", db, "--rates", "1000,100", "--prices", "1,0.5,2")
    assert result.exit_code == 0 and "2 distinct" in result.stdout and "$" in result.stdout
    assert engine.asked == []


def test_failed_rows_are_status_1(db, engine):
    engine.fails = {0}
    result = run("sql", QUERY, "--db", db)
    assert result.exit_code == 1 and "failed: 1 inputs, listed in llm_errors" in result.stderr


def test_answers_are_kept_in_a_side_database(db, engine, tmp_path):
    for _ in range(2):
        assert run("sql", QUERY, "--db", db, "--side", tmp_path / "answers.duckdb").exit_code == 0
    assert len(engine.asked) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("sql", "SELECT nope FROM t"), "nope"),
        (("sql", "SELECT LLM('{txt}', text) FROM t"), "line 1, column 8: the prompt names {txt}"),
        (("sql", "SELECT LLM('{text}', text FROM t"), "line 1"),
        (("sql",), "argument or with --file"),
        (("sql", "--file", "none.sql"), "cannot read none.sql"),
        (("sql", "SELECT 1", "-o", "out.xlsx"), "use a name that ends in"),
        (("sql", QUERY, "--dedup", "fuzzy"), "use one of exact, normalized, semantic"),
        (("sql", QUERY, "--dedup", "normalized", "--normalize", "text"), "write COLUMN=rule,rule"),
        (("sql", QUERY, "--dedup", "normalized", "--normalize", "text=cases"), "no rule 'cases'"),
        (("sql", QUERY, "--audit", "-1"), "whole number of rows from 0"),
        (("sql", "SELECT 1", "--rates", "fast"), "write 2 numbers"),
        (("explain", "SELECT 1"), "no LLM function"),
        (("explain", f"{QUERY}; {QUERY}"), "one by one"),
    ],
)
def test_errors_take_one_line(db, engine, arguments, reason):
    result = run(*arguments, "--db", db)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and reason in line
    assert engine.asked == []


def test_a_misspelt_database_is_not_made(engine, tmp_path):
    result = run("sql", "SELECT 1", "--db", tmp_path / "shp.duckdb")
    assert result.exit_code == 2 and "does not exist" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_over_a_csv_needs_no_database(engine, tmp_path):
    pd.DataFrame({"text": ["a"]}).to_csv(tmp_path / "t.csv", index=False)
    assert "A" in run("sql", f"SELECT LLM('{{text}}', text) FROM '{tmp_path / 't.csv'}'").stdout

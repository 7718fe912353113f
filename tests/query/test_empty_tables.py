"""A table without rows is a result: its columns and types, nothing asked, no engine started, exit status 0."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from fake_engine import FakeEngine
from hashed_embedder import HashedTrigrams
from typer.testing import CliRunner

from vllm_relational import RelationalLLM
from vllm_relational.cli import options as cli_options
from vllm_relational.cli.app import app
from vllm_relational.query import embedders
from vllm_relational.records import RelationalError
from vllm_relational.retrieval import TextIndex, build_index
from vllm_relational.sql import connect
from vllm_relational.table import read_table, write_table


class Sleeping(FakeEngine):
    def start(self):
        raise AssertionError("an engine was started for nothing")


@pytest.fixture
def llm() -> RelationalLLM:
    return RelationalLLM(engine=Sleeping())


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_options, "make_llm", lambda *_, **__: RelationalLLM(engine=Sleeping()))
    Path("t.csv").write_text("text,n\n")
    return tmp_path


def command(*arguments: object) -> str:
    """What a command that must succeed prints."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


# ------------------------------------------------------------------------------------------------------------ Python
ROW = {"text": ["x"], "n": [1]}
KINDS = {
    "pandas": lambda: pd.DataFrame(ROW, index=["k"])[:0],
    "polars": lambda: pl.DataFrame(ROW)[:0],
    "arrow": lambda: pa.table(ROW)[:0],
    "duckdb": lambda: duckdb.sql("SELECT 'x' AS text, 1 AS n LIMIT 0"),
}


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({}, ("object", pl.String, pa.string())),
        ({"choices": ["yes", "no"], "dedup": "normalized", "audit": 2}, ("object", pl.String, pa.string())),
        ({"range": (1, 5), "order": "ggr"}, ("Int64", pl.Int64, pa.int64())),
        ({"schema": {"type": "object"}, "nulls": "keep"}, ("object", pl.String, pa.string())),
    ],
)
def test_answers_have_the_type_of_other_answers(llm, options, kinds):
    pandas, polars, arrow = kinds
    answers = {kind: llm.query(make(), "q {text} {*}?", **options) for kind, make in KINDS.items()}
    assert [len(column) for column in answers.values()] == [0] * 4
    assert (answers["pandas"].dtype, answers["pandas"].index.dtype) == (pandas, pd.DataFrame(index=["k"]).index.dtype)
    assert answers["polars"].dtype == polars
    assert answers["arrow"].type == answers["duckdb"].type == arrow
    assert (llm.last_result.report.num_rows, llm.last_result.report.num_asked) == (0, 0)


def test_the_accessor(llm):
    frame = pd.DataFrame(ROW)[:0]
    assert list(frame.llm.filter("{text} is good").columns) == ["text", "n"]
    assert frame.llm.filter("{text} is good").dtypes.equals(frame.dtypes)
    assert len(frame.llm.map("{text}?")) == len(frame.llm.classify("{text}?", ["a", "b"])) == 0
    assert frame.llm.score("{text}?", 1, 5).dtype == "Int64"


@pytest.mark.parametrize("order", ["original", "fixed", "fixed_v2", "ggr", "tree"])
def test_every_planner(llm, order):
    report = llm.plan(pd.DataFrame(ROW)[:0], "{*}?", order=order)
    assert (report.num_distinct, report.predicted.prompt_tokens, report.ceiling) == (0, 0, 0.0)


def test_a_null_in_every_row_asks_nothing_either(llm):
    result = llm.run(pa.table({"text": pa.array([None, None], pa.string())}), "{text}?")
    assert result.answers == [None, None] and result.num_failed == 2
    assert all("column 'text' is null" in reason for reason in result.errors)


@pytest.mark.parametrize("source", [pd.DataFrame(), pd.DataFrame(index=[1, 2])])
@pytest.mark.parametrize("prompt", ["{*}?", "{text}?"])
def test_a_table_without_columns_cannot_be_asked_about(llm, source, prompt):
    with pytest.raises(RelationalError, match="The table has no columns"):
        llm.query(source, prompt)


# ------------------------------------------------------------------------------------------------------ command line
@pytest.mark.parametrize("name", ["o.parquet", "o.arrow", "o.csv", "o.tsv"])
def test_run_into_every_format(folder, name):
    command("run", "t.csv", "-p", "{text}?", "-o", name)
    expected = pa.schema([(column, pa.string()) for column in ("text", "n", "answer", "error")])
    table = read_table(folder / name)
    assert table.num_rows == 0 and [table.schema.field(column.name) for column in expected] == list(expected)


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow", "o.csv", "o.tsv", "o.jsonl", "o.ndjson"])
def test_an_output_without_rows_is_an_input(folder, name):
    command("run", "t.csv", "-p", "{text}?", "-o", name)
    columns = ["--answer-column", "second", "--error-column", "e", "--status-column", "s"]
    command("run", name, "-p", "{text} {n} {answer}?", "-o", f"next-{name}", *columns)
    names = read_table(folder / f"next-{name}").column_names
    assert names == [*read_table(folder / name).column_names, "second", "e", "s"]


def test_run_keeps_the_types_of_its_input(folder):
    write_table(
        pa.table({"text": pa.array([], pa.string()), "l": pa.array([], pa.list_(pa.int8()))}), folder / "t.parquet"
    )
    command("run", "t.parquet", "-p", "{text}?", "--range", "1,5", "-o", "o.parquet", "--report", "r.json")
    schema = read_table(folder / "o.parquet").schema
    assert (schema.field("l").type, schema.field("answer").type) == (pa.list_(pa.int8()), pa.int64())
    assert json.loads((folder / "r.json").read_text())["num_rows"] == 0


def test_run_as_json_lines(folder):
    assert command("run", "t.csv", "-p", "{text}?", "--limit", 3, "--cache", "c.db", "--explain-dedup", "from") == ""
    command("run", "t.csv", "-p", "{text}?", "-o", "o.jsonl", "--report", "r.html")
    assert (folder / "o.jsonl").read_bytes() == b""


def test_dry_run_bench_and_plan(folder):
    command("run", "t.csv", "-p", "{text}?", "--dry-run")
    command("bench", "t.csv", "-p", "{text}?", "--budget", 3, "--csv", "b.csv", "-o", "o.csv")
    assert read_table(folder / "b.csv")["rows"].to_pylist() == ["0", "0", "0"]
    lines = command("plan", "t.csv", "--json").splitlines()
    assert [json.loads(line)["rows"] for line in lines] == [0] * 5
    command("plan", "t.csv", "--html", "p.html")


@pytest.mark.parametrize("name", ["i", "i-near"])
def test_an_index_without_passages_finds_none(folder, monkeypatch, name):
    monkeypatch.setattr(embedders, "open_embedder", lambda name: lambda texts: 1 / 0)
    search = "approximate" if name == "i-near" else "exact"
    command("index", "t.csv", "text", "-o", name, "--embedder", "m", "--search", search)
    Path("q.csv").write_text("q\nwhere\n")
    (found,) = map(json.loads, command("retrieve", "q.csv", "q", "--index", name, "-k", 2).splitlines())
    assert found == {"q": "where", "context_1": None, "context_2": None}


def test_questions_without_rows_are_not_embedded(folder, monkeypatch):
    build_index(pa.table({"text": ["one", "two"]}), "text", HashedTrigrams(64), "i", source="p.csv")
    Path("p.csv").write_text("text\none\ntwo\n")
    monkeypatch.setattr(embedders, "open_embedder", lambda name: lambda texts: 1 / 0)
    command("retrieve", "t.csv", "text", "--index", "i", "-k", 2, "-o", "o.csv")
    assert read_table(folder / "o.csv").column_names == ["text", "n", "context_1", "context_2"]
    command("run", "t.csv", "-p", "{text} {context_1}?", "--retrieve", "text", "--index", "i", "-k", 1, "-o", "r.csv")
    assert read_table(folder / "r.csv").column_names == ["text", "n", "context_1", "answer", "error", "status"]


def test_the_index_itself_says_so(folder):
    table = pa.table({"text": pa.array([], pa.string())})
    build_index(table, "text", lambda texts: 1 / 0, "i")
    found = TextIndex.load("i", table, lambda texts: 1 / 0).retrieve(["a", "b"], 3)
    assert found.ids.tolist() == [[-1] * 3] * 2 and np.isnan(found.scores).all() and found.scores.shape == (2, 3)


# --------------------------------------------------------------------------------------------------------------- SQL
@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT n, LLM('q {text}', text) AS y FROM t", []),
        ("SELECT n, LLM_AGG('q {text}', text) AS y FROM t GROUP BY n", []),
        ("SELECT LLM_AGG('q {text}', text) AS y FROM t", [(None,)]),
        ("SELECT count(*) FROM t WHERE LLM_FILTER('q {text}', text)", [(0,)]),
        ("SELECT LLM_SCORE('q {text}', 1, 5, text) AS y FROM t ORDER BY y LIMIT 2", []),
        ("SELECT a.n FROM t AS a JOIN t AS b ON LLM_FILTER('{text} and {n}', a.text, b.n)", []),
    ],
)
def test_sql(llm, query, rows):
    with connect(llm=llm) as connection:
        connection.sql("CREATE TABLE t(text VARCHAR, n INTEGER)")
        result = connection.sql(query)
        assert result.fetchall() == rows
        assert connection.last_run.asked == 0


def test_the_types_of_sql(llm):
    with connect(llm=llm) as connection:
        connection.sql("CREATE TABLE t(text VARCHAR)")
        calls = "LLM('{text}', text), LLM_SCORE('{text}', 1, 5, text), LLM_FILTER('{text}', text)"
        assert connection.sql(f"SELECT {calls} FROM t").arrow().schema.types == [pa.string(), pa.int64(), pa.bool_()]

"""The commands ``index`` and ``retrieve``, and ``run --retrieve``."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from hashed_embedder import HashedTrigrams
from typer.testing import CliRunner

pytest.importorskip("faiss", reason="pip install 'vllm-relational[semantic]'")

from vllm_relational import embed
from vllm_relational.cli.app import app
from vllm_relational.engine import vllm_embedder

TEXTS = ["red apples grow", "green cars drive", "blue birds sing"]
PROMPT = "Answer {question} from {context_1} and {context_2}"


@pytest.fixture
def embedder(monkeypatch) -> HashedTrigrams:
    """Stands in for whatever embedding model is named."""
    embedder = HashedTrigrams(256)
    monkeypatch.setattr(embed, "load_embedder", lambda name: embedder)
    return embedder


@pytest.fixture
def folder(tmp_path, embedder):
    """Passages, their index, and questions."""
    pq.write_table(pa.table({"text": TEXTS, "n": [1, 2, 3]}), tmp_path / "passages.parquet")
    pq.write_table(pa.table({"question": ["red apples?", "birds that sing?"]}), tmp_path / "questions.parquet")
    made = call("index", tmp_path / "passages.parquet", "text", "-o", tmp_path / "p.index", "--embedder", "M")
    assert made.exit_code == 0, made.output
    assert made.stdout == "" and "3 passages of 'text', 256 dimensions, exact" in made.stderr
    return tmp_path


def call(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def error_of(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert result.stdout == "" and line.startswith("error: ")
    return line


def retrieve(folder, *more: object):
    return ("retrieve", folder / "questions.parquet", "question", "--index", folder / "p.index", *more)


def test_passages_become_columns(folder):
    result = call(*retrieve(folder, "-k", 2, "--ordered", "-o", folder / "out.parquet"))
    assert result.exit_code == 0, result.output
    out = pq.read_table(folder / "out.parquet")
    assert out.column_names == ["question", "context_1", "context_2"]
    assert out["context_1"].to_pylist() == [TEXTS[0], TEXTS[2]]


def test_without_output_rows_go_to_standard_output(folder):
    rows = [json.loads(line) for line in call(*retrieve(folder, "-k", 1, "--name", "evidence")).stdout.splitlines()]
    assert rows[0] == {"question": "red apples?", "evidence_1": TEXTS[0]}


def test_a_moved_index_finds_its_table_again_only_where_it_is_told(folder):
    (folder / "passages.parquet").rename(folder / "elsewhere.parquet")
    # The command run has no such option: the message names the command that has.
    message = "passages.parquet, now gone: name the table of the passages, vllm-relational retrieve --passage-table"
    assert message in error_of(*retrieve(folder))
    told = call(*retrieve(folder, "-k", 1, "--passage-table", folder / "elsewhere.parquet"))
    assert told.exit_code == 0, told.output


def test_folder_and_index_may_move_together(folder, tmp_path_factory):
    new = tmp_path_factory.mktemp("new")
    for file in folder.iterdir():
        file.rename(new / file.name)
    assert call(*retrieve(new, "-k", 1)).exit_code == 0


def test_a_stale_index_is_refused_or_rebuilt(folder):
    pq.write_table(pa.table({"text": [*TEXTS, "new"]}), folder / "passages.parquet")
    assert "is stale" in error_of(*retrieve(folder, "-k", 1))
    assert call(*retrieve(folder, "-k", 4, "--rebuild")).exit_code == 0
    assert call(*retrieve(folder, "-k", 4)).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", 9], "holds 3 distinct passages"),
        (["-k", 1, "-o", "out.what"], "unknown output format"),
        (["--limit", 0], "--limit is 0"),
    ],
)
def test_errors_are_one_line(folder, arguments, message):
    assert message in error_of(*retrieve(folder, *arguments))


def test_index_says_what_is_wrong(folder):
    table, out = folder / "passages.parquet", folder / "x.index"
    assert "no column 'body'" in error_of("index", table, "body", "-o", out, "--embedder", "M")
    assert "'n' is int64, not text" in error_of("index", table, "n", "-o", out, "--embedder", "M")
    assert "use one of exact, approximate" in error_of(
        "index", table, "text", "-o", out, "--embedder", "M", "--search", "fuzzy"
    )


def test_the_index_names_the_whole_path_of_a_model_folder(folder, monkeypatch):
    monkeypatch.setattr(embed, "load_embedder", lambda name: HashedTrigrams(name=name))
    (folder / "model").mkdir()
    monkeypatch.chdir(folder)
    assert call("index", "passages.parquet", "text", "-o", "x.index", "--embedder", "model").exit_code == 0
    facts = json.loads((folder / "x.index.json").read_text())
    assert facts["embedder"] == str(folder / "model") and facts["source"] == "passages.parquet"


def test_an_embedding_engine_is_stopped_before_anything_else_starts(folder, monkeypatch):
    class Engine(HashedTrigrams):
        closed = 0

        def __init__(self, model):
            super().__init__(256, name=f"vllm:{model}")

        def close(self):
            Engine.closed += 1

    monkeypatch.setattr(vllm_embedder, "VllmEmbedder", Engine)
    table = folder / "passages.parquet"
    assert call("index", table, "text", "-o", folder / "p.index", "--embedder", "vllm:M", "--overwrite").exit_code == 0
    assert Engine.closed == 1
    assert call(*retrieve(folder, "-k", 1)).exit_code == 0  # by the name in the sidecar
    assert Engine.closed == 2
    error_of(*retrieve(folder, "-k", 9))
    assert Engine.closed == 3


# -------------------------------------------------------------------------------------------------- run --retrieve
@pytest.fixture
def engine(cli_engine) -> FakeEngine:
    cli_engine.answer = lambda row: " + ".join(sorted([row["context_1"], row["context_2"]]))
    return cli_engine


def run(folder, *more: object):
    return ("run", folder / "questions.parquet", "--prompt", PROMPT, *more)


def test_run_retrieves_and_asks(folder, engine):
    done = call(*run(folder, "--retrieve", "question", "--index", folder / "p.index", "-k", 2))
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert TEXTS[0] in rows[0]["answer"] and TEXTS[2] in rows[1]["answer"]
    assert {rows[0]["context_1"], rows[0]["context_2"]} == set(rows[0]["answer"].split(" + "))


def test_a_dry_run_retrieves_too(folder, engine):
    done = call(*run(folder, "--retrieve", "question", "--index", folder / "p.index", "-k", 2, "--dry-run"))
    assert done.exit_code == 0 and engine.asked == []


@pytest.mark.parametrize("option", [["--retrieve", "question"], ["--index", "p.index"]])
def test_retrieve_and_index_belong_together(folder, engine, option):
    assert "--retrieve COLUMN and --index PATH belong together" in error_of(*run(folder, *option))


def test_a_wrong_prompt_is_found_before_anything_is_embedded(folder, engine, embedder):
    embedder.asked.clear()
    line = error_of(*run(folder, "--retrieve", "question", "--index", folder / "p.index", "-k", 1))
    assert "'context_2', which the table does not have" in line
    assert embedder.asked == []


def test_answers_cannot_replace_passages(folder, engine):
    line = error_of(
        *run(folder, "--retrieve", "question", "--index", folder / "p.index", "-k", 2, "--answer-column", "context_1")
    )
    assert "has a column 'context_1' already" in line

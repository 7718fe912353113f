"""Retrieval as SQL uses it: indexes by path, opened once, with the model that they name."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hashed_embedder import HashedTrigrams
from typer.testing import CliRunner

pytest.importorskip("faiss", reason="pip install 'vllm-relational[semantic]'")

from fake_engine import FakeEngine

from vllm_relational import RelationalLLM, embed
from vllm_relational.cli import options as cli_options
from vllm_relational.cli.app import app
from vllm_relational.engine import vllm_embedder
from vllm_relational.query import embedders
from vllm_relational.query.embedders import open_embedder
from vllm_relational.records import RelationalError
from vllm_relational.retrieval import TextIndex, build_index
from vllm_relational.retrieval.retriever import Retriever
from vllm_relational.table import read_table

TEXTS = ["red apples grow", "green cars drive", "blue birds sing"]
QUERY = "SELECT LLM('{question} {context_1}', question, context_1) FROM 'q.parquet', retrieve(question, 'p.index', 1)"


class Releasing(HashedTrigrams):
    """Counts how often its memory was taken back."""

    released = 0

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def embedder(tmp_path, monkeypatch) -> Releasing:
    """The model of ``p.index`` in the working folder, whatever name it is opened by."""
    embedder = Releasing(256)
    monkeypatch.setattr(embed, "load_embedder", lambda name: embedder)
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"text": TEXTS}), "p.parquet")
    pq.write_table(pa.table({"question": ["apples?", "birds?", "apples?"]}), "q.parquet")
    build_index(read_table("p.parquet"), "text", embedder, "p.index", source="p.parquet")
    embedder.asked.clear()
    return embedder


def test_an_index_is_opened_once_and_again_when_it_changed(embedder, monkeypatch):
    loads = []
    load = TextIndex.load
    monkeypatch.setattr(TextIndex, "load", lambda *given: loads.append(given) or load(*given))
    retriever = Retriever()
    first = retriever.identity("p.index", 1)
    assert retriever.identity("./p.index", 3) == first and len(loads) == 1
    pq.write_table(pa.table({"text": ["new", *TEXTS]}), "p.parquet")
    with pytest.raises(RelationalError, match="is stale"):
        retriever.identity("p.index", 1)
    build_index(read_table("p.parquet"), "text", embedder, "p.index", source="p.parquet")
    assert retriever.identity("p.index", 1) != first and len(loads) == 3


def test_nothing_is_embedded_before_the_search_and_the_memory_of_the_model_is_free_after_it(embedder):
    retriever = Retriever()
    retriever.identity("p.index", 1)
    assert embedder.asked == [] and embedder.released == 0
    found = retriever.passages("p.index", pa.array(["apples?"]), 1, True)
    assert found.to_pylist() == [{"context_1": TEXTS[0]}] and embedder.released == 1


def test_the_memory_is_free_after_a_failed_search_too(embedder):
    other = Releasing(8)
    with pytest.raises(RelationalError, match="is stale"):
        Retriever(other).passages("p.index", pa.array(["apples?"]), 1, True)
    assert other.released == 1 and embedder.asked == []


def test_a_model_in_vllm_is_opened_by_its_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    made = open_embedder("vllm:model")
    assert isinstance(made, vllm_embedder.VllmEmbedder) and made.name == f"vllm:{tmp_path / 'model'}"
    made.release()  # before its engine was started


# ---------------------------------------------------------------------------------------------------------- commands
def call(monkeypatch, *arguments: str):
    engine = FakeEngine()
    monkeypatch.setattr(cli_options, "make_llm", lambda *_, **__: RelationalLLM(engine=engine))
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"}), engine


def test_the_command_sql_opens_the_index_with_the_model_that_it_names(embedder, monkeypatch):
    result, engine = call(monkeypatch, "sql", QUERY)
    assert result.exit_code == 0, result.output
    assert TEXTS[0] in result.stdout and "1 passage each" not in result.stdout
    assert "3 rows in, 2 distinct; 1 passage each" in result.stderr and len(engine.asked) == 2


def test_the_command_explain_asks_nothing(embedder, monkeypatch):
    result, engine = call(monkeypatch, "explain", QUERY)
    assert result.exit_code == 0 and "in FROM: RETRIEVE" in result.stdout and engine.asked == []
    result, _ = call(monkeypatch, "explain", QUERY.replace("'p.index', 1", "'p.index', 9"))
    assert result.exit_code == 2 and result.stderr.startswith("error: line 1, column 77: k is 9, but the index")


def test_pairs_of_a_join_come_from_the_same_opener(embedder, monkeypatch):
    opened = []
    monkeypatch.setattr(embedders, "open_embedder", lambda name: opened.append(name) or embedder)
    join = "SELECT 1 FROM 'p.parquet' a JOIN 'p.parquet' b ON LLM_FILTER('{a.text} is {b.text}', a.text, b.text)"
    result, _ = call(monkeypatch, "explain", join, "--embedder", "vllm:M", "--candidates", "1")
    assert result.exit_code == 0 and "at most 3 candidates of 9 pairs" in result.stdout and opened == ["vllm:M"]

"""The example queries on real vLLM: what EXPLAIN says is what the engine counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hashed_embedder import HashedTrigrams

pytest.importorskip("faiss", reason="pip install 'vllm-relational[semantic]'")

import vllm_relational.sql
from vllm_relational import RelationalLLM
from vllm_relational.retrieval import build_index
from vllm_relational.retrieval.retriever import Retriever
from vllm_relational.sql.cost import measured
from vllm_relational.sql.operator import Operator
from vllm_relational.table import read_table

ROOT = Path(__file__).parents[2]
QUERIES = sorted((ROOT / "examples" / "queries").glob("*.sql"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the queries find what they name: the table by its path in the repository, and the index of ``rag.sql``."""
    folder = tmp_path_factory.mktemp("queries")
    (folder / "examples").symlink_to(ROOT / "examples")
    source = folder / "examples" / "airbnb_reviews.parquet"
    build_index(read_table(source), "description", HashedTrigrams(256), folder / "homes.index", source=source)
    return folder


@pytest.fixture
def con(llm: RelationalLLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[vllm_relational.sql.Connection]:
    monkeypatch.chdir(folder)
    llm.reset_cache()
    retriever = Retriever(HashedTrigrams(256))
    with vllm_relational.sql.connect(llm=llm, max_tokens=4, retriever=retriever) as connection:
        yield connection


def asking(operators: Iterable[Operator]) -> list[Operator]:
    """The operators that ask the model."""
    return [operator for operator in operators if operator.question.function != "RETRIEVE"]


def text_of(name: str) -> str:
    return (ROOT / "examples" / "queries" / f"{name}.sql").read_text()


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_every_example_runs_and_measures_what_was_predicted(con: vllm_relational.sql.Connection, path: Path) -> None:
    rows = con.sql(path.read_text()).fetchall()

    assert rows and len(con.errors()) == 0
    for operator in asking(con.last_run.operators):
        predicted, counted = operator.reports[0].predicted, measured(operator.reports)
        assert counted is not None and counted.prompt == pytest.approx(predicted.prompt_tokens, rel=0.02)
        assert counted.hit_rate == pytest.approx(predicted.hit_rate, abs=0.02)


@pytest.mark.parametrize("name", ["filter", "projection", "aggregation", "rag"])
def test_explain_forecasts_what_the_engine_then_counts(con: vllm_relational.sql.Connection, name: str) -> None:
    *_, operator = con.forecast(text_of(name)).forecasts
    assert operator.is_certain and operator.counts == "exact"

    con.sql(text_of(name))

    (asked,) = asking(con.last_run.operators)
    counted = measured(asked.reports)
    assert counted.prompt == pytest.approx(operator.tokens.prompt, rel=0.02)
    assert counted.hit_rate == pytest.approx(operator.tokens.hit_rate, abs=0.02)


def test_explain_of_a_second_stage_is_exact_once_the_first_is_answered(con: vllm_relational.sql.Connection) -> None:
    text = text_of("multi_llm").rstrip().rstrip(";")
    first, second = con.forecast(text).forecasts
    assert first.is_certain and second.waits_for == [first.operator.table.name]
    con.sql(f"SELECT count(*) FROM ({text.replace('LLM(', 'concat(', 1)})")  # asks the filter only

    second = con.forecast(text).forecasts[1]
    assert second.is_certain and second.to_ask > 10
    con.sql(text)

    counted = measured(con.last_run.operators[1].reports)
    assert counted.prompt == pytest.approx(second.tokens.prompt, rel=0.02)
    assert counted.hit_rate == pytest.approx(second.tokens.hit_rate, abs=0.02)


def test_rag_asks_about_the_rows_that_pass_and_shares_their_passages(con: vllm_relational.sql.Connection) -> None:
    query = text_of("rag")
    con.sql(query)

    search, asked = con.last_run.operators
    assert search.question.function == "RETRIEVE" and search.rows_in == asked.rows_in < 300
    ranked = con.forecast(query.replace("'homes.index', 3", "'homes.index', 3, ordered := true")).forecasts[-1]
    assert asked.reports[0].measured_hit_rate > ranked.tokens.hit_rate + 0.02


def test_many_values_are_summed_up_within_the_context(con: vllm_relational.sql.Connection) -> None:
    rows = con.sql(
        "SELECT property_type, count(*) AS n, LLM_AGG('What do guests say? {comments}', comments) AS said "
        "FROM 'examples/airbnb_reviews.parquet' GROUP BY property_type"
    ).fetchall()

    assert len(rows) == 8 and all(said is not None for _, _, said in rows)
    assert len(con.last_run.operators[0].reports) >= 2  # 300 reviews do not fit into 2,048 tokens
    assert len(con.errors()) == 0


def test_with_the_rows_first_the_second_call_finds_them_in_the_cache(llm: RelationalLLM, con) -> None:
    """The same statement in both layouts, each from a cold cache."""
    text, hit_rates, computed = text_of("guest_books"), {}, {}
    for layout in (None, "question-first"):
        llm.reset_cache()
        with vllm_relational.sql.connect(llm=llm, max_tokens=4, layout=layout) as fresh:
            fresh.sql(text)
            reports = [operator.reports for operator in fresh.last_run.operators]
        counted = [measured(one) for one in reports]
        assert counted[1].prompt > 5000  # enough homes pass the first call
        for (report,), tokens in zip(reports, counted, strict=True):
            assert tokens.prompt == pytest.approx(report.predicted.prompt_tokens, rel=0.02)
            assert tokens.hit_rate == pytest.approx(report.predicted.hit_rate, abs=0.02)
        hit_rates[layout] = counted[1].hit_rate
        computed[layout] = sum(tokens.prompt - tokens.cached for tokens in counted)
        print(layout, [(tokens.prompt, tokens.hit_rate) for tokens in counted])

    assert hit_rates[None] > 0.85 and hit_rates["question-first"] < 0.3
    assert computed[None] < 0.9 * computed["question-first"]


def test_explain_chooses_the_layout_that_the_run_has(con: vllm_relational.sql.Connection) -> None:
    first, second = con.forecast(text_of("guest_books")).forecasts
    assert first.is_certain and first.operator.layout == second.operator.layout == "row-first"

    con.sql(text_of("guest_books"))

    operators = con.last_run.operators
    assert [operator.layout for operator in operators] == ["row-first", "row-first"]
    counted = measured(operators[0].reports)
    assert counted.prompt == pytest.approx(first.tokens.prompt, rel=0.02)
    assert counted.hit_rate == pytest.approx(first.tokens.hit_rate, abs=0.02)

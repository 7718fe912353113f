"""Passages, layouts, merging by meaning, audit, result cache and side file in one statement, as if each were alone."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import ByteTokenizer, parts_of
from hashed_embedder import HashedTrigrams
from oracle_engine import answer
from token_engine import TokenEngine

pytest.importorskip("faiss", reason="pip install 'vllm-relational[semantic]'")

import vllm_relational.sql
from vllm_relational import RelationalLLM
from vllm_relational.records import Completion, EngineDiedError, Prompt
from vllm_relational.retrieval import build_index
from vllm_relational.retrieval.retriever import Retriever
from vllm_relational.sql import Connection
from vllm_relational.table import read_table

pytestmark = pytest.mark.slow  # whole statements with everything switched on

ASK = """
SELECT n.id, p.context_1, LLM('Sum up {topic} {body} by {context_1}', n.topic, n.body, p.context_1) AS s
FROM note n, retrieve(n.topic, 'p.index', 1) AS p WHERE LLM_FILTER('{body} fits {context_1}', n.body, p.context_1)
ORDER BY n.id
"""
# The passages wait for the filter, so they cannot take part in the choice of layouts.
LATE = """
SELECT n.id, LLM('Sum up {body} by {context_1}', n.body, retrieve(n.topic, 'p.index', 1).context_1) AS s
FROM note n
WHERE LLM_FILTER('{body} is good', n.body) AND LLM_FILTER('Is {body} {topic}?', n.body, n.topic) ORDER BY n.id
"""
SEMANTIC = {"dedup": "semantic", "similarity": 0.99}


class ByMeaning(TokenEngine):
    """Answers by the question and the body, whatever its case: rows that are merged would say the same."""

    def _complete(self, prompt: Prompt) -> Completion:
        self.batches[-1].append(prompt)
        user = bytes(prompt.token_ids).decode().partition("\n")[2]
        question, row = parts_of(Prompt(prompt.key, system="", user=user))
        number = zlib.crc32((question + row["body"].casefold()).encode()) >> 3
        cached = self.cache.request(prompt.token_ids)
        text, length = answer(number, self.answer_format), len(prompt.token_ids)
        return Completion(prompt.key, text, prompt_tokens=length, output_tokens=1, cached_tokens=cached)


def word(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest()[:14]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Connection]]:
    """``opened(engine, **options)``: 40 notes in pairs that differ in case, and an index of 20 passages."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"passage": [f"about {word(topic)}" for topic in range(20)]}), "p.parquet")
    build_index(read_table("p.parquet"), "passage", HashedTrigrams(512), "p.index", source="p.parquet")
    topics = [word(topic) for topic in range(20) for _ in range(2)]
    cased = [topic.upper() if number % 2 else topic for number, topic in enumerate(topics)]
    notes = pa.table({"id": range(40), "topic": cased, "body": [f"note {topic} " * 15 for topic in cased]})
    made: list[Connection] = []

    def make(engine: TokenEngine, **options) -> Connection:
        llm = RelationalLLM(engine=engine)
        llm._tokenizer = ByteTokenizer()
        con = vllm_relational.sql.connect(llm=llm, retriever=Retriever(HashedTrigrams(512)), **options)
        con.duckdb.register("__notes", notes)
        con.duckdb.execute("CREATE TABLE note AS SELECT * FROM __notes")
        made.append(con)
        return con

    yield make
    for con in made:
        con.close()


def llm_operators(con: Connection) -> list:
    return [operator for operator in con.last_run.operators if operator.question.function != "RETRIEVE"]


@pytest.mark.parametrize("query", [ASK, LATE])
@pytest.mark.parametrize("merging", [{}, SEMANTIC, {"dedup": "normalized"}])
def test_everything_together_gives_the_rows_of_the_plain_statement(opened, query, merging):
    embedder = {"embedder": HashedTrigrams(512)} if merging.get("dedup") == "semantic" else {}
    rows, asked = {}, {}
    for optimize in (True, False):
        engine = ByMeaning()
        con = opened(engine, optimize=optimize, audit=3, **merging, **embedder)
        rows[optimize] = con.sql(query).fetchall()
        asked[optimize] = sum(operator.asked for operator in llm_operators(con))
        assert len(con.errors()) == 0
        for operator in llm_operators(con):
            report = operator.reports[0]
            assert report.predicted.prompt_tokens == report.measured_prompt_tokens
            assert all(sample.share in (None, 1.0) for sample in report.audit.samples)
            assert bool(operator.inherited) == bool(merging)
    assert rows[True] == rows[False] == opened(ByMeaning(), optimize=False).sql(query).fetchall() and rows[True]
    assert asked[True] <= asked[False]


def test_explain_foretells_a_run_over_passages_with_rows_first(opened):
    engine = ByMeaning()
    con = opened(engine)
    plan, text = con.forecast(ASK), con.explain(ASK).replace("\n", " ")
    assert engine.batches == [] and "rows before questions in llm.op_2, llm.op_3" in text
    con.sql(ASK)
    first, second = llm_operators(con)
    assert [first.layout, second.layout] == ["row-first", "row-first"]
    expected = plan.forecasts[1]
    assert expected.tokens.prompt == first.reports[0].measured_prompt_tokens
    assert expected.tokens.cached == first.reports[0].measured_cached_tokens
    assert second.reports[0].measured_cached_tokens > 0.5 * second.reports[0].measured_prompt_tokens


def test_the_search_for_a_choice_counts_as_the_statements_own(opened):
    con = opened(ByMeaning())
    con.sql(ASK)
    assert "40 rows in, 40 distinct; 1 passage each" in con.report()
    con.sql(ASK)
    assert "40 rows in, 40 distinct, 40 of them searched before; 1 passage each" in con.report()


def test_passages_that_wait_for_a_filter_are_not_searched_for_to_choose_a_layout(opened):
    con = opened(ByMeaning())
    con.sql(LATE)
    search = next(operator for operator in con.last_run.operators if operator.question.function == "RETRIEVE")
    assert len(search.table.answers) == search.asked == search.distinct < 40


def test_texts_are_not_embedded_for_each_layout(opened):
    embedder = HashedTrigrams(512)
    con = opened(ByMeaning(), embedder=embedder, **SEMANTIC)
    con.explain(ASK)
    assert len(embedder.asked) == 80  # 40 rows of either operator


def test_a_result_cache_knows_layouts_apart(opened, tmp_path):
    cache = tmp_path / "cache.db"
    for layout, asks in (("row-first", True), ("question-first", True), ("row-first", False), (None, False)):
        engine = ByMeaning()
        con = opened(engine, layout=layout, cache=cache)
        con.sql(ASK)
        assert bool(engine.batches and any(engine.batches)) is asks
        assert (sum(operator.cached for operator in llm_operators(con)) > 0) is not asks


def test_a_side_file_goes_on_over_passages_in_the_layout_that_it_had(opened, tmp_path):
    class Dies(ByMeaning):
        def ask(self, prompts, answer_format):
            self.dies_after = 5 if len(self.batches) == 1 else None
            yield from super().ask(prompts, answer_format)

    side = tmp_path / "answers.duckdb"
    con = opened(Dies(), side=side)
    with pytest.raises(EngineDiedError, match="send the statement again"):
        con.sql(ASK)
    con.close()
    con = opened(ByMeaning(), side=side, layout="question-first")
    assert "40 of them searched before" in con.explain(ASK)
    rows = con.sql(ASK).fetchall()
    second = llm_operators(con)[1]
    assert second.resumed == 5 and second.reports[0].layout == "row-first"
    assert con.report().count("layout: the row first") == 1  # of what was asked, not of what the settings say
    assert rows == opened(ByMeaning(), optimize=False).sql(ASK).fetchall()
    assert not list(tmp_path.glob("*.checkpoint.jsonl"))


def test_settings_of_merging_are_not_about_passages(opened):
    con = opened(ByMeaning(), dedup="normalized", normalize={"question": "case", "body": "case"})
    con.sql(ASK)
    assert "no question of the statement reads the column 'question'" in con.report()


def test_a_question_and_its_passages_are_no_semantic_join(opened):
    """Blocking by meaning and the bound on pairs are for tables whose rows are all put together."""
    nobody = lambda lefts, rights, k: [[] for _ in lefts]  # noqa: E731
    rows = opened(ByMeaning()).sql(ASK).fetchall()
    for options in ({"candidates": nobody, "audit_pairs": 0}, {"max_pairs": 1}):
        con = opened(ByMeaning(), **options)
        assert con.sql(ASK).fetchall() == rows and llm_operators(con)[0].asked == 40
        assert "blocking" not in con.report()

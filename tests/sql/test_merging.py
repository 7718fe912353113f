"""Deduplication beyond equal inputs, the result cache and the audit, for every operator of a statement."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest
from fake_engine import FakeEngine
from hashed_embedder import HashedTrigrams

import vllm_relational.sql
from vllm_relational import EngineDiedError, RelationalError, RelationalLLM
from vllm_relational.sql import Connection

WORDS = ["Good", "good!", "Bad", "bad.", "ugly"]
SUM = "SELECT text, LLM('Sum up {text}', text) AS s FROM word"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(lambda row: str(next(iter(row.values()))))


@pytest.fixture
def open_words(engine):
    """``open_words(**options)``: a table of words with repeated spellings."""
    opened: list[Connection] = []

    def make(engine: FakeEngine = engine, **options) -> Connection:
        con = vllm_relational.sql.connect(llm=RelationalLLM(engine=engine), **options)
        opened.append(con)
        words = ", ".join(f"('{word}', {n})" for n, word in enumerate(WORDS))
        con.sql(f"CREATE TABLE word AS SELECT * FROM (VALUES {words}) t(text, n)")
        return con

    yield make
    for con in opened:
        con.close()


def origins(con: Connection, table: str = "op_1") -> dict[str, tuple[str | None, str | None]]:
    return {key: (how, of) for key, how, of in con.sql(f"SELECT key, origin, source FROM llm.{table}").fetchall()}


def asked(engine: FakeEngine) -> list[str]:
    return sorted(str(prompt.user.partition('": "')[2].partition('",')[0]) for prompt in engine.asked)


def test_every_answer_says_how_it_came_and_from_which_input(open_words, engine):
    con = open_words(dedup="normalized")
    assert dict(con.sql(SUM).fetchall()) == {w: {"good!": "Good", "bad.": "Bad"}.get(w, w) for w in WORDS}
    assert origins(con) == {
        "Good": ("asked", "Good"),
        "good!": ("normalized", "Good"),
        "Bad": ("asked", "Bad"),
        "bad.": ("normalized", "Bad"),
        "ugly": ("asked", "ugly"),
    }
    assert asked(engine) == ["Bad", "Good", "ugly"]
    report = con.report()
    assert "5 distinct, 3 asked, 2 inherited" in report and "merged: 2 inputs equal in normal form" in report
    assert 'e.g. "good!" <- "Good"' in report


def test_a_failed_input_has_no_source(open_words, engine):
    engine.fails = {0}
    con = open_words(dedup="normalized")
    con.sql(SUM)
    failed = con.sql("SELECT key, origin, source FROM llm.op_1 WHERE status = 'failed' ORDER BY key").fetchall()
    assert failed == [("Bad", None, None), ("bad.", None, None)]


def test_rules_go_to_the_operators_that_read_the_column(open_words, engine):
    con = open_words(dedup="normalized", normalize={"TEXT": "case", "nowhere": "default"})
    con.sql("SELECT LLM('Sum up {text}', text), LLM('Is {n} odd?', n) FROM word")
    assert len(engine.asked) == 10  # 'Good' and 'good!' differ in punctuation, numbers have no normal form
    assert "no question of the statement reads the column 'nowhere'" in con.report()


def test_semantic_merging_leaves_operators_without_text_alone(open_words, engine):
    con = open_words(dedup="semantic", similarity=0.5, embedder=HashedTrigrams())
    con.sql("SELECT LLM('Sum up {text}', text), LLM('Is {n} odd?', n), LLM('{1}?', n::VARCHAR) FROM word")
    assert {how for how, _ in origins(con).values()} == {"asked", "semantic"}
    assert {how for table in ("op_2", "op_3") for how, _ in origins(con, table).values()} == {"asked"}
    assert "close in meaning" in con.report()


def test_only_the_columns_named_are_compared_by_meaning(open_words, engine):
    near = lambda texts: np.ones((len(texts), 2), np.float32)  # noqa: E731
    con = open_words(dedup="semantic", embedder=near, similar_columns="text")
    con.sql("SELECT LLM('{text} of {kind}', text, kind) FROM (SELECT *, left(lower(text), 1) AS kind FROM word)")
    assert len(engine.asked) == 3  # good, bad, ugly: the column that is not named must be equal
    con.sql("SELECT LLM('Is it a {kind}?', kind) FROM (SELECT left(lower(text), 1) AS kind FROM word)")
    assert len(engine.asked) == 6


def test_other_settings_do_not_take_inherited_answers_for_asked_ones(open_words, engine, tmp_path):
    side = tmp_path / "answers.duckdb"
    for settings, newly_asked in (
        ({"dedup": "normalized"}, 3),
        ({}, 2),  # 'good!' and 'bad.' had only inherited
        ({"dedup": "normalized"}, 0),  # what was asked serves any settings
    ):
        before = len(engine.asked)
        con = open_words(side=side, **settings)
        con.sql(SUM)
        assert len(engine.asked) - before == newly_asked
        if not settings:
            assert {how for how, _ in origins(con).values()} == {"asked"}
        assert con.sql("SELECT count(*) FROM llm.op_1").fetchall() == [(5,)]
        con.close()


def test_the_same_settings_go_on_from_inherited_answers(open_words, engine, tmp_path):
    for _ in range(2):
        con = open_words(side=tmp_path / "answers.duckdb", dedup="normalized", normalize={"text": ["default"]})
        con.sql(SUM)
        con.close()
    assert len(engine.asked) == 3


def test_explain_counts_what_other_settings_would_ask_again(open_words, tmp_path):
    side = tmp_path / "answers.duckdb"
    con = open_words(side=side, dedup="normalized")
    assert "5 distinct, 2 inherit the answer of another" in con.explain(SUM)
    con.sql(SUM)
    assert "5 distinct, 5 of them answered before" in con.explain(SUM)
    con.close()
    assert "5 distinct, 3 of them answered before" in open_words(side=side).explain(SUM)


def test_a_side_file_of_an_earlier_version_gets_the_columns(open_words, engine, tmp_path):
    side = tmp_path / "answers.duckdb"
    con = open_words(side=side)
    con.sql(SUM)
    con.close()
    with duckdb.connect(str(side)) as plain:
        for column in ("origin", "source", "merging"):
            plain.execute(f"ALTER TABLE op_1 DROP COLUMN {column}")
    con = open_words(side=side)
    con.sql("INSERT INTO word VALUES ('new', 9)")
    assert len(con.sql(SUM).fetchall()) == 6 and len(engine.asked) == 6
    assert origins(con)["new"] == ("asked", "new") and origins(con)["Good"] == (None, None)


def test_an_interrupted_run_is_not_resumed_under_other_settings(open_words, tmp_path):
    counts = []
    for settings, dies_after in (({"dedup": "normalized"}, 2), ({}, None)):
        engine = FakeEngine(lambda row: row["text"], dies_after=dies_after)
        con = open_words(engine, side=tmp_path / "answers.duckdb", **settings)
        if dies_after:
            with pytest.raises(EngineDiedError):
                con.sql(SUM)
        else:
            con.sql(SUM)
            assert {how for how, _ in origins(con).values()} == {"asked"}
        counts.append(len(engine.asked))
        con.close()
    assert counts == [3, 5]


def test_the_result_cache_serves_other_sessions(open_words, engine, tmp_path):
    for _ in range(2):
        con = open_words(cache=tmp_path / "cache.db")
        con.sql(SUM)
        con.sql("SELECT LLM_AGG('Sum up {text}', text) FROM word")
    assert len(engine.asked) == 6
    assert set(origins(con).values()) == {("cached", word) for word in WORDS}
    assert [how for how, _ in origins(con, "op_2").values()] == ["cached"]
    assert "0 asked, 1 from the result cache" in con.report()


def test_an_audit_asks_so_many_of_every_operator(open_words, engine):
    con = open_words(dedup="normalized", audit=2)
    con.sql("SELECT LLM('Sum up {text}', text), LLM('Is {n} odd?', n) FROM word")
    audits = [operator.reports[0].audit for operator in con.last_run.operators]
    assert [[sample.num_asked for sample in audit.samples] for audit in audits] == [[2, 2], [2, 0]]
    report = con.report()
    assert "audit, rows asked, again in original order: 2 of 2 the same" in report
    assert "audit, rows merged beyond exact equality, asked on their own: 0 of 2 the same" in report


def test_an_audit_over_the_batches_of_a_limit_stays_within_its_number(open_words):
    con = open_words(FakeEngine(lambda row: (row["n"] > 2 and "yes") or "no"), audit=3, batch_rows=2)
    con.sql("SELECT n FROM word WHERE LLM_FILTER('{n} is large', n) LIMIT 1")
    (operator,) = con.last_run.operators
    assert len(operator.reports) == 2 and operator.asked == 4
    assert [report.audit.samples[0].num_asked for report in operator.reports] == [2, 1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dedup": "fuzzy"}, "use one of exact, normalized, semantic"),
        ({"normalize": {"text": "case"}}, "add --dedup normalized"),
        ({"dedup": "semantic", "similarity": 2}, "give a cosine"),
        ({"audit": -1}, "whole number of rows from 0"),
        ({"similar_columns": "text"}, "add --dedup semantic"),
    ],
)
def test_settings_are_checked_when_the_session_opens(open_words, options, reason):
    with pytest.raises(RelationalError, match=reason):
        open_words(**options)


def test_an_unknown_rule_is_found_before_anything_is_asked(open_words, engine):
    con = open_words(dedup="normalized", normalize={"text": "cases"})
    with pytest.raises(RelationalError, match="no rule 'cases'"):
        con.sql("SELECT LLM('Is {n} odd?', n), LLM('Sum up {text}', text) FROM word")
    assert engine.asked == []

"""Statements and places in a text."""

from __future__ import annotations

import logging

import pytest

from vllm_relational.sql.parse import SQLError, engine_error, error_at, names_in, parse, statements


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("SELECT 1", [False]),
        ("SELECT llm('{x}', x) FROM t;", [True]),
        ("SELECT 1; ; SELECT LLM_FILTER ('{x}', x) FROM t; SELECT 2", [False, True, False]),
        ("SELECT 'a;b LLM(x)'; -- LLM('x', y);\nSELECT 2", [False, False]),
        ("SELECT LLM FROM t", [False]),
        ('SELECT "LLM"(1)', [True]),
        ("EXPLAIN SELECT LLM('{x}', x) FROM t", [True]),
        ("SELECT 'never closed", [False]),
        ("", []),
        (" ;; ", []),
    ],
)
def test_statements_are_told_apart_as_they_are_written(text, asks):
    found = statements(text)
    assert [statement.asks for statement in found] == asks
    assert all(statement.text in text for statement in found)


def test_names_that_may_be_tables():
    assert {"mine", "other", "b c"} <= names_in("SELECT 'text' FROM mine JOIN other USING (x), \"b c\" LIMIT 5")
    assert not {"text", "5"} & names_in("SELECT 'text' FROM mine LIMIT 5")
    assert "mine" in names_in("EXPLAIN SELECT * FROM mine")
    assert names_in("SELECT 'never closed") == set()


def test_a_syntax_error_points_at_the_word():
    with pytest.raises(SQLError) as caught:
        parse("SELECT a\n  FROM t\n WHERE (x > 3")
    first, shown, caret = str(caught.value).splitlines()
    assert first.startswith("line 3, column ") and shown == "   WHERE (x > 3" and "^" in caret


@pytest.mark.parametrize(
    ("query", "place", "says"),
    [
        ("SELECT LLM('x', text) FROM review WHERE", "line 1, column 35", 'near "WHERE"'),
        ("SELECT 'é', LLM('x', text),\n FROM FROM review", "line 2, column 7", 'near "FROM"'),
        ("SELECT LLM('x', text) FROM review GROUP BY", "line 1, column 41", 'near "BY"'),
        ("CREATE TABLE z AS SELECT LLM('x' FROM review", "line 1, column 34", 'near "FROM"'),
        ("SELECT first(id IGNORE NULLS), max(LLM('x', text)) FROM review", "line 1, column 1", "non-window functions"),
    ],
)
def test_a_syntax_error_is_said_in_duckdbs_words_at_its_place(con, engine, query, place, says):
    with pytest.raises(SQLError) as caught:
        con.sql(query)
    message = str(caught.value)
    assert message.startswith(place) and says in message and "sqlglot" not in message
    assert not engine.asked


def test_the_log_of_the_parser_is_not_for_users(con, caplog):
    con.sql("SELECT lag(stars IGNORE NULLS) OVER (ORDER BY id), LLM('x', text) FROM review WHERE LLM_FILTER('y', text)")
    with pytest.raises(SQLError):
        con.sql("SELECT first(id IGNORE NULLS), max(LLM('x', text)) FROM review")
    assert not caplog.records
    logging.getLogger("sqlglot").warning("a program's own use of it")
    assert len(caplog.records) == 1


def test_long_lines_are_cut_around_the_place():
    text = "SELECT " + "a, " * 200 + "nope FROM t"
    place = text.index("nope") + 1
    _, shown, caret = str(error_at(text, 1, place, "no such column")).splitlines()
    assert len(shown) < 130 and shown[caret.index("^") :].startswith("nope")


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ('Binder Error: Referenced column "b" not found in FROM clause!\nCandidate bindings: "a"', "line 2, column 3"),
        ("Catalog Error: Table with name T2 does not exist!\nDid you mean x?", "line 3, column 6"),
        ("Out of Memory Error: too bad", "Out of Memory"),
    ],
)
def test_what_duckdb_says_points_at_the_first_word_that_it_names(message, place):
    assert str(engine_error("SELECT a,\n  b\nFROM t2", ValueError(message))).startswith(place)


def test_prompts_and_schemas_may_stand_in_dollars(con, engine):
    query = """SELECT LLM($$Is it {text}'s?$$, text) FROM review WHERE id = 1"""
    assert len(con.sql(query).fetchall()) == 1
    assert engine.questions == ["""Is it "text"'s?"""]

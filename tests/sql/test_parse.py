"""Statements and places in a text."""

from __future__ import annotations

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

"""Only calls are rewritten: everything else of a statement means what it means to DuckDB, to the last type."""

from __future__ import annotations

import datetime

import pytest

from vllm_relational.records import RelationalError
from vllm_relational.sql.source_text import read, written

DAY = datetime.date(2023, 1, 2)


@pytest.mark.parametrize(
    ("expression", "value", "kind"),
    [
        ("DATE '2023-01-02'::VARCHAR", "2023-01-02", "VARCHAR"),
        ("TIMESTAMP '2023-01-02 03:04:05'::DATE", DAY, "DATE"),
        ("""JSON '{"a": 1}'::VARCHAR""", '{"a": 1}', "VARCHAR"),
        ("TIME '01:02:03'::VARCHAR", "01:02:03", "VARCHAR"),
        ("INTERVAL '3 days'::VARCHAR", "3 days", "VARCHAR"),
        ("round(jaro_winkler_similarity('abcd', 'abxy', 0.99), 2)", 0.0, "DOUBLE"),
        ("regexp_extract('2023-01', '(\\d+)-(\\d+)', ['y', 'm'])", {"y": "2023", "m": "01"}, None),
        ("string_split_regex('a1b', '[0-9]')", ["a", "b"], "VARCHAR[]"),
        ("(42,)", (42,), None),
        ("(1, 'a')", (1, "a"), None),
        ("'ab' ~ ANY(['x.*', 'a.*'])", True, "BOOLEAN"),
        ("'ab' ~ ALL(['x.*', 'a.*'])", False, "BOOLEAN"),
        ("5!", 120, "HUGEINT"),
        ("(1 + 2)!", 6, "HUGEINT"),
        ("2 ** 3", 8.0, "DOUBLE"),
        ("7 // 2", 3, "INTEGER"),
        ("'abc' ^@ 'ab'", True, "BOOLEAN"),
        ("'abc' ~~~ 'a*'", True, "BOOLEAN"),
        ("@(-3)", 3, "INTEGER"),
        ("E'a\\n\\'b'", "a\n'b", "VARCHAR"),
        ("$x$one $$ 'two$x$", "one $$ 'two", "VARCHAR"),
        ("1_000::BIGINT", 1000, "BIGINT"),
        (".5", None, "DECIMAL(1,1)"),
        ("[z * 2 for z in [1, 2, 3] if z > 1]", [4, 6], "INTEGER[]"),
        ("list_transform([1, 2], lambda z: z + 1)", [2, 3], "INTEGER[]"),
        ("'a' COLLATE NOCASE = 'A'", True, "BOOLEAN"),
        ("{'k': 1}.k + MAP {'a': 2}['a']", 3, "INTEGER"),
        ("'it''s' || /* a 'comment' */ '--'", "it's--", "VARCHAR"),
    ],
)
def test_what_has_nothing_to_do_with_calls_stays(con, expression, value, kind):
    query = f"SELECT {expression} AS v, LLM('{{text}}', text) AS a FROM review WHERE id = 1"
    result = con.sql(f"{query} AND ({expression}) IS NOT NULL")
    plain = con.duckdb.sql(f"SELECT {expression} AS v")
    assert result.types[0] == plain.types[0] and result.fetchall()[0][0] == plain.fetchall()[0][0]
    assert kind is None or str(result.types[0]) == kind
    assert value is None or result.fetchall()[0][0] == value


def test_nulls_are_ignored_where_the_user_says_so(con):
    query = "SELECT id, {} OVER (ORDER BY id) AS v, LLM('{{text}}', text) FROM review WHERE id BETWEEN 2 AND 5"
    ignored = con.sql(query.format("lag(stars IGNORE NULLS)")).fetchall()
    respected = con.sql(query.format("lag(stars)")).fetchall()
    assert [row[1] for row in ignored] == [None, 2, 2, 4]
    assert [row[1] for row in respected] == [None, 2, None, 4]
    answers = con.sql("SELECT last_value(LLM('{text}', text) IGNORE NULLS) OVER (ORDER BY id) FROM review").fetchall()
    assert all(answer is not None for (answer,) in answers[1:])


def test_arguments_that_differ_in_capitals_or_at_their_end_are_two(con, engine):
    con.sql("SELECT LLM('Compare', 'A' || text, 'a' || text) FROM review WHERE id = 1").fetchall()
    assert list(engine.rows()[0].values()) == ["Atext 1", "atext 1"]
    similar = "jaro_winkler_similarity('abcd', 'abxy', {})"
    con.sql(f"SELECT LLM('Both', {similar.format(0.1)}, {similar.format(0.99)})").fetchall()
    first, second = engine.rows()[1].values()
    assert float(first) > 0 and float(second) == 0


def test_columns_are_called_as_duckdb_calls_them(con):
    names = con.sql("SELECT id, id, id + 1, LLM('{text}', text), LLM('{text}', text) || 'x' FROM review").columns
    assert names == ["id", "id", "(id + 1)", "llm", """(llm('{text}', "text") || 'x')"""]


def test_statements_without_calls_go_to_duckdb_word_for_word(con):
    """sqlglot cannot read the first one; in the second the name of a function is but a text."""
    assert con.sql("SELECT 5! AS v, #1 FROM (SELECT 3)").fetchall() == [(120, 3)]
    assert con.sql("SELECT 'LLM(', jaro_winkler_similarity('abcd', 'abxy', 0.99)").fetchall() == [("LLM(", 0.0)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE kept AS {}",
        "CREATE OR REPLACE TEMP TABLE kept AS {}",
        "CREATE TABLE kept (day VARCHAR, a VARCHAR, n HUGEINT); INSERT INTO kept {}",
        "CREATE TABLE kept (n HUGEINT, a VARCHAR, day VARCHAR); INSERT INTO kept BY NAME {}",
    ],
)
def test_kept_answers_stand_beside_what_duckdb_computes(con, statement):
    query = "SELECT DATE '2023-01-02'::VARCHAR AS day, LLM('{text}', text) AS a, 5! AS n FROM review WHERE id = 1"
    con.sql(statement.format(query))
    rows = con.sql("SELECT day, a IN ('yes', 'no', 'maybe'), n, typeof(day), typeof(n) FROM kept").fetchall()
    assert rows == [("2023-01-02", True, 120, "VARCHAR", "HUGEINT")]


def test_a_clause_that_would_be_lost_is_refused_with_its_place(con, engine):
    with pytest.raises(RelationalError, match=r"line 1, column 58: a sample .*CREATE TEMP TABLE"):
        con.sql("SELECT LLM('{text}', text) FROM (FROM review TABLESAMPLE 10%)")
    assert not engine.asked


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a AS v FROM d WHERE x UNION ALL (SELECT b FROM d) ORDER BY 1 LIMIT 3",
        "FROM d SELECT y: f(a /* b */ , c) -- end",
        "WITH x AS MATERIALIZED (SELECT 1) SELECT count(*) FILTER (x > 1), string_agg(a, ',' ORDER BY b) FROM x",
        "SELECT 5!, x'41', (1, 2), NOT a IN (1, 2), - 2 ** 2 FROM d AS t(a, b) ASOF JOIN e USING (k)",
        "SELECT * EXCLUDE (a) REPLACE (b + 1 AS b) FROM (PIVOT d ON a IN (1, 2) USING sum(b)) LIMIT 10%",
    ],
)
def test_a_tree_that_was_not_changed_is_written_as_it_was_read(sql):
    from sqlglot import tokenize

    assert written(read(sql, tokenize(sql, read="duckdb"))[0]) == sql.removesuffix(" -- end")


@pytest.mark.parametrize("query", ["SELECT LLM('x \ud800 {text}', text) FROM review", "SELECT '\ud800'"])
def test_half_a_character_is_refused_with_its_place(con, query):
    with pytest.raises(RelationalError, match=r"line 1, column \d+: '\\ud800' is half of a character"):
        con.sql(query)
    with pytest.raises(RelationalError, match="half of a character"):
        con.explain(query)


def test_a_compiled_sqlglot_is_named_with_the_fix(con, engine, monkeypatch):
    monkeypatch.setattr("sqlglot.parser.__file__", "sqlglot/parser.cpython-311-x86_64-linux-gnu.so")
    with pytest.raises(RelationalError, match="pip uninstall sqlglotc"):
        con.sql("SELECT LLM('{text}', text) FROM review")
    assert not engine.asked
    assert con.sql("SELECT count(*) FROM review").fetchall() == [(40,)]

"""Parameters in statements with calls: ``?``, ``$1`` and ``$name``, in arguments of calls too."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest

from vllm_relational.records import RelationalError
from vllm_relational.sql.markers import markers
from vllm_relational.sql.parameters import numbered
from vllm_relational.sql.parse import names_in, statements


@pytest.mark.parametrize(
    ("query", "params", "ids"),
    [
        ("SELECT id, LLM('{text}', text) FROM review WHERE id < ? ORDER BY id", [3], [0, 1, 2]),
        ("SELECT id, LLM('{text}', text) FROM review WHERE id < $2 AND id > $1 ORDER BY id", [0, 3], [1, 2]),
        ("SELECT id, LLM('{text}', text) FROM review WHERE id < $n AND $n > 1 ORDER BY id", {"n": 2}, [0, 1]),
        ("SELECT id FROM review WHERE list_contains($ids, id) AND LLM('{text}', text) <> '' ORDER BY id",
         {"ids": [4, 2]}, [2, 4]),
        ("SELECT id FROM review WHERE ts = ? AND LLM('{text}', text) <> ?", [datetime.date(2023, 1, 4), ""], [3]),
        ("SELECT id, LLM('{text}', text) FROM review WHERE id < 9 ORDER BY id LIMIT ? OFFSET ?", [2, 1], [1, 2]),
        ("SELECT id FROM (SELECT id, LLM('{text}', text) AS a FROM review WHERE id < ?) WHERE a <> ? ORDER BY id",
         [2, "never"], [0, 1]),
        ("WITH x AS (FROM review WHERE id < $n) SELECT id FROM x WHERE LLM('{1} {2}', text, $n) <> '' ORDER BY 1",
         {"n": 2}, [0, 1]),
        ("SELECT id FROM review WHERE id IN (?,?) AND LLM('{text}', text)<>''", [3, 4], [3, 4]),
        ("SELECT id FROM review WHERE id IN ($1,$2)AND LLM('{text}', text)<>''", [3, 4], [3, 4]),
        ("SELECT id FROM review WHERE id > ?::INT+1 AND LLM('{1}', ?::VARCHAR) <> '' AND id < 5", [2, "x"], [4]),
        ("SELECT id FROM review WHERE id in [$a,$b] AND LLM('{text}', text) <> ''", {"a": 1, "b": 2}, [1, 2]),
    ],
)  # fmt: skip
def test_values_stand_for_parameters(con, query, params, ids):
    assert [row[0] for row in con.sql(query, params).fetchall()] == ids


def test_limits_and_prompts_are_known_to_the_planner(con, engine):
    query = "SELECT LLM(?, text), LLM_CLASSIFY($2, $3, text), LLM_SCORE($4, $5, $6, text) FROM review WHERE id = $7"
    query = query.replace("?", "$1")
    row = con.sql(query, ["Sum up {text}", "Mood of {text}", ["glad", "sad"], "Rate", -2, 2, 1]).fetchall()[0]
    assert row[1] in ("glad", "sad") and -2 <= row[2] <= 2
    assert any(question.startswith("Sum up") for question in engine.questions)
    before = len(engine.asked)
    con.sql("SELECT id, LLM('Limited {text}', text) FROM review ORDER BY id LIMIT $n", {"n": 3}).fetchall()
    assert len(engine.asked) - before == 3


def test_an_argument_may_be_a_parameter(con, engine):
    con.sql("SELECT LLM('{1} since {2}', text, $day) FROM review WHERE id = 1", {"day": datetime.date(2023, 1, 1)})
    assert [list(row.values()) for row in engine.rows()] == [["text 1", "2023-01-01"]]


VALUES = [3, 2**40, 2**100, 1.5, "text", True, Decimal("1.50"), datetime.date(2023, 1, 2), datetime.timedelta(days=1)]


@pytest.mark.parametrize("value", [*VALUES, None, [1, 2], {"a": 1}, b"x"])
def test_a_value_has_the_type_that_duckdb_gives_it(con, shop, value):
    mine = con.sql("SELECT $v AS v, LLM('{text}', text) FROM review WHERE id = 1", {"v": value})
    plain = shop.sql("SELECT $v AS v", params={"v": value})
    assert (str(mine.types[0]), mine.fetchall()[0][0]) == (str(plain.types[0]), plain.fetchall()[0][0])


@pytest.mark.parametrize(
    ("query", "params", "message"),
    [
        ("SELECT LLM('{text}', text) FROM review WHERE id < ? AND id > ?", [1], r"\$2: give it with params=\[...\]"),
        ("SELECT LLM('{text}', text) FROM review WHERE id < ?", None, r"no value for the parameter \$1"),
        ("SELECT LLM('{text}', text) FROM review WHERE id < $n", {"m": 1}, r"\$n: give it with params={'n': ...}"),
        ("SELECT LLM('{text}', text) FROM review WHERE id < ?", [1, 2], "1 more than the statement names: 2"),
        ("SELECT LLM('{text}', text) FROM review", {"n": 1}, "1 more than the statement names: n"),
    ],
)
def test_too_few_and_too_many_values_are_refused_before_anything_is_asked(con, engine, query, params, message):
    with pytest.raises(RelationalError, match=message):
        con.sql(query, params)
    assert not engine.asked


def test_execute_explain_and_kept_tables_take_parameters(con):
    con.execute("CREATE TABLE kept AS SELECT id, LLM('{text}', text) AS a FROM review WHERE id < ?", [2])
    assert con.execute("SELECT count(*) FROM kept WHERE id < $1", [1]).fetchall() == [(1,)]
    con.sql("INSERT INTO kept SELECT $n, LLM('{text}', text) FROM review WHERE id = 1", params={"n": 99})
    assert con.sql("SELECT max(id) FROM kept").fetchall() == [(99,)]
    query = "SELECT LLM('Plan {text}', text) FROM review WHERE id BETWEEN ? AND ?"
    assert con.forecast(query, [6, 7]).forecasts[0].to_ask == 2
    assert "2 distinct" in con.explain(query, [6, 7])
    assert con.sql(f"EXPLAIN {query}", params=[6, 7]).columns == ["explain_key", "explain_value"]


def test_parameters_belong_to_the_last_statement(con):
    rows = con.sql(
        "CREATE TABLE one AS SELECT 1; SELECT id, LLM('{text}', text) FROM review WHERE id = ?", [1]
    ).fetchall()
    assert rows[0][0] == 1


def test_marks_in_texts_names_and_comments_are_no_parameters():
    text = "SELECT '?', \"$1 ö?\", $$ ? $$, $a$ $1 $a$, ü + ?, ? /* ? */ -- ?\n, $name, 'x'"
    assert numbered(text) == text.replace("ü + ?, ?", "ü + $1, $2")
    assert [marker.name for marker in markers(text)] == ["", "", "name"]
    assert numbered("SELECT $3, ?") == "SELECT $3, $4"


@pytest.mark.parametrize("params", [5, "3", b"3"])
def test_params_that_are_no_list_are_refused(con, params):
    with pytest.raises(RelationalError, match="give a list for"):
        con.sql("SELECT ?, LLM('{text}', text) FROM review", params)


@pytest.mark.parametrize(
    "parts",
    [
        ["SELECT [$1,$2]", " SELECT $a+$b,$a", " SELECT LLM('{1}', $1)||$2||$1"],
        ["SELECT '$1,$2'", "SELECT $1,$2"],
        ["SELECT 'ü', $1,$2,$3", " SELECT '😀',$1,$2"],
        ["SELECT $$;$$, $1,$2", " SELECT 1"],
    ],
)
def test_statements_are_split_as_they_are_written(parts):
    assert [part.text for part in statements(";".join(parts))] == parts
    assert "frame" in names_in("SELECT $1,$2 FROM frame")


def test_parameters_side_by_side_are_apart_once():
    assert numbered("SELECT ?,?, $1,$2") == "SELECT $1 ,$2, $1 ,$2"
    assert numbered("SELECT $1,?") == "SELECT $1 ,$2"

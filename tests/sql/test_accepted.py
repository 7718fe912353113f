"""Statements that DuckDB takes are taken: the rows of plain DuckDB with the same answers."""

from __future__ import annotations

import pyarrow as pa
import pytest
from oracle_engine import OracleEngine

from vllm_relational.records import RelationalError

TEXT = "LLM('Sum up {id}', id)"
GOOD = "LLM_FILTER('{id} is good', id)"
SCORE = "LLM_SCORE('Rate {id}', 1, 5, id)"
ANSWERS = f"SELECT *, {TEXT} AS a, {GOOD} AS f, {SCORE} AS n FROM review"


@pytest.fixture(scope="module")
def asked_once() -> list[pa.Table]:
    return []


@pytest.fixture
def answered(connect, asked_once):
    """The shop with its answers as a table: what a statement gives follows from it by plain DuckDB."""
    if not asked_once:
        asked_once.append(connect().sql(ANSWERS).arrow())
    con = connect()
    con.duckdb.register("asked_once", asked_once[0])
    con.sql("CREATE TABLE answers AS FROM asked_once")
    return con


@pytest.mark.parametrize(
    "query",
    [
        "SELECT product_id, percentile_cont(0.5) WITHIN GROUP (ORDER BY {n}) AS p FROM {t} GROUP BY product_id",
        "SELECT product_id, mode() WITHIN GROUP (ORDER BY {n}) AS p FROM {t} WHERE id < 5 GROUP BY product_id",
        "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY {n}) FILTER (WHERE {f}) AS p FROM {t}",
        "SELECT id, unnest([{a}, text]) AS u FROM {t} WHERE id < 9",
        "SELECT id, u FROM {t}, unnest([{a}, text]) AS x(u) WHERE id < 9",
        "SELECT id, u FROM {t} CROSS JOIN LATERAL unnest([{a}, 'x']) AS x(u)",
        "SELECT id, g FROM {t}, generate_series(1, {n}) AS x(g) WHERE id < 9",
        "SELECT id, unnest(range({n})) AS g FROM {t}",
        "WITH RECURSIVE x AS (SELECT id, {a} AS a FROM {t}), "
        "r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 4) SELECT x.a, r.n FROM x JOIN r ON r.n = x.id",
        "WITH RECURSIVE r(n, a) AS (SELECT id, {a} FROM {t} WHERE id < 3 "
        "UNION ALL SELECT n + 9, a FROM r WHERE n < 20) SELECT n, a FROM r",
        "SELECT product_id, string_agg(id::VARCHAR, ',' ORDER BY {n}, id) AS s FROM {t} GROUP BY product_id",
        "SELECT product_id, array_agg(id ORDER BY id) FILTER (WHERE {f}) AS s FROM {t} GROUP BY product_id",
        "SELECT id FROM {t} WHERE {n} BETWEEN 2 AND CASE WHEN {f} THEN 4 ELSE 3 END",
        "SELECT p.name, r.id FROM (SELECT id AS p, name FROM product) p LEFT JOIN {t} r ON {f} AND r.product_id = p.p",
        "SELECT id, q FROM {t}, LATERAL (SELECT {a} AS q) x WHERE q <> 'no'",
        "SELECT product_id FROM {t} GROUP BY product_id HAVING max({n}) > 4 AND count(*) > 2",
        "PIVOT (SELECT product_id, {a} AS a FROM {t}) ON a USING count(*) GROUP BY product_id",
        "PIVOT (SELECT product_id, {f} AS a FROM {t}) ON a IN (true, false) USING count(*)",
        "UNPIVOT (SELECT id, {a} AS a, text FROM {t}) ON a, text INTO NAME n VALUE v",
        "PIVOT (SELECT product_id, {a} AS a FROM {t}) ON a USING count(*) GROUP BY product_id "
        "ORDER BY product_id DESC LIMIT 3 OFFSET 1",
        "PIVOT (SELECT product_id, {a} AS a FROM {t} WHERE {f}) ON a IN ('yes', 'no') USING count(*) ORDER BY ALL "
        "FETCH FIRST 2 ROWS ONLY",
        "WITH x AS (SELECT product_id, {a} AS a FROM {t}) PIVOT x ON a USING count(*) GROUP BY product_id LIMIT 100",
        "FROM (PIVOT (SELECT product_id, {a} AS a FROM {t}) ON a IN ('yes', 'no') USING count(*) ORDER BY product_id "
        "LIMIT 3) ORDER BY yes, product_id LIMIT 2",
        "UNPIVOT (SELECT id, {a} AS a, text FROM {t}) ON a, text INTO NAME n VALUE v ORDER BY id DESC, n LIMIT 5",
        "SELECT count(*) FROM (UNPIVOT (SELECT id, {a} AS a, text FROM {t}) ON a, text INTO NAME n VALUE v LIMIT 3)",
    ],
)
def test_the_rows_are_those_of_plain_duckdb(answered, query):
    rows = answered.sql(query.format(a=TEXT, f=GOOD, n=SCORE, t="review")).fetchall()
    expected = answered.sql(query.format(a="a", f="f", n="n", t="answers")).fetchall()
    assert rows and sorted(rows, key=repr) == sorted(expected, key=repr)


INNER = "({t} r JOIN (SELECT id AS q, kind FROM product) q ON {f} AND q.q = r.product_id)"


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT r.id, p FROM (SELECT id AS p FROM product) p JOIN {INNER} ON r.product_id = p.p",
        f"SELECT r.id, p FROM {INNER} JOIN (SELECT id AS p FROM product) p ON r.stars = p.p",
        f"SELECT r.id, p FROM ({INNER}) LEFT JOIN (SELECT id AS p FROM product) p ON r.stars = p.p",
        f"SELECT r.id, p FROM {INNER} CROSS JOIN ((SELECT id AS p FROM product) p JOIN (SELECT 3 AS y) y ON p > y)",
        f"SELECT r.id, p FROM (SELECT id AS p FROM product) p, {INNER} WHERE r.stars = p.p",
    ],
)
def test_joins_in_parentheses(answered, query):
    rows = answered.sql(query.format(f=GOOD, t="review")).fetchall()
    expected = answered.sql(query.format(f="f", t="answers")).fetchall()
    assert rows and sorted(rows, key=repr) == sorted(expected, key=repr)


PIVOTED = "(SELECT product_id, stars, {a} AS a FROM {t}) PIVOT (count(*) FOR a IN ('yes' AS stars, 'no' AS n) "


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT * FROM {PIVOTED} GROUP BY product_id) ORDER BY product_id LIMIT 2",
        f"SELECT * FROM {PIVOTED} GROUP BY product_id) WHERE stars = 2",
        f"SELECT x.* FROM {PIVOTED} GROUP BY product_id) AS x JOIN product p ON p.id = x.stars AND p.kind = 2",
        "WITH x AS (SELECT product_id, {a} AS a FROM {t}) SELECT * FROM x PIVOT (count(*) FOR a IN ('yes', 'no')) "
        "ORDER BY product_id LIMIT 2",
        "SELECT * FROM (SELECT id, text, {a} AS a FROM {t}) UNPIVOT (v FOR n IN (a, text)) WHERE n = 'a' AND id < 3",
        "SELECT * FROM (SELECT id, {a} AS a FROM {t}) x UNPIVOT (v FOR n IN (a)) ORDER BY id DESC LIMIT 2",
    ],
)
def test_limits_and_conditions_stay_outside_of_what_is_pivoted(answered, query):
    rows = answered.sql(query.format(a=TEXT, t="review")).fetchall()
    expected = answered.sql(query.format(a="a", t="answers")).fetchall()
    assert rows and sorted(rows, key=repr) == sorted(expected, key=repr)


@pytest.mark.parametrize("how", ["CREATE TABLE made AS", "COPY"])
def test_what_is_pivoted_is_kept(connect, how, tmp_path):
    con, query = connect(), f"UNPIVOT (SELECT id, {TEXT} AS a, text FROM review) ON a, text INTO NAME n VALUE v"
    path = tmp_path / "made.csv"
    con.sql(f"{how} {query} ORDER BY id, n LIMIT 7" if how != "COPY" else f"COPY ({query}) TO '{path}'")
    kept = con.sql("FROM made" if how != "COPY" else f"FROM '{path}'").fetchall()
    assert len(kept) == (7 if how != "COPY" else 76) and sorted(kept) == sorted(con.sql(query).fetchall())[: len(kept)]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, {a}.upper() AS u FROM {t} ORDER BY id LIMIT 3",
        "SELECT {a}.upper() FROM {t} LIMIT 3",
        "SELECT {a}.upper().length() FROM {t} ORDER BY id DESC LIMIT 3",
        "SELECT id FROM {t} WHERE {a}.upper() = 'YES' ORDER BY id LIMIT 3",
        "SELECT DISTINCT ON (product_id) {a}.upper(), id FROM {t} ORDER BY product_id, id",
        "SELECT {a}.upper() AS z, count(*) FROM {t} GROUP BY {a}.upper()",
        # Conditions move into the subquery, where the columns have other names.
        "SELECT x.b FROM (SELECT id AS k, text AS b, {a} AS a FROM {t}) x WHERE x.b.upper() = 'TEXT 3' AND a <> ''",
        "SELECT b FROM (SELECT id AS k, text AS b, {a} AS a FROM {t}) x WHERE b.upper().length() = k",
        "SELECT b FROM (SELECT id AS k, [id, 9] AS b, {a} AS a FROM {t}) x "
        "WHERE b.list_transform(lambda k: k + 1).list_sum() = k + 11",
        "SELECT struct_pack(q := id).q.abs() AS z, (SELECT max(name) FROM product p WHERE p.id = r.id).upper() AS m, "
        "r.text[1:4].upper() AS v, {a} AS a FROM {t} r ORDER BY r.id LIMIT 4",
    ],
)
def test_methods_of_calls_and_columns(answered, query):
    rows = answered.sql(query.format(a=TEXT, t="review")).fetchall()
    expected = answered.sql(query.format(a="a", t="answers")).fetchall()
    assert rows and sorted(rows, key=repr) == sorted(expected, key=repr)


@pytest.mark.parametrize("window", ["row_number() OVER (ORDER BY id) <= 20", "count(*) OVER () > 0"])
@pytest.mark.parametrize("shape", ["{w} AND {f}", "{f} AND {w}", "{f}"])
def test_a_call_in_qualify_beside_one_outside_over_the_same_field(answered, window, shape):
    number = "row_number() OVER (ORDER BY id) AS rn"
    rows = "SELECT {b} AS b FROM (SELECT id, {a} AS a, {n} FROM {t} QUALIFY {q}) x WHERE x.id < 30"
    asking = rows.format(a="text", b="LLM('Sum up {id}', id)", n=number, t="review", q=shape.format(w=window, f=GOOD))
    plain = rows.format(a="a", b="x.a", n=number, t="answers", q=shape.format(w=window, f="f"))
    assert sorted(answered.sql(asking).fetchall()) == sorted(answered.sql(plain).fetchall()) != []
    assert "llm.op_" in answered.explain(asking.replace("Sum up", "Judge"))


def test_a_query_that_reads_itself_cannot_ask_there(con, engine):
    query = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE LLM_FILTER('{n}', n)) SELECT n FROM r"
    with pytest.raises(RelationalError, match=r"line 1, column 70: .* reads itself"):
        con.sql(query)
    assert not engine.asked


LITERAL = "LLM('Sum up {1}', 'it''s; (this)')"


def test_calls_over_literals_stand_in_any_statement(con, engine):
    answer = con.sql(f"SELECT {LITERAL}").fetchall()[0][0]
    con.sql(f"UPDATE review SET text = {LITERAL} WHERE id < 2")
    assert con.sql("SELECT text FROM review WHERE id < 3 ORDER BY id").fetchall() == [(answer,), (answer,), ("text 2",)]
    con.sql(f"CREATE VIEW v AS SELECT id, {LITERAL} AS a FROM review WHERE id < 2")
    assert con.sql("FROM v ORDER BY id").fetchall() == [(0, answer), (1, answer)]
    con.sql(f"DELETE FROM review WHERE text = {LITERAL}")
    assert con.sql("SELECT min(id) FROM review").fetchall() == [(2,)]
    con.sql(f"INSERT INTO review (id, text) VALUES (99, upper({LITERAL}))")
    assert con.sql("SELECT text FROM review WHERE id = 99").fetchall() == [(answer.upper(),)]
    assert con.sql(f"VALUES (1, {LITERAL}), (2, 'x')").fetchall() == [(1, answer), (2, "x")]
    assert len(engine.asked) == 1


def test_the_answer_over_literals_keeps_its_type(con):
    schema = """{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}"""
    calls = (
        f"LLM_EXTRACT('{{1}}', '{schema}', 'x') AS e, LLM_SCORE('{{1}}', 3, 5, 'x') AS s, LLM_FILTER('{{1}}', 'x') AS f"
    )
    con.sql(f"CREATE VIEW v AS SELECT {calls}")
    given, kept = con.sql(f"SELECT {calls}"), con.sql("FROM v")
    assert kept.fetchall() == given.fetchall()
    assert kept.types == given.types


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE review SET text = LLM('{text}', text)", "line 1, column 26"),
        ("CREATE VIEW v AS SELECT LLM('{text}', text), LLM('{1}', 'x') FROM review", "line 1, column 25"),
        ("UPDATE review SET nothing = LLM('{1}', 'x')", "column nothing not found"),
        ("DELETE FROM nowhere WHERE LLM_FILTER('{1}', 'x')", "line 1, column 13"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_asked(con, engine, statement, why):
    with pytest.raises(RelationalError, match=why):
        con.sql(statement)
    assert not engine.asked


def test_explain_of_an_update_asks_nothing(con, engine):
    assert "1 distinct" in con.explain(f"UPDATE review SET text = {LITERAL}")
    assert not engine.asked and con.sql("SELECT count(*) FROM review WHERE text LIKE 'text%'").fetchall() == [(36,)]


def test_a_failed_answer_is_null_in_an_update(connect):
    con = connect(engine=OracleEngine(fails_every=1))
    con.sql(f"UPDATE review SET text = {LITERAL} WHERE id = 0")
    assert con.sql("SELECT text FROM review WHERE id = 0").fetchall() == [(None,)]

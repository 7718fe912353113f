"""What a statement asks: no input more than DuckDB evaluates, with rows as DuckDB gives them."""

from __future__ import annotations

import pytest
from oracle_engine import OracleEngine

ASK = "LLM('Sum up {id}', id) AS a"
ROWS = f"SELECT id, product_id AS k, stars AS s, {ASK} FROM review"
GOOD = "LLM_FILTER('{id} is good', id)"
NUMBERED = f"SELECT id, {ASK}, row_number() OVER (PARTITION BY product_id ORDER BY id) AS rn FROM review"


def both(connect, query: str) -> int:
    """How many inputs are asked; the rows are those without the optimiser."""
    engine = OracleEngine()
    rows = connect(engine=engine, batch_rows=4).sql(query).fetchall()
    assert sorted(rows, key=repr) == sorted(
        connect(engine=OracleEngine(), optimize=False).sql(query).fetchall(), key=repr
    )
    return len(engine.asked)


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        # rows that a window leaves: nine products
        (f"SELECT id, {ASK} FROM review QUALIFY row_number() OVER (PARTITION BY product_id ORDER BY id) = 1", 9),
        (f"SELECT id, a FROM ({NUMBERED}) WHERE rn = 1", 9),
        (f"SELECT id, a FROM ({NUMBERED}) WHERE rn <= 2", 18),
        (f"SELECT DISTINCT ON (product_id) id, {ASK} FROM review ORDER BY product_id, id", 9),
        (f"SELECT DISTINCT ON (s) s, a FROM (SELECT id % 2 AS s, {ASK} FROM review) ORDER BY s, a", 40),
        # calls that nobody reads
        (f"SELECT count(*) FROM ({ROWS})", 0),
        (f"WITH x AS ({ROWS}) SELECT 1", 0),
        (f"WITH x AS (SELECT DISTINCT {ASK} FROM review) SELECT count(*) FROM product", 0),
        (f"SELECT * FROM ({ROWS}) WHERE 1 = 0", 0),
        ("SELECT k FROM (SELECT product_id AS k, max(LLM('{id}', id)) AS a FROM review GROUP BY k) WHERE k < 3", 0),
        (f"SELECT id FROM product WHERE EXISTS (SELECT {ASK} FROM review)", 0),
        (f"SELECT count(*) FROM ({ROWS} UNION ALL {ROWS})", 0),
        # limits
        (f"SELECT id, {ASK} FROM review ORDER BY id FETCH FIRST 2 ROWS ONLY", 2),
        (f"SELECT id, {ASK} FROM review ORDER BY id LIMIT 1 + 1", 2),
        (f"SELECT id, row_number() OVER (ORDER BY id DESC) AS n, {ASK} FROM review ORDER BY id LIMIT 2", 2),
        (f"SELECT id AS stars, {ASK} FROM review ORDER BY id LIMIT 2 OFFSET 1", 2),
        ("SELECT id, LLM('{text}', text) AS text FROM review ORDER BY id LIMIT 2", 2),
        ("SELECT product_id AS k, LLM('{1}', product_id) FROM review GROUP BY k ORDER BY sum(id), k LIMIT 2", 2),
        ("SELECT LLM('{1}', max(id)) AS m, count(*) FROM review GROUP BY product_id ORDER BY 2, max(id) LIMIT 3", 3),
        (f"SELECT id, {ASK} FROM review ORDER BY a, id LIMIT 2", 40),
        # conditions outside
        ("WITH x(i, a) AS (SELECT id, LLM('{id}', id) FROM review) SELECT * FROM x WHERE i < 3", 3),
        (f"SELECT * FROM ({ROWS} UNION ALL SELECT id, 1, 2, LLM('Two {{id}}', id) FROM review) WHERE id < 3", 6),
        ("SELECT * FROM (SELECT DISTINCT product_id AS k, LLM('{id}', id) AS a FROM review) WHERE k < 2", 10),
        (f"WITH x AS ({ROWS}) SELECT x.id, y.a FROM x JOIN x y ON x.id = y.id WHERE x.id < 3", 3),
        (f"WITH x AS ({ROWS}) SELECT id, a FROM x WHERE id < 2 UNION ALL SELECT id, a FROM x WHERE id = 3", 3),
        (f"SELECT id, a FROM ({ROWS}) x WHERE id IN (SELECT id FROM product WHERE id < 3)", 3),
        # three are needed, and DuckDB's filter on the keys of the join lets one more through
        (f"SELECT id, a FROM ({ROWS}) x WHERE EXISTS (SELECT 1 FROM product p WHERE p.id < 3 AND p.id = x.id)", 4),
        (f"SELECT id, a FROM ({ROWS}) x SEMI JOIN (SELECT id FROM product WHERE id < 3) p ON p.id = x.id", 4),
        (f"SELECT id FROM (SELECT id FROM review WHERE {GOOD}) WHERE id IN (SELECT id FROM product WHERE id < 3)", 3),
        (f"WITH x(i) AS (SELECT id FROM review WHERE {GOOD}) SELECT i FROM x WHERE i < 3", 3),
        (f"SELECT id FROM (SELECT id FROM review WHERE {GOOD} UNION ALL SELECT id FROM product) WHERE id < 3", 3),
        (f"SELECT * FROM (SELECT product_id AS k, max({ASK[:-5]}) FROM review GROUP BY k) WHERE k = 3", 5),
        (f"SELECT product_id AS k, max({ASK[:-5]}) FROM review GROUP BY k HAVING k = 3", 5),
        # three-valued logic: 13 rows have two or one stars, others NULL
        (f"SELECT id FROM review WHERE stars = 2 OR (stars = 1 AND {GOOD})", 7),
        (f"SELECT id FROM review WHERE NOT (stars = 2 AND (stars = 1 OR {GOOD}))", 7),
        # a condition outside that needs no answer from inside is asked first
        (f"SELECT id, a FROM ({ROWS}) WHERE id = 3 AND LLM_FILTER('{{id}} is bad', id)", 2),
    ],
)
def test_only_what_duckdb_evaluates_is_asked(connect, query, asked):
    assert both(connect, query) == asked


def test_a_condition_outside_that_asks_spares_the_calls_inside(connect):
    engine = OracleEngine()
    query = f"SELECT id, a FROM ({ROWS}) WHERE LLM_FILTER('{{id}} is bad', id)"
    rows = connect(engine=engine).sql(query).fetchall()
    assert 0 < len(rows) < 40
    assert sum("Sum up" in question for question in engine.questions) == len(rows)


def test_ties_fall_once(connect):
    """Which rows a LIMIT or a row number leaves is DuckDB's choice; all of them are answered."""
    con = connect()
    for query in (
        f"SELECT id, count(*) OVER () AS n, {ASK} FROM review ORDER BY id % 2 LIMIT 7",
        f"SELECT * FROM (SELECT id, {ASK}, row_number() OVER (PARTITION BY stars) AS rn FROM review) WHERE rn = 1",
        f"SELECT DISTINCT ON (stars) id, {ASK} FROM review",
    ):
        rows = con.sql(query).df()
        assert len(rows) >= 6 and rows["a"].notna().all()


def test_an_answer_that_decides_which_answers_are_needed_is_no_obstacle(connect):
    """What a probe cannot know, the result finds missing, and it is asked in another round."""
    self_join = (
        f"WITH x AS NOT MATERIALIZED ({ROWS}) SELECT count(*) FROM x WHERE a = 'yes' AND NOT EXISTS "
        "(SELECT 1 FROM x y WHERE y.id = x.id + 1 AND y.a = 'yes') "
        "AND x.id IN (SELECT id + 1 FROM x z WHERE z.a = 'no')"
    )
    assert both(connect, self_join) <= 40


def test_nothing_is_written_before_every_answer_is_there(connect):
    con, plain = connect(), connect(engine=OracleEngine(), optimize=False)
    query = f"SELECT id, a FROM ({NUMBERED}) WHERE rn = 1"
    for each in (con, plain):
        each.sql(f"CREATE TABLE kept AS {query}")
        each.sql(f"INSERT INTO kept SELECT id + 100, a FROM ({query})")
    assert con.sql("FROM kept ORDER BY id").fetchall() == plain.sql("FROM kept ORDER BY id").fetchall()
    assert len(con.sql("FROM kept").fetchall()) == 18


def test_the_forecast_counts_what_a_run_asks(connect):
    con = connect()
    for query in (
        f"SELECT id, a FROM ({NUMBERED}) WHERE rn = 1",
        f"SELECT * FROM ({ROWS} UNION ALL {ROWS}) WHERE id < 3",
    ):
        assert con.forecast(query).forecasts[0].to_ask == both(connect, query)

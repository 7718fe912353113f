"""Conditions move into subqueries where that is equivalent, and only there."""

from __future__ import annotations

import pytest
from oracle_engine import OracleEngine

GOOD = "SELECT * FROM review WHERE LLM_FILTER('{id} {text} is good', id, text)"


def asked(connect, query: str, **settings) -> int:
    engine = OracleEngine()
    connect(engine=engine, **settings).sql(query)
    return len(engine.asked)


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        (f"SELECT id FROM ({GOOD}) WHERE ts <= DATE '2023-01-04'", "ts <= DATE '2023-01-04'"),
        (f"WITH x AS ({GOOD}) SELECT id FROM x WHERE id IN (1, 2) AND stars = 2", "id IN (1, 2) AND stars = 2"),
        (
            f"SELECT x.id FROM ({GOOD}) x JOIN product p ON p.id = x.product_id WHERE p.kind = 1",
            "product_id IN (SELECT id FROM product WHERE kind = 1)",
        ),
        (
            f"SELECT p.id FROM product p LEFT JOIN ({GOOD}) x ON p.id = x.product_id AND x.stars > 2 WHERE p.kind = 1",
            "product_id IN (SELECT id FROM product WHERE kind = 1) AND stars > 2",
        ),
        (
            f"SELECT x.id FROM ({GOOD}) x SEMI JOIN product p ON p.id = x.product_id AND p.kind = 1",
            "product_id IN (SELECT id FROM product WHERE kind = 1)",
        ),
        (
            f"SELECT p.id FROM product p ANTI JOIN ({GOOD}) x ON p.id = x.product_id AND x.stars > 2",
            "product_id IN (SELECT id FROM product) AND stars > 2",
        ),
        (
            f"SELECT x.id FROM ({GOOD}) x JOIN product p ON p.id = x.product_id AND p.kind = x.stars",
            "(product_id, stars) IN (SELECT (id, kind) FROM product)",
        ),
        (
            f"SELECT x.id FROM ({GOOD}) x LEFT JOIN product p ON p.id = x.product_id WHERE p.kind = 1",
            "product_id IN (SELECT id FROM product WHERE kind = 1)",
        ),
        (
            f"SELECT x.id FROM ({GOOD}) x JOIN product p ON p.id = x.product_id "
            "JOIN (VALUES (0), (2)) unused(k) ON true JOIN review q ON q.id = p.id AND q.stars = 3",
            "product_id IN (SELECT p.id FROM product p JOIN review q ON q.id = p.id WHERE q.stars = 3)",
        ),
        (
            f"SELECT p.id FROM product p LEFT JOIN ({GOOD}) x ON p.id = x.product_id WHERE x.stars > 2",
            "product_id IN (SELECT id FROM product) AND stars > 2",
        ),
        (
            "SELECT id FROM (SELECT id, id * 2 AS k, LLM('{id}', id) AS a FROM review) WHERE k < 6 AND a = 'yes'",
            "id < 3",
        ),
    ],
)
def test_a_condition_outside_holds_inside(connect, shop, query, rows):
    needs_text = "" if "LLM('{id}'" in query else " AND text IS NOT NULL"
    (expected,) = shop.sql(f"SELECT count(*) FROM review WHERE {rows}{needs_text}").fetchall()[0]
    assert asked(connect, query) == expected


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT x.id FROM ({GOOD}) x LEFT JOIN product p ON p.id = x.product_id AND x.stars > 2",
        f"SELECT id FROM ({GOOD} LIMIT 40) WHERE stars = 1",
        f"SELECT n FROM (SELECT *, row_number() OVER (ORDER BY id) AS n FROM ({GOOD})) WHERE stars = 1",
        f"SELECT x.id FROM product p FULL JOIN ({GOOD}) x ON p.id = x.product_id WHERE p.kind = 1 OR p.kind IS NULL",
        f"WITH x AS ({GOOD}) SELECT a.id FROM x a JOIN x b ON a.id = b.product_id WHERE a.stars = 1",
        f"SELECT x.id FROM ({GOOD}) x ANTI JOIN product p ON p.id = x.product_id",
        f"SELECT x.id FROM ({GOOD}) x LEFT JOIN product p ON p.id = x.product_id WHERE p.kind = 1 OR p.kind IS NULL",
        f"SELECT x.id FROM ({GOOD}) x LEFT JOIN product p ON p.id = x.product_id WHERE coalesce(p.kind, 1) = 1",
    ],
)
def test_a_condition_stays_outside_where_rows_depend_on_others(connect, query):
    planned, naive = connect(engine=OracleEngine()), connect(engine=OracleEngine(), optimize=False)
    assert sorted(planned.sql(query).fetchall()) == sorted(naive.sql(query).fetchall())
    assert planned.last_run.operators[0].distinct == naive.last_run.operators[0].distinct


def test_a_name_that_means_something_else_inside_leaves_the_statement_as_it_is(connect):
    query = (
        f"WITH x AS ({GOOD}), late AS (SELECT 3 AS product_id) "
        "SELECT x.id FROM x JOIN late ON late.product_id = x.product_id"
    )
    con = connect()
    assert all(row == (3,) or row for row in con.sql(query).fetchall())
    assert con.last_run.notes == []


SUMMED = "SELECT id, ts, stars, product_id, LLM('{text}', text) AS v FROM review"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT s.id, s.v FROM (SELECT *, LLM('{text}', text) AS v, id + 100 AS id FROM review) s WHERE s.id < 20",
        "SELECT s.stars, s.v FROM (SELECT * RENAME (stars AS id, id AS stars), LLM('{text}', text) AS v FROM review) s "
        "WHERE s.stars < 3",
        f"SELECT s.id, x.i FROM ({SUMMED}) s POSITIONAL JOIN range(5) x(i) WHERE s.v = 'yes' AND s.stars > 2",
        f"SELECT p.id, s.id, s.v FROM (SELECT id, DATE '2023-01-01' + (id * 3)::INT AS t FROM product) p "
        f"ASOF JOIN ({SUMMED}) s ON p.t >= s.ts WHERE s.stars > 2",
        f"WITH x AS ({SUMMED}), product AS (SELECT id + 5 AS id FROM product) "
        "SELECT x.id, x.v FROM x JOIN product ON product.id = x.product_id",
    ],
)
def test_a_condition_that_means_something_else_inside_stays_outside(connect, query):
    naive = connect(engine=OracleEngine(), optimize=False).sql(query).fetchall()
    assert naive and sorted(connect().sql(query).fetchall(), key=repr) == sorted(naive, key=repr)


def test_keys_come_from_a_with_entry_that_stands_before(connect):
    entries = f"p AS (SELECT id FROM product WHERE id < 2), x AS ({SUMMED})"
    assert asked(connect, f"WITH {entries} SELECT x.id, x.v FROM x JOIN p ON p.id = x.product_id") < 13

"""LIMIT over a subquery."""

from __future__ import annotations

import pytest
from oracle_engine import OracleEngine

INNER = "SELECT id, stars, ts, LLM('Sum up {id}', id) AS s FROM review"


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        (f"SELECT * FROM ({INNER}) ORDER BY id DESC LIMIT 3", 3),
        (f"WITH x AS ({INNER}) SELECT x.s FROM x WHERE stars > 1 ORDER BY x.ts LIMIT 2 OFFSET 3", 5),
        (f"SELECT s, id + 1 AS n FROM ({INNER}) ORDER BY id LIMIT 3", 3),
        (f"SELECT s FROM (SELECT * FROM ({INNER}) ORDER BY ts) ORDER BY id LIMIT 3", 3),
        (f"SELECT s FROM ({INNER}) ORDER BY s, id LIMIT 3", 40),
        (f"SELECT s, -id AS id FROM ({INNER}) ORDER BY id LIMIT 3", 40),
        (f"SELECT s FROM ({INNER}) WHERE s = 'yes' ORDER BY id LIMIT 3", 40),
        (f"SELECT DISTINCT s FROM ({INNER}) ORDER BY s LIMIT 1", 40),
        (f"SELECT count(s) FROM ({INNER}) LIMIT 1", 40),
        (f"SELECT id, count(*) OVER () AS n, s FROM ({INNER}) ORDER BY id LIMIT 1", 40),
        (f"SELECT x.s FROM ({INNER}) x JOIN product p ON p.id = x.id ORDER BY x.id LIMIT 1", 8),
    ],
)
def test_only_rows_that_come_out_are_asked(connect, query, asked):
    engine, naive = OracleEngine(), connect(engine=OracleEngine(), optimize=False)
    assert connect(engine=engine).sql(query).fetchall() == naive.sql(query).fetchall()
    assert len(engine.asked) == asked


def test_stars_over_merged_columns_stay_as_they_are(connect):
    query = "SELECT *, LLM('{name}', name) AS v FROM product JOIN (SELECT 1 AS id) o USING (id) LIMIT 3"
    planned, naive = connect().sql(query), connect(engine=OracleEngine(), optimize=False).sql(query)
    assert planned.columns == naive.columns and planned.fetchall() == naive.fetchall()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, s, unnest(tags) FROM (SELECT id, CASE WHEN id > 3 THEN [1, 2] ELSE [] END AS tags, "
        "LLM('{id}', id) AS s FROM review) ORDER BY id LIMIT 3",
        "SELECT id, unnest([LLM('{id}', id), 'x']) FROM review ORDER BY id LIMIT 3",
    ],
)
def test_a_limit_counts_the_rows_of_unnest(connect, query):
    naive = connect(engine=OracleEngine(), optimize=False).sql(query).fetchall()
    assert connect().sql(query).fetchall() == naive and len(naive) == 3

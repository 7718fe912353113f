"""Aggregates and windows whose argument is a call, against plain DuckDB with the answers in a column."""

from __future__ import annotations

import pytest

ANSWERS = "SELECT *, LLM_SCORE('Rate {text}', 1, 5, text) AS a FROM review"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, max({a}) OVER () AS m FROM {r}",
        "SELECT id, min({a}) OVER () AS m, count(*) OVER () AS n FROM {r} WHERE id < 4",
        "SELECT id, upper(max({a}::VARCHAR) OVER ()) AS m FROM {r}",
        "SELECT id, max({a}) OVER (PARTITION BY id % 2) AS m FROM {r}",
        "SELECT id, max({a}) OVER (ORDER BY id ROWS 1 PRECEDING) AS m FROM {r}",
        "SELECT id, max({a}) OVER w AS m FROM {r} WINDOW w AS (PARTITION BY id % 2 ORDER BY id)",
        "SELECT id, string_agg({a}) OVER (PARTITION BY id % 2 ORDER BY id) AS m FROM {r}",
        "SELECT id, arg_max({a}, id) OVER (PARTITION BY id % 2) AS m FROM {r}",
        "SELECT id % 2 AS id, max({a}) FILTER (WHERE id > 1) AS m FROM {r} GROUP BY 1",
        "SELECT id % 2 AS id, min({a}) FILTER (WHERE id > 1) AS m FROM {r} GROUP BY ALL HAVING max({a}) > 1",
        "SELECT id % 2 AS id, arg_min(text, {a}) FILTER (WHERE id > 1) AS m FROM {r} GROUP BY 1",
        "SELECT id FROM {r} QUALIFY max({a}) OVER (PARTITION BY id % 3) > 2",
        "SELECT id, {a} AS x FROM {r} ORDER BY max({a}) OVER (PARTITION BY id % 3), id",
    ],
)
def test_they_are_those_of_duckdb(con, query):
    got = con.sql(query.format(a="LLM_SCORE('Rate {text}', 1, 5, text)", r="review"))
    rows, types = sorted(got.fetchall()), [str(kind) for kind in got.types]
    con.sql(f"CREATE TEMP TABLE answered AS {ANSWERS}")
    plain = con.duckdb.sql(query.format(a="a", r="answered"))
    assert (rows, types) == (sorted(plain.fetchall()), [str(kind) for kind in plain.types])

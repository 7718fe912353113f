"""PIVOT and UNPIVOT where sqlglot alone does not know them: read, and the same for DuckDB."""

from __future__ import annotations

import duckdb
import pytest

from vllm_relational.sql.blocks import sql_of
from vllm_relational.sql.parse import parse

TABLE = "CREATE TABLE t AS SELECT * FROM (VALUES ('a', 1, 2), ('a', 2, 3), ('b', 1, 4)) v(k, n, x)"


@pytest.mark.parametrize(
    "sql",
    [
        "PIVOT t ON n USING sum(x)",
        "PIVOT t ON n USING sum(x) ORDER BY k DESC LIMIT 1",
        "SELECT * FROM (PIVOT t ON n USING sum(x)) ORDER BY k",
        "WITH u AS (SELECT * FROM t WHERE n < 2) PIVOT u ON n USING sum(x) ORDER BY k",
        "UNPIVOT t ON n, x INTO NAME name VALUE value ORDER BY k, name, value",
    ],
)
def test_queries_mean_the_same_after_they_were_read(sql):
    with duckdb.connect() as connection:
        connection.execute(TABLE)
        assert sorted(connection.execute(sql_of(parse(sql))).fetchall()) == sorted(connection.execute(sql).fetchall())


def test_a_table_made_of_a_pivot():
    with duckdb.connect() as connection:
        connection.execute(TABLE)
        connection.execute(sql_of(parse("CREATE TABLE u AS PIVOT t ON n USING sum(x) ORDER BY k")))
        assert connection.execute("SELECT * FROM u ORDER BY k").fetchall() == [("a", 2, 3), ("b", 4, None)]

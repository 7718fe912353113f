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


@pytest.mark.parametrize(
    "insert",
    [
        "INSERT INTO u PIVOT t ON n USING sum(x) ORDER BY k",
        "INSERT INTO u (k, one, two) PIVOT t ON n USING sum(x)",
        'INSERT INTO main.u BY NAME SELECT k, "1" AS one, "2" AS two FROM (PIVOT t ON n USING sum(x))',
        "INSERT INTO u WITH v AS (FROM t) PIVOT v ON n USING sum(x)",
        "INSERT INTO u (PIVOT t ON n USING sum(x))",
        "INSERT INTO u UNPIVOT (SELECT k, n, 1 AS one, x FROM t) ON one, x",
        "INSERT OR REPLACE INTO u UNPIVOT (SELECT k, n, 1 AS one, x FROM t) ON one, x LIMIT 6",
        "INSERT INTO u FROM (PIVOT t ON n USING sum(x)) RETURNING k",
    ],
)
def test_rows_of_a_pivot_are_inserted(insert):
    filled = []
    for text in (insert, sql_of(parse(insert))):
        with duckdb.connect() as connection:
            connection.execute(f"{TABLE}; CREATE TABLE u(k VARCHAR, one VARCHAR, two VARCHAR, more VARCHAR)")
            if "UNPIVOT" not in insert:
                connection.execute("ALTER TABLE u DROP COLUMN more")
            connection.execute(text.replace("OR REPLACE ", ""))
            filled.append(sorted(connection.execute("FROM u").fetchall(), key=str))
    assert filled[0] == filled[1] and filled[0]

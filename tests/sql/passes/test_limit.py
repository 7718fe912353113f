"""LIMIT spares questions, and rows come out as without it."""

from __future__ import annotations

import pytest
from oracle_engine import OracleEngine

from vllm_relational.sql.passes.limit import batches

BIG = "CREATE TABLE big AS SELECT i AS n, 'text ' || i AS text FROM range(1000) t(i)"


@pytest.fixture
def big(connect, engine):
    con = connect(batch_rows=10)
    con.sql(BIG)
    return con


def test_calls_of_the_select_list_are_asked_for_the_rows_that_come_out(big, engine):
    rows = big.sql("SELECT *, LLM('Sum up {text}', text) AS s, n + 1 FROM big ORDER BY n DESC LIMIT 3 OFFSET 2")
    assert rows.columns == ["n", "text", "s", "(n + 1)"]
    assert [row[0] for row in rows.fetchall()] == [997, 996, 995]
    assert len(engine.asked) == 3


def test_a_filter_is_asked_in_batches_until_enough_rows_pass(big, engine):
    query = "SELECT n FROM big WHERE LLM_FILTER('{text} is good', text) LIMIT 5"
    rows = big.sql(query).fetchall()
    assert len(rows) == 5 and len(engine.asked) <= 30
    assert f"{len(engine.asked)} of 1,000 rows were looked at until 5 had passed" in big.report()
    assert "at most 1,000 rows in" in big.explain(query.replace("good", "nice"))


@pytest.mark.slow
def test_the_rows_are_those_of_the_whole_table(big, connect):
    query = (
        "SELECT text AS t, LLM('Sum up {text}', text) FROM big WHERE n > 7 AND LLM_FILTER('{text} is good', text) "
        "AND LLM_SCORE('{text}', 1, 9, text) > 4 ORDER BY t LIMIT 4 OFFSET 1"
    )
    naive = connect(engine=OracleEngine(), optimize=False)
    naive.sql(BIG)
    assert big.sql(query).fetchall() == naive.sql(query).fetchall()


@pytest.mark.parametrize(
    "items",
    [
        "* REPLACE (upper(text) AS text), LLM('Sum up {text}', text)",
        "* REPLACE (LLM('Sum up {text}', text) AS text)",
        "big.* RENAME (text AS t), LLM('Sum up {text}', text)",
        "* LIKE '%t%', LLM('Sum up {text}', text)",
        "* NOT SIMILAR TO 'n', LLM('Sum up {text}', text)",
        "* ILIKE 'T%', LLM('Sum up {text}', text)",
        "* EXCLUDE (n), LLM('Sum up {text}', text)",
    ],
)
def test_a_star_that_changes_columns_is_not_taken_for_the_columns(big, connect, items):
    query = f"SELECT {items} AS s FROM big ORDER BY n LIMIT 2".replace(") AS text) AS s", ") AS text)")
    plain = connect(engine=OracleEngine(), optimize=False)
    plain.sql(BIG)
    rows, expected = big.sql(query), plain.sql(query)
    assert rows.columns == expected.columns and rows.fetchall() == expected.fetchall()


def test_a_column_of_the_users_may_be_called_like_the_number_of_a_row(connect):
    con = connect()
    con.sql("CREATE TABLE numbered AS SELECT i AS __row, 'text ' || i AS text FROM range(9) t(i)")
    query = "SELECT __row, LLM('Sum up {text}', text) FROM numbered ORDER BY __row DESC LIMIT 2"
    assert [row[0] for row in con.sql(query).fetchall()] == [8, 7]


def test_rows_are_drawn_once_where_the_order_leaves_a_choice(big):
    rows = big.sql("SELECT n, LLM('Sum up {n}', n) AS s FROM big ORDER BY n % 2 LIMIT 7").fetchall()
    assert len(rows) == 7 and all(s is not None for _, s in rows)


def test_a_filter_that_nothing_passes_is_asked_for_all_rows(big, engine):
    assert (
        big.sql("SELECT n FROM big WHERE LLM_FILTER('{n}', n) AND LLM_SCORE('{n}', 1, 2, n) > 2 LIMIT 1").fetchall()
        == []
    )
    assert len(engine.asked) > 1000


def test_the_next_statement_drops_stored_rows(big):
    for _ in range(2):
        big.sql("SELECT LLM('Sum up {text}', text) FROM big LIMIT 3")
    names = big.sql("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE '__llm_rows%'").fetchall()
    assert len(names) == 1


@pytest.mark.parametrize(
    "query",
    [
        "SELECT LLM('{n}', n) FROM big ORDER BY LLM_SCORE('{n}', 1, 5, n), n LIMIT 3",
        "SELECT n % 3 AS k, max(LLM('{n}', n)) FROM big WHERE n < 50 GROUP BY k ORDER BY k LIMIT 2",
        "SELECT DISTINCT LLM('{n}', n) AS a FROM big WHERE n < 50 ORDER BY a LIMIT 2",
        "SELECT upper(text) AS u, LLM('{u}', u) FROM big WHERE n < 20 ORDER BY u LIMIT 2",
        "SELECT n, rank() OVER (ORDER BY LLM('{n}', n), n) AS r FROM big WHERE n < 20 ORDER BY n LIMIT 2",
    ],
)
def test_other_limits_are_left_to_duckdb(big, connect, query):
    naive = connect(engine=OracleEngine(), optimize=False)
    naive.sql(BIG)
    assert big.sql(query).fetchall() == naive.sql(query).fetchall()


def test_batches_stop_when_enough_passed_and_grow_with_what_is_missing():
    passing = [n % 100 == 99 for n in range(1000)]
    asked = []

    def passed(low: int, high: int) -> int:
        asked.append((low, high))
        return sum(passing[low:high])

    assert max(batches(1000, 10, passed, 3)) < 1000
    assert asked[0] == (0, 10) and [low for low, _ in asked[1:]] == [high for _, high in asked[:-1]]
    assert sum(sum(passing[low:high]) for low, high in asked) >= 3
    assert list(batches(0, 10, passed, 3)) == []

"""The short form of ``scripts/robustness/sql_differential.py``: generated statements against plain DuckDB."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "robustness" / "sql_differential.py"
_spec = importlib.util.spec_from_file_location("sql_differential", SCRIPT)
assert _spec is not None and _spec.loader is not None
sql_differential = importlib.util.module_from_spec(_spec)
sys.modules["sql_differential"] = sql_differential
_spec.loader.exec_module(sql_differential)
# One layout: choosing one asks nothing and takes half of the time. No samples: predicates go in DuckDB's own order.
OPTIONS = {"sample_rows": 0, "batch_rows": 4, "layout": "question-first"}
WRONG = ("wrong rows", "wrong types", "wrong names", "broken", "asked more")


@pytest.fixture(scope="module")
def comparison():
    return sql_differential.Comparison(**OPTIONS)


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(10, 60, 10))])
def test_rows_types_and_names_are_those_of_plain_duckdb_and_no_more_is_asked(comparison, first):
    outcomes = [comparison.run(sql_differential.sql_statements.statement(first + place)) for place in range(10)]
    assert [outcome for outcome in outcomes if outcome.kind in WRONG] == []
    assert sum(outcome.kind in ("refused", "invalid") for outcome in outcomes) <= 1


@pytest.mark.parametrize(
    "query",
    [
        # DuckDB evaluates what is compared with a constant last, wherever it is written.
        "SELECT d.id FROM d WHERE LLM_CLASSIFY('Q1', ['a', 'b'], d.text) <> 'b' AND LLM_FILTER('Q2 {1}', d.odd || d.n)",
        "SELECT d.id FROM d WHERE LLM_FILTER('Q1', d.odd || d.n) AND NOT LLM_FILTER('Q2', d.text)",
        "SELECT d.id FROM d WHERE (d.kid IN (SELECT id FROM k) OR LLM_SCORE('Q1', 1, 5, d.text || d.n) > 2) "
        "AND NOT LLM_FILTER('Q3', d.text)",
        "SELECT d.id FROM d JOIN k ON k.id = d.kid WHERE LLM_FILTER('Q1 {1} {2}', d.text, k.kind) AND "
        "LLM_FILTER('Q2', d.text)",
    ],
)
def test_predicates_are_evaluated_in_duckdbs_own_order(comparison, query):
    outcome = comparison.run(query)
    assert (outcome.kind, outcome.asked) == ("equal", outcome.needed)


@pytest.mark.parametrize(
    "query",
    [
        "WITH x AS MATERIALIZED (SELECT d.*, LLM('Q1', d.odd) AS z FROM d WHERE d.stars IS NULL AND NOT "
        "LLM_FILTER('Q2', d.text)) FROM x SELECT id, z WHERE kid = 2",
        "WITH x AS MATERIALIZED (SELECT d.*, 1 AS one, LLM('Q1', d.odd) AS z FROM d WHERE LLM_FILTER('Q2', d.text)) "
        "SELECT id, z FROM x AS y WHERE y.n > 5",
        "SELECT id FROM (SELECT *, LLM('Q1', odd) AS kind FROM d WHERE LLM_FILTER('Q2', text)) WHERE n > 5",
        # What DuckDB drops because of a constant, with calls in it or around it.
        "SELECT id FROM (SELECT id, kid AS g, text AS t FROM d WHERE LLM_FILTER('Q1', odd)) x "
        "WHERE CASE WHEN 1 = 0 AND LLM_FILTER('Q2', t) THEN g > 1 ELSE g = 9 END",
        "SELECT id FROM (SELECT id, kid AS g, text AS t FROM d WHERE LLM_FILTER('Q1', odd)) x "
        "WHERE if(2 > 1 AND TRUE, g = 9, LLM_FILTER('Q2', t))",
        "SELECT id FROM (SELECT id, LLM('Q1', text) AS a FROM d WHERE LLM_FILTER('Q2', odd) ORDER BY id LIMIT 3) "
        "WHERE 1 = 0",
        "SELECT n FROM (SELECT 1 AS n, LLM('Q1', text) AS a FROM d ORDER BY id LIMIT 3) WHERE n = 2",
    ],
)
def test_rows_that_duckdb_drops_first_are_not_asked(comparison, query):
    outcome = comparison.run(query)
    assert outcome.kind == "equal" and outcome.asked <= outcome.needed, outcome


ASKS = "LLM_SCORE('Q1', 1, 5, odd || id)"


@pytest.mark.parametrize(
    "query",
    [
        # Of a BETWEEN, the bound without a call decides first; of an IN, the values before.
        f"SELECT id FROM d WHERE id BETWEEN 25 AND 25 + {ASKS}",
        f"SELECT id FROM d WHERE id NOT BETWEEN 25 AND 25 + {ASKS}",
        f"SELECT id FROM d WHERE stars BETWEEN {ASKS} AND 2",
        f"SELECT id, stars BETWEEN coalesce({ASKS}, 3) AND 4 AS x FROM d",
        f"SELECT id FROM d WHERE (9007199254740992 + id * 0) BETWEEN 9007199254740993 AND {ASKS} + 1e30",
        f"SELECT id FROM d WHERE day BETWEEN '2023-01-20' AND DATE '2023-01-10' + {ASKS}::INTEGER",
        f"SELECT id FROM d WHERE {ASKS} BETWEEN stars AND n",
        f"SELECT d.id FROM d JOIN k ON k.id = d.kid AND d.n BETWEEN 5 AND 3 + {ASKS.replace('id', 'd.id')}",
        f"SELECT id FROM d WHERE stars IN (1, {ASKS})",
        f"SELECT id, stars IN (1, NULL, {ASKS}, 2) AS x FROM d",
        "SELECT id FROM d WHERE e NOT IN ('ok', LLM_CLASSIFY('Q1', ['sad', 'glad'], odd || id))",
        # Rows without a list make none.
        f"SELECT id, unnest(l) AS u, {ASKS} AS a FROM d WHERE n > 1",
        f"SELECT id, generate_subscripts(l, 1) + 1 AS u, {ASKS} AS a FROM d",
        f"SELECT id, unnest(CASE WHEN LLM_FILTER('Q2', odd) THEN l END) AS u, {ASKS} AS a FROM d",
        f"SELECT id, {ASKS} AS a, unnest(CASE WHEN LLM_FILTER('Q2', odd) THEN l END) AS u FROM d",
        "SELECT kid, unnest(list(n) FILTER (WHERE n > 5)) AS u, LLM('Q1', max(odd || id)) AS a FROM d GROUP BY kid",
        # What DuckDB knows without an answer.
        f"SELECT id, upper(typeof({ASKS})) AS t FROM d",
        "SELECT typeof(LLM_AGG('Q1', odd)) AS t FROM d",
        f"SELECT id FROM d WHERE {ASKS} = NULL OR id = 3",
        "SELECT id, LLM('Q1', odd) || NULL AS x FROM d",
    ],
)
def test_what_an_expression_decides_without_the_answer_is_not_asked(comparison, query):
    outcome = comparison.run(query)
    assert outcome.kind == "equal" and outcome.asked <= outcome.needed, outcome


def test_a_macro_that_unnests_is_unnest(comparison):
    for connection in (comparison.plain.connection, comparison.database):
        connection.execute("CREATE MACRO each(x) AS unnest(x)")
        connection.execute("CREATE MACRO every(x) AS each(x)")
    for query in (
        f"SELECT id, every(l) AS u, {ASKS} AS a FROM d",
        f"SELECT id, each([{ASKS}, n]) AS a FROM d ORDER BY id LIMIT 3",
    ):
        outcome = comparison.run(query)
        assert outcome.kind == "equal" and outcome.asked <= outcome.needed, outcome


def test_a_macro_is_the_aggregate_or_the_window_that_it_holds(comparison):
    """Under a LIMIT a window saw only the rows that came out; an aggregate was taken for a value of each row."""
    for connection in (comparison.plain.connection, comparison.database):
        connection.execute("CREATE MACRO total(x) AS sum(x)")
        connection.execute("CREATE MACRO doubled(x) AS 2 * total(x)")
        connection.execute("CREATE MACRO all_rows(x) AS sum(x) OVER ()")
        connection.execute("CREATE MACRO of_all(x) AS x / all_rows(x)")
        connection.execute("CREATE MACRO greatest_of_k(x) AS x || (SELECT max(kind) FROM k)")  # a value of each row
    for query in (
        f"SELECT max(id) AS id, doubled({ASKS}) AS a FROM d LIMIT 1",
        f"SELECT kid, total({ASKS}) AS a FROM d GROUP BY ALL ORDER BY kid",
        "SELECT kid, geomean(LLM_SCORE('Q1', 1, 5, text)) AS a FROM d GROUP BY ALL ORDER BY kid LIMIT 2",
        "SELECT total(n) AS n FROM d WHERE LLM_FILTER('Q1', text) LIMIT 1",
        "SELECT kid, LLM('Q1', max(text)) AS a FROM d GROUP BY kid HAVING doubled(n) > 12",
        "SELECT id, all_rows(n) AS n FROM d WHERE LLM_FILTER('Q1', text) ORDER BY id LIMIT 2",
        "SELECT id, of_all(LLM_SCORE('Q1', 1, 5, text)) AS a FROM d ORDER BY id LIMIT 2",
        "SELECT id, n FROM (SELECT id, odd, all_rows(n) AS n FROM d WHERE LLM_FILTER('Q1', text)) WHERE id > 3",
        "SELECT id, a FROM (SELECT id, all_rows(n) AS n, LLM('Q1', text) AS a FROM d) WHERE id > 3 LIMIT 2",
        f"SELECT id, greatest_of_k({ASKS}) AS a FROM d ORDER BY id LIMIT 2",
    ):
        outcome = comparison.run(query)
        assert outcome.kind == "equal" and outcome.asked <= outcome.needed, outcome


ANSWER = "LLM('Q1', max(text)) AS x"


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT kid, sum(n) AS n, {ANSWER} FROM d GROUP BY kid HAVING n > 12",
        f"SELECT kid, sum(n) AS n, {ANSWER} FROM d GROUP BY ALL HAVING n > 12 AND max(n) > 5",
        f"SELECT kid AS id, {ANSWER} FROM d GROUP BY kid HAVING id > 2 AND LLM_FILTER('Q2', max(text))",
        "SELECT sum(n) AS n, LLM_AGG('Q1', text) AS x FROM d HAVING n > 12",
        f"SELECT kid AS n, sum(n) AS kid, {ANSWER} FROM d GROUP BY kid HAVING kid > 2",
        f"SELECT kid + 1 AS n, count(*) AS kid, {ANSWER} FROM d GROUP BY kid + 1 HAVING n > 2",
        f"SELECT kid + 1 AS n, count(*) AS kid, {ANSWER} FROM d GROUP BY kid+1 HAVING kid + 1 > 2",
        f"SELECT kid, sum(n) AS n, {ANSWER} FROM d GROUP BY GROUPING SETS ((kid), ()) HAVING n > 12",
        # An alias of an alias, and the nearest of two.
        "SELECT id + 1 AS a, a + 1 AS b, LLM('Q1', b::VARCHAR) AS x FROM d WHERE b > 9",
        "SELECT id + 1 AS a, n + 1 AS a, LLM('Q1', a::VARCHAR) AS y FROM d WHERE a > 5",
        # Numbers of the select list.
        "SELECT kid, LLM('Q1', text) AS x, count(*) AS c FROM d GROUP BY CUBE (1, 2)",
        "SELECT LLM('Q1', text) AS x, kid, count(*) AS c FROM d GROUP BY GROUPING SETS ((1), (1, 2), ())",
        f"SELECT kid, n, {ANSWER} FROM d GROUP BY 2, ROLLUP (1)",
        f"SELECT kid, n, {ANSWER} FROM d GROUP BY (1, 2)",
    ],
)
def test_names_and_numbers_mean_what_they_mean_to_duckdb(comparison, query):
    outcome = comparison.run(query)
    assert outcome.kind == "equal", outcome


def test_the_comparison_sees_what_differs(comparison, monkeypatch):
    query = "SELECT d.id, LLM('Q1', d.text) AS y FROM d"
    assert comparison.run(query).kind == "equal"
    monkeypatch.setattr(sql_differential, "_labels", lambda answer_format: ("something", "else"))
    assert comparison.run(query).kind == "wrong rows"
    assert comparison.run("SELECT nothing FROM d WHERE LLM_FILTER('Q2', d.text)").kind == "invalid"
    assert comparison.run("SELECT LLM('Q3', d.text) AS y FROM d TABLESAMPLE 100%").kind == "refused"

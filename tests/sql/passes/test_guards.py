"""Where a call's answer matters."""

from __future__ import annotations

import pytest

from vllm_relational.sql.blocks import Aggregates, sql_of
from vllm_relational.sql.parse import calls, parse
from vllm_relational.sql.passes.guards import guards_of

CALL = "LLM('{t}', t)"


def guards(select: str) -> list[str]:
    return [sql_of(guard) for guard in guards_of(next(calls(parse(select))), Aggregates())]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (f"SELECT {CALL} FROM x", []),
        (f"SELECT 1 FROM x WHERE a > 1 AND {CALL} = 'y'", ["(a > 1) IS TRUE"]),
        (f"SELECT 1 FROM x WHERE (a AND b) AND {CALL} = 'y'", ["((a AND b)) IS TRUE"]),
        (f"SELECT 1 FROM x WHERE NOT (a AND {CALL} = 'y')", ["NOT (a) IS FALSE"]),
        (f"SELECT (a AND {CALL} = 'y') FROM x", ["NOT (a) IS FALSE"]),
        (f"SELECT 1 FROM x WHERE a OR {CALL} = 'y'", ["NOT (a) IS TRUE"]),
        (f"SELECT CASE WHEN a THEN {CALL} WHEN b THEN 1 ELSE 2 END FROM x", ["(a) IS TRUE"]),
        (f"SELECT CASE WHEN a THEN 1 WHEN {CALL} = 'y' THEN 2 END FROM x", ["NOT (a) IS TRUE"]),
        (f"SELECT CASE WHEN a THEN 1 ELSE {CALL} END FROM x", ["NOT (a) IS TRUE"]),
        (f"SELECT CASE k WHEN 1 THEN {CALL} END FROM x", ["((k) = (1)) IS TRUE"]),
        (f"SELECT IF(a, {CALL}, 'n') FROM x", ["(a) IS TRUE"]),
        (f"SELECT coalesce(a, b, {CALL}) FROM x", ["(a) IS NULL", "(b) IS NULL"]),
        (f"SELECT 1 FROM x WHERE {CALL} BETWEEN a AND b", []),
        (f"SELECT 1 FROM x WHERE a IN ({CALL})", []),
        (f"SELECT max({CALL}) FILTER (WHERE a) FROM x", ["(a) IS TRUE"]),
        (f"SELECT max(CASE WHEN a THEN {CALL} END) FROM x", ["(a) IS TRUE"]),
        (f"SELECT CASE WHEN count(*) > 2 THEN max({CALL}) END FROM x", []),
        (f"SELECT CASE WHEN a THEN rank() OVER (ORDER BY {CALL}) END FROM x", []),
        (f"SELECT 1 FROM x WHERE a AND LLM_FILTER('{{t}}', t) AND {CALL} = 'y'", ["(a) IS TRUE"]),
    ],
)
def test_a_guard_is_a_condition_outside_of_which_the_answer_does_not_matter(query, expected):
    assert guards(query) == expected


@pytest.mark.parametrize("value", ["TRUE", "FALSE", "NULL"])
@pytest.mark.parametrize("answer", ["TRUE", "FALSE", "NULL"])
@pytest.mark.parametrize(
    "shape",
    [
        "v AND {call}",
        "v OR {call}",
        "coalesce(v, {call})",
        "v BETWEEN TRUE AND {call}",
        "v BETWEEN {call} AND FALSE",
        "v NOT BETWEEN TRUE AND coalesce({call}, FALSE)",
        "v IN (TRUE, {call})",
        "v NOT IN ({call}, NULL, FALSE)",
    ],
)
def test_outside_of_its_guard_the_answer_changes_nothing(shop, shape, value, answer):
    """By DuckDB itself: where the guard does not hold, the expression is the same for every answer."""
    asked = shape.format(call="LLM_FILTER('t', t)")
    (guard,) = guards(f"SELECT {asked} FROM x")
    both = f"({shape.format(call=answer)}) IS NOT DISTINCT FROM ({shape.format(call='NULL')})"
    (row,) = shop.sql(f"SELECT {guard}, {both} FROM (SELECT {value}::BOOLEAN AS v)").fetchall()
    assert row[0] or row[1]


def test_a_condition_takes_no_row_whose_value_or_bound_is_null(shop):
    found = guards("SELECT 1 FROM x WHERE a BETWEEN b AND LLM_SCORE('t', 1, 5, t)")
    query = f"SELECT {' AND '.join(found)} FROM (VALUES (1, 2), (2, 1), (NULL, 1), (1, NULL)) x(a, b)"
    assert shop.sql(query).fetchall() == [(False,), (True,), (False,), (False,)]


def test_a_plan_shows_the_bound_that_decides(con):
    plan = con.explain("SELECT id FROM review WHERE id BETWEEN 30 AND 30 + LLM_SCORE('{1}', 1, 5, text)")
    assert "asked only where id >= 30" in plan and "CASE WHEN" not in plan


def test_a_guard_protects_what_stands_behind_it(con, engine):
    rows = "(VALUES ('1'), ('odd'), ('7')) t(v)"
    number = "v ~ '^[0-9]+$'"
    case = f"CASE WHEN NOT {number} THEN 'odd' WHEN CAST(v AS INT) > 3 THEN LLM('{{1}}', CAST(v AS INT)) END"
    assert con.sql(f"SELECT count({case}) FROM {rows}").fetchall() == [(2,)]
    assert len(engine.asked) == 1

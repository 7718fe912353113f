"""Calls that a condition of constants keeps from being evaluated."""

from __future__ import annotations

import pytest

from vllm_relational.sql.parse import SQLError

DEAD = "LLM_FILTER('{text} is good', text)"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (f"1 = 0 AND {DEAD}", "BOOLEAN"),
        (f"(2 > 1) OR {DEAD}", "BOOLEAN"),
        ("CASE WHEN 1 = 0 THEN LLM_SCORE('{text}', 1, 5, text) ELSE 2 END", "BIGINT"),
        ("if(NULL, LLM('{text}', text), 'none')", "VARCHAR"),
        ("coalesce('none', LLM('{1}', LLM('{text}?', text)))", "VARCHAR"),
        ("CASE WHEN $1 = 3 THEN LLM('{text}', text) END", "VARCHAR"),
    ],
)
@pytest.mark.parametrize("optimize", [True, False])
def test_they_are_not_asked_and_keep_their_type(connect, engine, value, kind, optimize):
    con = connect(optimize=optimize)
    result = con.sql(f"SELECT id, {value} AS v FROM review", params=[2] if "$1" in value else None)
    assert [str(held) for held in result.types] == ["BIGINT", kind]
    assert len(result.fetchall()) == 40
    assert not (optimize and engine.asked)


@pytest.mark.parametrize(
    "value",
    [
        f"1 = 1 AND {DEAD}",
        f"1 = 0 OR {DEAD}",
        f"coalesce(NULL, {DEAD})",
        f"CASE WHEN stars > 2 THEN {DEAD} END",
        f"CASE WHEN true THEN {DEAD} END",
    ],
)
def test_others_are_asked(connect, engine, value):
    rows = connect().sql(f"SELECT {value} AS v FROM review").fetchall()
    assert engine.asked and any(row[0] is not None for row in rows)


def test_an_aggregate_behind_a_constant_still_makes_groups(connect, engine):
    con = connect()
    query = "SELECT CASE WHEN 1 = 0 THEN {} END AS v FROM review"
    assert con.sql(query.format("LLM('{1}', max(text))")).fetchall() == [(None,)]
    assert con.sql(query.format("LLM_AGG('{text}', text)")).fetchall() == [(None,)]
    assert not engine.asked


def test_a_wrong_call_is_refused_though_no_row_evaluates_it(connect):
    with pytest.raises(SQLError, match="nothing"):
        connect().sql("SELECT CASE WHEN 1 = 0 THEN LLM('{nothing}', text) END FROM review")


def test_explain_says_so(connect):
    assert "never holds" in connect().explain(f"SELECT id FROM review WHERE 1 = 0 AND {DEAD}")

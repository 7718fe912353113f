"""Semantic joins: candidates, and what is said of the others."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine

from vllm_relational import RelationalError

TABLES = (
    "CREATE TABLE a AS SELECT 'a' || i AS x FROM range(30) t(i);"
    "CREATE TABLE b AS SELECT 'b' || i AS y FROM range(30) t(i)"
)
JOIN = "SELECT x, y FROM a JOIN b ON LLM_FILTER('{x} is {y}', a.x, b.y)"


def same(row: dict) -> str:
    return "yes" if row["x"][1:] == row["y"][1:] else "no"


def neighbours(lefts: list[str], rights: list[str], k: int) -> list[list[int]]:
    """The k texts whose numbers are nearest."""
    return [
        sorted(range(len(rights)), key=lambda j, left=left: (abs(int(rights[j][1:]) - int(left[1:])), j))[:k]
        for left in lefts
    ]


def joined(connect, **settings):
    con = connect(engine=FakeEngine(same), **settings)
    con.sql(TABLES)
    return con


def test_without_candidates_all_pairs_are_asked(connect):
    con = joined(connect)
    assert len(con.sql(JOIN).fetchall()) == 30
    assert con.last_run.asked == 900


def test_candidates_only_are_asked_and_the_recall_is_stated(connect):
    con = joined(connect, candidates=neighbours, candidates_k=3, audit_pairs=20)
    assert "at most 90 candidates of 900 pairs" in con.explain(JOIN)
    assert len(con.sql(JOIN).fetchall()) == 30
    assert con.last_run.asked == 110
    assert "90 of 900 pairs are candidates; 0 of 20 others asked hold: recall about 100%" in con.report()
    statuses = dict(con.sql("SELECT status, count(*) FROM llm.op_1 GROUP BY status").fetchall())
    assert statuses == {"answered": 110, "not a candidate": 790}


def test_bad_candidates_show_in_the_recall(connect):
    con = joined(connect, candidates=lambda lefts, rights, k: [[0]] * len(lefts), audit_pairs=870)
    assert len(con.sql(JOIN).fetchall()) == 30  # all others are audited
    assert "recall about 3%" in con.report()


def test_too_many_pairs_are_refused_with_the_fix(connect):
    con = joined(connect, max_pairs=100)
    with pytest.raises(RelationalError, match=r"900 pairs.*max_pairs = 100.*candidates=FUNCTION"):
        con.sql(JOIN)
    assert len(con.sql(f"{JOIN} AND a.x[2:] = b.y[2:]").fetchall()) == 30

"""Columns that nothing reads are not asked for."""

from __future__ import annotations

import pytest

INNER = "SELECT id, stars, LLM('Sum up {text}', text) AS s FROM review"


@pytest.mark.parametrize(
    ("query", "asks"),
    [
        (f"WITH x AS ({INNER}) SELECT id FROM x", False),
        (f"SELECT count(*) FROM ({INNER}) x", False),
        (f"WITH x AS ({INNER}) SELECT p.*, x.id FROM x JOIN product p USING (id)", False),
        (f"WITH x AS ({INNER}) SELECT * FROM x", True),
        (f"WITH x AS ({INNER}) SELECT x.* FROM x JOIN product p USING (id)", True),
        (f"WITH x AS ({INNER}) SELECT x FROM x", True),
        (f"WITH x AS ({INNER}) SELECT COLUMNS('s') FROM x", True),
        (f"WITH x AS ({INNER}) SELECT id FROM x ORDER BY s", True),
        (f"WITH x AS ({INNER} ORDER BY 3 LIMIT 2) SELECT id FROM x", True),
        ("WITH x AS (SELECT DISTINCT stars, LLM('Sum up {text}', text) AS s FROM review) SELECT stars FROM x", True),
        (f"WITH x(a, b, c) AS ({INNER}) SELECT c FROM x", True),
        (f"WITH x AS ({INNER}) SELECT y.* FROM x AS y", True),
        (f"WITH x AS ({INNER}) SELECT null_percentage FROM (SUMMARIZE x)", True),
        (f"WITH x AS ({INNER}) SELECT column_type FROM (DESCRIBE x)", False),
        (f"WITH x AS ({INNER}) SELECT to_json(y) FROM x AS y", True),
        (f"WITH x AS ({INNER}) SELECT c FROM x AS y(a, b, c)", True),
        (f"WITH x AS ({INNER}) SELECT count(*) FROM x PIVOT (count(*) FOR stars IN (1, 2))", True),
        ("WITH x AS (SELECT LLM('{text}', text) AS s, id FROM review ORDER BY ALL LIMIT 3) SELECT id FROM x", True),
        (f"SELECT id FROM ({INNER}) x UNION ALL SELECT id FROM ({INNER} WHERE s = 'yes') y", True),
    ],
)
def test_only_what_is_read_is_asked(con, engine, query, asks):
    con.sql(query)
    assert bool(engine.asked) == asks


def test_the_report_says_so(con):
    assert "column s of x is not asked for" in con.explain(f"WITH x AS ({INNER}) SELECT id FROM x")


def test_arguments_that_the_prompt_does_not_name_are_not_sent(con, engine):
    con.sql("SELECT LLM('Sum up {text}', id, text, stars) FROM review")
    assert all(row.keys() == {"text"} for row in engine.rows())
    assert len(engine.asked) == 13

"""EXPLAIN goes by the answers that there are, says so, and asks nothing."""

from __future__ import annotations

import pytest

from vllm_relational.sql.selectivity import MIN_ANSWERS

pytestmark = pytest.mark.slow  # statements over thousands of rows

FILTERS = [
    "LLM_FILTER('{text} is good', text)",
    "NOT LLM_FILTER('{text} is good', text)",
    "LLM('Sentiment of {text}?', text) = 'yes'",
    "LLM_SCORE('How good is {text}?', 1, 5, text) > 2",
    "LLM_CLASSIFY('{text}', ['a', 'b', 'c'], text) IN ('a', 'c')",
]


def summed_up(condition: str, below: int = 40) -> str:
    return f"SELECT id, LLM('Sum up {{text}}', text) FROM review WHERE id < {below} AND {condition}"


@pytest.mark.parametrize("condition", FILTERS)
def test_the_share_is_that_of_the_answers_there_are(con, engine, condition):
    kept = {text for (text,) in con.sql(f"SELECT text FROM review WHERE id < 12 AND {condition}").fetchall()}
    (known,) = con.sql("SELECT count(*) FROM llm.op_1").fetchall()[0]
    assert MIN_ANSWERS <= known < 13
    asked = len(engine.asked)
    second = con.forecast(summed_up(condition)).forecasts[1]
    assert second.share == pytest.approx(len(kept) / known)
    assert f"llm.op_1 keeps {len(kept) / known:.0%}, measured on {known} answers" in con.explain(summed_up(condition))
    assert len(engine.asked) == asked


def test_before_enough_answers_half_is_assumed(con):
    con.sql(f"SELECT text FROM review WHERE id < 3 AND {FILTERS[0]}")
    plan = con.explain(summed_up(FILTERS[0]))
    assert "expected, if 50% of them are asked" in plan and "llm.op_1 keeps 50%, assumed" in plan


def test_a_side_file_of_an_earlier_session_counts(connect, tmp_path):
    side = tmp_path / "answers.duckdb"
    con = connect(side=side)
    con.sql(f"SELECT text FROM review WHERE id < 12 AND {FILTERS[0]}")
    con.close()
    assert "measured on" in connect(side=side).explain(summed_up(FILTERS[0]))


@pytest.mark.parametrize(
    "condition",
    [
        f"({FILTERS[0]} OR stars = 2)",
        f"({FILTERS[0]} OR {FILTERS[2]})",
        "LLM_FILTER('{text} is good', text) = (id % 2 = 0)",
    ],
)
def test_what_the_answers_alone_do_not_decide_is_assumed(con, condition):
    con.sql(f"SELECT {FILTERS[0]}, {FILTERS[2]} FROM review WHERE id < 12")
    last = con.forecast(summed_up(condition)).forecasts[-1]
    assert last.kept and {(each.share, each.answers) for each in last.kept} == {(0.5, 0)}


def test_predicates_multiply_and_one_counts_once(con):
    con.sql(f"SELECT {FILTERS[0]} FROM review WHERE id < 12")
    last = con.forecast(summed_up(f"{FILTERS[0]} AND {FILTERS[3]}")).forecasts[-1]
    first, second = last.kept
    assert first.answers and not second.answers and second.share == 0.5
    assert last.share == pytest.approx(first.share / 2)


def test_a_limit_expects_the_rows_that_the_answers_promise(connect):
    con = connect(batch_rows=2)
    query = f"SELECT id FROM review WHERE {FILTERS[0]} ORDER BY id LIMIT 4"
    assert con.forecast(query).forecasts[0].share == pytest.approx(8 / 36)  # 4 rows of 36 with a text, if half pass
    con.sql(f"SELECT {FILTERS[0]} FROM review WHERE id < 12")
    (entry,) = con.forecast(query).forecasts
    assert entry.share == pytest.approx(min(4 / entry.kept[0].share / 36, 1)) and entry.kept[0].answers
    assert "measured on" in con.explain(query)

"""EXPLAIN asks nothing and says what a run will ask."""

from __future__ import annotations

import pytest
from oracle_engine import OracleEngine

from vllm_relational import RelationalError
from vllm_relational.sql.cost import Prices, Rates, Tokens
from vllm_relational.sql.parse import SQLError

TWO = "SELECT id, LLM('Sum up {text}', text) FROM review WHERE id > 9 AND LLM_FILTER('{text} is good', text)"


def test_nothing_is_asked(con, engine):
    assert "llm.op_1 in WHERE" in con.explain(TWO)
    assert con.sql(f"EXPLAIN {TWO}").fetchall()[0][0] == "llm_plan"
    assert engine.asked == []


def test_the_forecast_of_a_known_input_is_the_plan_of_the_run(con):
    query = "SELECT LLM('Sum up {text}', text) FROM review WHERE stars > 1"
    (before,) = con.forecast(query).forecasts
    con.sql(query)
    (operator,) = con.last_run.operators
    (report,) = operator.reports
    assert before.is_certain and before.to_ask == report.num_asked == operator.asked
    assert (before.tokens.prompt, before.tokens.cached) == (report.predicted.prompt_tokens, report.predicted.hit_tokens)
    assert (before.operator.rows_in, before.operator.distinct) == (operator.rows_in, operator.distinct)


def test_an_input_that_depends_on_answers_is_bounded(con):
    first, second = con.forecast(TWO).forecasts
    assert first.is_certain and second.waits_for == ["op_1"] and second.share == 0.5
    con.sql(TWO)
    assert con.last_run.operators[1].asked <= second.to_ask
    assert all(entry.is_certain and entry.to_ask == 0 for entry in con.forecast(TWO).forecasts)


def test_answers_as_input_cannot_be_planned(con):
    _, outer = con.forecast("SELECT LLM('Long?', LLM('Sum up {text}', text)) FROM review WHERE id < 9").forecasts
    assert outer.reads == ["op_1"] and outer.operator.rows_in == 9


def test_a_question_that_stands_twice_is_forecast_once(con):
    query = "SELECT LLM('{text}', text) FROM review WHERE LLM('{text}', text) <> 'no' OR stars = 1"
    (entry,) = con.forecast(query).forecasts
    con.sql(query)
    assert entry.to_ask == con.last_run.asked == 13


def test_failed_rows_will_be_asked_again(connect):
    con = connect(engine=OracleEngine(fails_every=3))
    con.sql(f"CREATE TABLE s AS {TWO}")
    failed = con.forecast(TWO).forecasts[0]
    assert failed.to_ask == len(failed.operator.table.failed) > 0


def test_seconds_and_dollars(connect):
    con = connect(rates=Rates(100, 10), prices=Prices(10, 5, 20))
    assert "s, $" in con.explain(TWO)
    tokens = Tokens(prompt=1000, cached=400, output=50)
    assert con.settings.rates.seconds(tokens) == 6 + 5
    assert con.settings.prices.dollars(tokens) == pytest.approx((6000 + 2000 + 1000) / 1e6)


@pytest.mark.parametrize("make", [lambda: Rates(0, 1), lambda: Rates(1, -1), lambda: Prices(-1, 0, 0)])
def test_wrong_rates_are_refused(make):
    with pytest.raises(RelationalError):
        make()


def test_after_a_run_predicted_stands_beside_measured(con):
    assert con.report() == ""
    con.sql(TWO)
    lines = con.report().splitlines()
    assert sum("predicted: " in line for line in lines) == sum("measured: " in line for line in lines) == 2


def test_the_plan_names_conditions_that_spare_questions(con):
    assert "asked only where (id > 9)" in con.explain(TWO)


def test_wrong_sql_is_refused_as_by_a_run(con):
    with pytest.raises(RelationalError, match=r"line 1, column 8: .*nope"):
        con.explain("SELECT nope, LLM('{text}', text) FROM review")


@pytest.mark.parametrize("method", ["explain", "forecast"])
@pytest.mark.parametrize(
    ("text", "count"), [("SELECT 1; {ask}", 2), ("{ask}; {ask}; SELECT ';'", 3), ("", "none"), (" ; -- {ask}", "none")]
)
def test_a_text_of_several_statements_or_none_is_refused(con, method, text, count):
    text = text.replace("{ask}", "SELECT LLM('{text}', text) FROM review")
    with pytest.raises(SQLError, match=f"{method} takes one statement, and this text has {count}: "):
        getattr(con, method)(text)


@pytest.mark.parametrize("text", ["EXPLAIN {ask}", "explain\n{ask};", "{ask} ;;", "-- first\n{ask}"])
def test_one_statement_is_explained_however_it_ends_or_begins(con, text):
    explained = con.explain(text.replace("{ask}", "SELECT LLM('{text}', text) FROM review WHERE id < 9"))
    assert "8 rows in" in explained

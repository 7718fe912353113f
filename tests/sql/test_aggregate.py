"""LLM_AGG: parts that fit, and answers combined until one is left."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeEngine, row_of

import vllm_relational.sql
from vllm_relational import RelationalLLM
from vllm_relational.records import EngineInfo, RelationalError

ROWS = "(SELECT i % 2 AS g, 'value ' || i AS v FROM range(200) t(i))"


class Short(RelationalLLM):
    """A model with a short context, by the estimate of four bytes a token."""

    def expected_engine(self) -> EngineInfo:
        return EngineInfo("short", max_model_len=512)


def open_with(answer, **options):
    llm = Short(engine=answer if isinstance(answer, FakeEngine) else FakeEngine(answer))
    return vllm_relational.sql.connect(llm=llm, max_tokens=16, **options)


class Refusing(FakeEngine):
    """Refuses the part with value 0."""

    def _complete(self, prompt):
        self.fails = {prompt.key} if "value 0" in row_of(prompt)["v"] else set()
        return super()._complete(prompt)


def count(row: dict) -> str:
    """How many original values a part stands for."""
    return str(sum(int(value) if value.isdigit() else 1 for value in row["v"]))


def test_every_value_is_counted_once_however_many_parts_there_are():
    with open_with(count) as con:
        rows = con.sql(f"SELECT g, LLM_AGG('Count {{v}}', v) FROM {ROWS} GROUP BY g ORDER BY g").fetchall()
        assert rows == [(0, "100"), (1, "100")]
        asked = [row_of(prompt)["v"] for prompt in con._llm.engine.asked]
        assert len(asked) > 4
        assert all(len(json.dumps(values)) / 4 < 512 for values in asked)
        assert len(con.last_run.operators[0].reports) >= 2


def test_a_small_group_is_one_prompt_and_nulls_are_left_out():
    with open_with(count) as con:
        query = "SELECT LLM_AGG('Count {v}', v) FROM (VALUES ('b'), (NULL), ('a'), ('a')) t(v)"
        assert con.sql(query).fetchall() == [("3",)]
        assert [row_of(prompt)["v"] for prompt in con._llm.engine.asked] == [["a", "a", "b"]]


@pytest.mark.parametrize("values", ["(SELECT NULL::VARCHAR AS v)", "(SELECT 'x' AS v WHERE FALSE)"])
def test_a_group_without_values_is_null_without_a_question(values):
    with open_with(count) as con:
        assert con.sql(f"SELECT LLM_AGG('Count {{v}}', v) FROM {values}").fetchall() == [(None,)]
        assert con._llm.engine.asked == []


def test_the_given_order_is_kept():
    with open_with(lambda row: ",".join(row["v"])) as con:
        query = "SELECT LLM_AGG('{v}', v ORDER BY n DESC) FROM (VALUES (1, 'a'), (2, 'b'), (3, 'c')) t(n, v)"
        assert con.sql(query).fetchall() == [("c,b,a",)]


def test_a_part_that_fails_fails_its_group_with_the_reason():
    with open_with(Refusing(count)) as con:
        rows = con.sql(f"SELECT g, LLM_AGG('Count {{v}}', v) FROM {ROWS} GROUP BY g ORDER BY g").fetchall()
        assert [answer is None for _, answer in rows].count(True) == 1
        assert list(con.errors()["reason"]) == ["failed request: refused by the fake engine"]


def test_answers_that_cannot_be_combined_end_in_an_error_not_a_loop():
    with open_with(lambda row: "word " * 400) as con:
        assert con.sql(f"SELECT LLM_AGG('Count {{v}}', v) FROM {ROWS}").fetchall() == [(None,)]
        assert "too long to be combined" in con.errors()["reason"][0]


def test_parts_fit_into_the_context_that_only_a_started_server_tells():
    """An endpoint does not say before it is asked how long a prompt may be."""
    engine = FakeEngine(count, max_model_len=512)
    with vllm_relational.sql.connect(llm=RelationalLLM(engine=engine), max_tokens=16) as con:
        assert con.sql(f"SELECT LLM_AGG('Count {{v}}', v) FROM {ROWS}").fetchall() == [("200",)]
    assert all(len(prompt.user) / 4 < 512 for prompt in engine.asked)


def test_explain_plans_for_the_context_that_a_server_reports(fake_server):
    """By the estimate of four bytes a token, 200 values are 1,000 tokens or so: two parts for 1,024, one for 4,096."""
    query = f"SELECT LLM_AGG('Count {{v}}', v) FROM {ROWS}"
    for longest, parts, says in [(1024, 2, False), (None, 1, True)]:
        card = {"id": "tiny", "owned_by": "vllm", **({"max_model_len": longest} if longest else {})}
        fake_server.models = (200, {"data": [card]})
        llm = RelationalLLM(base_url=f"{fake_server.root}/v1")
        with vllm_relational.sql.connect(llm=llm, max_tokens=16) as con:
            assert con.forecast(query).forecasts[0].to_ask == parts
            said = con.explain(query)
            assert ("assumes 4,096 tokens of context: the engine does not say" in said) == says
    assert fake_server.bodies == []


@pytest.mark.parametrize("column", ["*", "r.*"])
def test_a_star_is_not_one_column(column):
    with open_with(count) as con, pytest.raises(RelationalError, match="column 8: LLM_AGG takes one column"):
        con.sql(f"SELECT LLM_AGG('Count {{1}}', {column}) FROM {ROWS} r")

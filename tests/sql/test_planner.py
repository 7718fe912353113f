"""The walk over a statement: its steps, what their answers decide, and that nobody is called on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from oracle_engine import OracleEngine
from sqlglot import exp

from vllm_relational import RelationalLLM
from vllm_relational.sql import Settings
from vllm_relational.sql import parse as parsing
from vllm_relational.sql.answers_database import AnswersDatabase
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.evaluation import Evaluation
from vllm_relational.sql.parse import holds_call, parse
from vllm_relational.sql.prepare import prepared
from vllm_relational.sql.session import Session
from vllm_relational.sql.statement_model import StatementModel
from vllm_relational.sql.steps import AskCall, OrderPredicates, StoreRows, TakeFirst, TryBlock, TryRows

GOOD, LONG = "LLM_FILTER('{text} is good', text)", "LLM_FILTER('{text} is long', text)"
SUM = "LLM('Sum up {text}', text)"


class Answers(Evaluation):
    """Answers as it is told, by the kind of step, and notes the steps."""

    def __init__(self, planner, told) -> None:
        super().__init__(planner)
        self.told, self.steps = told, []

    def _answer(self, step):
        name = step.planned.operator.sql if isinstance(step, AskCall) else ""
        self.steps.append((type(step), name) if name else type(step))
        told = self.told.get(type(step))
        return told(step) if told is not None else super()._answer(step)


@pytest.fixture
def context_of(shop) -> Iterator:
    database = AnswersDatabase(shop)

    def make(sql: str) -> StatementContext:
        model = StatementModel(RelationalLLM(engine=OracleEngine()))
        return StatementContext(Session(shop), database, model, Settings(), sql, parse(sql))

    yield make
    database.close()


def walked(context: StatementContext, told=()) -> tuple[list, exp.Expr]:
    """The steps of a walk, and the tree behind it."""
    tree, _ = prepared(context)
    planner = context.planner()
    answers = Answers(planner, dict(told))
    answers.evaluate(planner.walk(tree))
    return answers.steps, tree


@pytest.mark.parametrize(
    ("sql", "steps"),
    [
        (f"SELECT id, {SUM} AS s FROM review WHERE {GOOD}", [(AskCall, GOOD), (AskCall, SUM)]),
        (f"SELECT {SUM} AS s FROM review GROUP BY {SUM}", [(AskCall, SUM)]),
        ("SELECT LLM('{1}', LLM('{text}', text)) AS s FROM review", 2),
        (f"SELECT id FROM review WHERE {GOOD} AND {LONG}", [OrderPredicates, (AskCall, GOOD), (AskCall, LONG)]),
        (f"SELECT {SUM} AS s FROM review LIMIT 3", [TryBlock, StoreRows, (AskCall, SUM)]),
        (
            f"SELECT {SUM} AS s FROM review WHERE {GOOD} LIMIT 3",
            [TryBlock, StoreRows, TakeFirst, TryBlock, (AskCall, GOOD), (AskCall, SUM)],
        ),
        (
            f"SELECT x.id, x.s FROM (SELECT id, text, {SUM} AS s FROM review) AS x WHERE {GOOD}",
            [TryRows, (AskCall, SUM), (AskCall, GOOD)],
        ),
    ],
)
def test_steps_come_in_the_order_of_evaluation(context_of, sql, steps):
    found, tree = walked(context_of(sql))
    assert (len(found) if isinstance(steps, int) else found) == steps
    assert not holds_call(tree)


def test_predicates_are_asked_in_the_order_that_is_answered(context_of):
    told = {OrderPredicates: lambda step: step.parts[::-1]}
    found, _ = walked(context_of(f"SELECT id FROM review WHERE {GOOD} AND {LONG}"), told)
    assert found[1:] == [(AskCall, LONG), (AskCall, GOOD)]


def test_rows_that_the_statement_does_not_need_are_not_stored(context_of):
    found, _ = walked(context_of(f"SELECT {SUM} AS s FROM review WHERE {GOOD} LIMIT 3"), {TryBlock: lambda _: False})
    assert found == [TryBlock, (AskCall, GOOD), (AskCall, SUM)]


def test_a_free_condition_is_asked_before_the_calls_below_it(context_of):
    sql = f"SELECT x.id, x.s FROM (SELECT id, text, {SUM} AS s FROM review) AS x WHERE {GOOD}"
    found, tree = walked(context_of(sql), {TryRows: lambda _: True})
    assert found == [TryRows, (AskCall, GOOD), (AskCall, SUM)]
    inner = next(tree.find_all(exp.Subquery)).this
    assert inner.args["where"] is not None  # and holds inside by then


def test_calls_are_shown_again_where_an_evaluation_fails(context_of):
    context = context_of(f"SELECT x.id, x.s FROM (SELECT id, text, {SUM} AS s FROM review) AS x WHERE {GOOD}")
    tree, _ = prepared(context)

    def fail(_):
        raise KeyboardInterrupt

    planner = context.planner()
    with pytest.raises(KeyboardInterrupt):
        Answers(planner, {TryRows: fail}).evaluate(planner.walk(tree))
    assert sum(1 for _ in parsing.calls(tree)) == 2


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT {SUM} AS s FROM review WHERE id < 3",
        "UPDATE product SET name = LLM('Name {1}', 'a') WHERE id = 1",
        f"EXPLAIN SELECT {SUM} FROM review WHERE {GOOD}",
    ],
)
def test_a_statement_is_parsed_once(con, monkeypatch, sql):
    texts, read = [], parsing.read

    def counted(sql, tokens):
        texts.append(sql)
        return read(sql, tokens)

    monkeypatch.setattr(parsing, "read", counted)
    con.sql(sql)
    assert len(texts) == 1

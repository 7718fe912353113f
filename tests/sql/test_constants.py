"""Calls that read no column: asked once, and their answer stands in the statement's text."""

from __future__ import annotations

import pytest

from vllm_relational.sql.constants import constant_calls, questions, with_answers
from vllm_relational.sql.parse import parse

CALL = "LLM_FILTER('Is it late?')"


def found_in(sql):
    return constant_calls(parse(sql))


@pytest.mark.parametrize(
    ("sql", "number"),
    [
        (f"UPDATE t SET a = {CALL}", 1),
        (f"DELETE FROM t WHERE {CALL} AND {CALL}", 2),
        ("UPDATE t SET a = LLM_FILTER('{b}?', b)", 0),
        (f"UPDATE t SET a = {CALL}, c = LLM_FILTER('{{b}}?', b)", 0),
        ("UPDATE t SET a = 1", 0),
    ],
)
def test_all_calls_are_constant_or_none_is_taken(sql, number):
    assert len(found_in(sql)) == number


@pytest.mark.parametrize(("answer", "text"), [(True, "TRUE"), (None, "NULL")])
def test_answers_stand_in_place_of_the_calls(answer, text):
    sql = f"UPDATE t SET a = {CALL} /* ) */ WHERE b = 'LLM_FILTER(1)'"
    found = found_in(sql)
    assert len(questions(found).expressions) == 1
    made = with_answers(sql, found, {"__v0": answer})
    assert made == f"UPDATE t SET a = CAST({text} AS BOOLEAN) /* ) */ WHERE b = 'LLM_FILTER(1)'"

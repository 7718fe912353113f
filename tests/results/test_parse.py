"""Completion texts become values; what the format does not admit is an UnparsableAnswer, no other exception."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.answer_format.check import check_answer_format
from vllm_relational.records import Choice, FreeText, IntegerRange, JsonSchema, RelationalError
from vllm_relational.results.parse import UnparsableAnswer, arrow_type, parser

YES_NO = Choice(("Yes", "no"))


@pytest.mark.parametrize(
    ("answer_format", "text", "value"),
    [
        (FreeText(), "  some text \n", "some text"),
        (YES_NO, "Yes", "Yes"),
        (YES_NO, " yes.\n", "Yes"),
        (YES_NO, '"NO!"', "no"),
        (Choice(("Yes!", "no")), "yes!", "Yes!"),
        (Choice(("*", "**")), "*", "*"),
        (Choice((" padded ", "no")), " padded ", " padded "),
        (Choice((" padded ", "no")), "Padded", " padded "),
        (Choice(("1.", "2.")), "2.", "2."),
        (IntegerRange(1, 5), " 3. ", 3),
        (IntegerRange(-5, 5), "-5", -5),
        (IntegerRange(1, 5), "**4**", 4),
        (JsonSchema({"type": "object"}), ' {"a": [1, null]}\n', {"a": [1, None]}),
        (JsonSchema({"type": "integer"}), "7", 7),
        (JsonSchema({}), "[" * 100 + "]" * 100, json.loads("[" * 100 + "]" * 100)),
        (JsonSchema({}), '["\\ud83d\\ude00"]', ["😀"]),
        (Choice(("very good", "bad")), "Very  good.", "very good"),
        (Choice(("caf\u00e9", "bar")), "cafe\u0301", "caf\u00e9"),
    ],
)
def test_values(answer_format, text, value):
    assert parser(answer_format)(text) == value


@pytest.mark.parametrize(
    ("answer_format", "text", "reason"),
    [
        (YES_NO, "maybe", "expected one of: Yes, no"),
        (YES_NO, "yes and no", "answered 'yes and no'"),
        (YES_NO, "", "the answer is empty"),
        (FreeText(), "", "the answer is empty"),
        (FreeText(), " \n\t", "the answer is empty"),
        (IntegerRange(1, 5), "6", "from 1 to 5"),
        (IntegerRange(1, 5), "3.5", "whole number"),
        (IntegerRange(1, 5), "9" * 5000, "..."),
        (IntegerRange(1, 5), " ", "the answer is empty"),
        (IntegerRange(0, 100), "1_0", "whole number"),
        (JsonSchema({"type": "object"}), '{"a": ', "not JSON"),
        (JsonSchema({"type": "object"}), "[1]", "schema forbids"),
        (JsonSchema({}), "[" * 200_000, "nested more than 100 deep"),
        (JsonSchema({}), "[" * 101 + "]" * 101, "nested more than 100 deep"),
        (JsonSchema({}), '{"a":' * 900 + "1" + "}" * 900, "nested more than 100 deep"),
        (JsonSchema({}), "9" * 5000, "thousands of digits"),
        (JsonSchema({}), '{"a": NaN}', "NaN is no JSON number"),
        (JsonSchema({}), "-Infinity", "-Infinity is no JSON number"),
        (JsonSchema({}), "[1e999]", "beyond the numbers"),
        (JsonSchema({}), '{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        (JsonSchema({}), '["\\ud800"]', "not valid Unicode"),
        (JsonSchema({"multipleOf": 0.5}), "9" * 400, "cannot check"),
        (JsonSchema({"maxItems": 1}), json.dumps(["x" * 5000] * 3), "schema forbids"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_unusable_answers_say_what_came_and_what_was_expected(answer_format, text, reason):
    with pytest.raises(UnparsableAnswer) as caught:
        parser(answer_format)(text)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


DECISIONS = [FreeText(), YES_NO, IntegerRange(0, 9), JsonSchema({"type": "object", "required": ["a"]})]


@given(st.sampled_from(DECISIONS), st.text())
def test_any_text_is_a_value_or_unparsable(answer_format, text):
    try:
        value = parser(answer_format)(text)
    except UnparsableAnswer:
        return
    if isinstance(answer_format, Choice):
        assert value in answer_format.labels
    if isinstance(answer_format, IntegerRange):
        assert answer_format.low <= value <= answer_format.high


@given(st.lists(st.text(min_size=1), min_size=2, max_size=4))
def test_every_admitted_label_is_its_own_answer(labels):
    answer_format = Choice(tuple(labels))
    try:
        check_answer_format(answer_format)
    except RelationalError:
        return
    for label in labels:
        assert parser(answer_format)(label) == label


def test_column_types():
    assert arrow_type(IntegerRange(1, 2)) == pa.int64()
    assert {arrow_type(answer_format) for answer_format in (FreeText(), YES_NO, JsonSchema({}))} == {pa.string()}


@pytest.mark.parametrize(
    ("answer_format", "reason"),
    [
        (Choice(("yes",)), "at least two"),
        (Choice(("yes", " ")), "none of them empty"),
        (Choice(("yes", " YES ")), "occurs twice"),
        (IntegerRange(5, 1), "low must be below high"),
        (IntegerRange(3, 3), "low must be below high"),
        (IntegerRange(0, 2**63), "64 bits"),
        (JsonSchema({"type": "nonsense"}), "not valid"),
        (JsonSchema([1]), "give a dict"),  # type: ignore[arg-type]
        (JsonSchema({}, max_tokens=0), "at least 1"),
        (FreeText(0), "at least 1"),
        (FreeText(-3), "max_tokens is -3: give a whole number from 1"),
    ],
)
def test_decisions_that_nothing_satisfies_are_refused(answer_format, reason):
    with pytest.raises(RelationalError, match=reason):
        check_answer_format(answer_format)

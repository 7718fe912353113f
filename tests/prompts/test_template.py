"""Templates name columns; everything else in them is text."""

from __future__ import annotations

import pytest

from vllm_relational.prompts import parse_template
from vllm_relational.prompts.template import answer_rule
from vllm_relational.records import Choice, FreeText, IntegerRange, JsonSchema, RelationalError

COLUMNS = ["Name", "comments", "select", "two words", 'say "hi"', "größe"]


def error_of(template: str, columns: list[str] = COLUMNS) -> str:
    with pytest.raises(RelationalError) as caught:
        parse_template(template, columns)
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "instruction", "columns"),
    [
        ("Is {comments} kind?", 'Is "comments" kind?', ("comments",)),
        ("{comments} of {Name}, {comments}", '"comments" of "Name", "comments"', ("comments", "Name")),
        ("{ comments }?", '"comments"?', ("comments",)),
        ("{select}", '"select"', ("select",)),
        ("{two words}", '"two words"', ("two words",)),
        ('{say "hi"}', '"say \\"hi\\""', ('say "hi"',)),
        ("{größe}", '"größe"', ("größe",)),
        ('Reply {{"a": 1}} for {Name}', 'Reply {"a": 1} for "Name"', ("Name",)),
        ("{{{Name}}}", '{"Name"}', ("Name",)),
        ("Sum up {*}.", "Sum up the record.", tuple(COLUMNS)),
        ("{comments} in {*}", '"comments" in the record', ("comments", *(c for c in COLUMNS if c != "comments"))),
        ("  two\nlines {Name}\n", 'two\nlines "Name"', ("Name",)),
    ],
)
def test_templates(template, instruction, columns):
    question = parse_template(template, COLUMNS)
    assert (question.instruction, question.columns, question.template) == (instruction, columns, template)


def test_a_name_with_outer_spaces_is_found_as_written():
    assert parse_template("{ a }", [" a ", "a"]).columns == (" a ",)


@pytest.mark.parametrize(
    ("template", "match"), [("{name}", "'Name'"), ("{COMMENT}", "'comments'"), ("{twowords}", "'two words'")]
)
def test_unknown_columns_suggest_close_names_in_any_case(template, match):
    message = error_of(template)
    assert f"did you mean {match}" in message and "'{{'" in message


def test_unknown_columns_without_close_names_list_the_columns():
    assert "Columns: Name, comments" in error_of("{zzzzzz}")
    assert "and 30 more" in error_of("{zzzzzz}", [f"c{i}" for i in range(50)])


@pytest.mark.parametrize(
    ("template", "brace", "position"),
    [("a { b", "{", 3), ("a } b {Name}", "}", 3), ("{{Name}", "}", 7), ("{Name", "{", 1), ("{a{b}}", "{", 1)],
)
def test_lone_braces_are_located(template, brace, position):
    message = error_of(template)
    assert f"lone '{brace}' at character {position}" in message and f"'{brace * 2}'" in message


@pytest.mark.parametrize("template", ["", " \n"])
def test_empty_prompts(template):
    assert "the prompt is empty" in error_of(template)


@pytest.mark.parametrize("template", ["Is it good?", "{{Name}}"])
def test_prompts_without_columns(template):
    assert "names no column" in error_of(template)


def test_empty_braces_are_an_unknown_column():
    assert "''" in error_of("{}")


@pytest.mark.parametrize(
    ("answer_format", "rule"),
    [
        (FreeText(), ""),
        (Choice(("yes", "no")), "Answer yes or no."),
        (IntegerRange(1, 5), "Answer with a whole number from 1 to 5."),
        (JsonSchema({"type": "é"}), 'Answer with JSON that follows this schema: {"type": "é"}'),
    ],
)
def test_the_question_says_which_answers_there_are(answer_format, rule):
    assert answer_rule(answer_format) == rule


def test_a_prompt_with_half_a_character_is_refused():
    with pytest.raises(RelationalError, match="the prompt holds half a character"):
        parse_template("Is {a} good \ud800?", ["a"])
    assert parse_template("Is {a} good \U0001f600?", ["a"]).columns == ("a",)

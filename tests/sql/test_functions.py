"""Names in prompts, and the types of answers."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from fake_engine import FakeEngine

from vllm_relational.records import Choice, FreeText, JsonSchema, RelationalError
from vllm_relational.sql.functions import Argument, CallQuestion, canonical_template, field_names
from vllm_relational.sql.json_types import shaped, sql_type_of

TEXT, OTHER, COUNT = Argument("text", "r"), Argument("text", "p"), Argument("COUNT(*)")


@pytest.mark.parametrize(
    ("prompt", "arguments", "template"),
    [
        ("Is {text} good?", [TEXT], "Is {text} good?"),
        ("Is {r.text} good?", [TEXT], "Is {text} good?"),
        ("Is { TEXT } good?", [TEXT], "Is {text} good?"),
        ("Is {1} good?", [TEXT], "Is {text} good?"),
        ("{r.text} or {p.text}", [TEXT, OTHER], "{r.text} or {p.text}"),
        ("Are {count(*)} many?", [COUNT], "Are {COUNT(*)} many?"),
        ("About {*} with {{braces}}", [TEXT, COUNT], "About {*} with {{braces}}"),
        ("Is it good?", [TEXT], "Is it good? Answer from {*}."),
    ],
)
def test_names_in_the_prompt_become_fields(prompt, arguments, template):
    assert canonical_template("LLM", prompt, arguments) == template


@pytest.mark.parametrize(
    ("prompt", "arguments", "reason"),
    [
        ("{txt}", [TEXT], r"did you mean \{text\}"),
        ("{x}", [], "arguments: none"),
        ("{text}", [TEXT, OTHER], r"write \{r.text\} or \{p.text\}"),
        ("{3}", [TEXT], "no argument"),
    ],
)
def test_other_names_are_refused(prompt, arguments, reason):
    with pytest.raises(RelationalError, match=reason):
        canonical_template("LLM", prompt, arguments)


def test_fields_have_names_of_their_own():
    assert field_names([TEXT, COUNT]) == ("text", "COUNT(*)")
    assert field_names([TEXT, OTHER]) == ("r.text", "p.text")
    assert field_names([Argument("llm"), Argument("LLM")]) == ("llm", "LLM_2")


def test_a_question_reads_what_it_names():
    question = CallQuestion("LLM", "{b} and {{a}}", FreeText(), ("a", "b"))
    assert question.reads == ("b",)
    assert CallQuestion("LLM", "{*}", FreeText(), ("a", "b")).reads == ("a", "b")


def test_equal_questions_and_no_others_have_one_identity():
    base = CallQuestion("LLM", "{a}", FreeText(), ("a",))
    assert base.identity() == CallQuestion("LLM", "{a}", FreeText(), ("a", "b")).identity()
    others = [
        CallQuestion("LLM_AGG", "{a}", FreeText(), ("a",)),
        CallQuestion("LLM", "{a} ", FreeText(), ("a",)),
        CallQuestion("LLM", "{a}", FreeText(5), ("a",)),
        CallQuestion("LLM", "{a}", Choice(("x", "y")), ("a",)),
        CallQuestion("LLM", "{a}", Choice(("y", "x")), ("a",)),
        CallQuestion("LLM", "{*}", FreeText(), ("a",)),
    ]
    assert len({question.identity() for question in [base, *others]}) == 7


@pytest.mark.parametrize(
    ("schema", "sql_type", "value", "held"),
    [
        ({"type": "string"}, "VARCHAR", "x", "x"),
        ({"enum": [1, "a"]}, "VARCHAR", 1, "1"),
        ({"type": ["string", "null"]}, "VARCHAR", None, None),
        ({"type": "number"}, "DOUBLE", 1, 1.0),
        ({"type": "integer"}, "BIGINT", 3.0, 3),
        ({"type": "array", "items": {"type": "boolean"}}, "BOOLEAN[]", [True], [True]),
        ({"type": "array"}, "VARCHAR", [1], "[1]"),
        ({"type": "object"}, "VARCHAR", {"a": 1}, '{"a": 1}'),
        (
            {"type": "object", "properties": {'a "b"': {"type": "string"}, "c": {"type": "array", "items": {}}}},
            'STRUCT("a ""b""" VARCHAR, "c" VARCHAR[])',
            {"c": [1, "x"]},
            {'a "b"': None, "c": ["1", "x"]},
        ),
        ({"type": "object", "properties": {"A": {}, "a": {}}}, "VARCHAR", {"A": 1}, '{"A": 1}'),
        (
            {"$ref": "#/$defs/shop", "$defs": {"shop": {"type": "object", "properties": {"n": {"type": "integer"}}}}},
            'STRUCT("n" BIGINT)',
            {"n": 3},
            {"n": 3},
        ),
        (
            {
                "type": "object",
                "properties": {
                    "tags": {"type": "array", "items": {"$ref": "#/definitions/a~1b"}},
                    "x": {"$ref": "#in"},
                },
                "definitions": {"a/b": {"$ref": "#in"}, "c": {"$anchor": "in", "type": "number"}},
            },
            'STRUCT("tags" DOUBLE[], "x" DOUBLE)',
            {"tags": [1, 2]},
            {"tags": [1.0, 2.0], "x": None},
        ),
        (  # a tree: what is below is JSON text
            {"type": "object", "properties": {"v": {"type": "string"}, "next": {"$ref": "#"}}},
            'STRUCT("v" VARCHAR, "next" STRUCT("v" VARCHAR, "next" VARCHAR))',
            {"v": "a", "next": {"v": "b", "next": {"v": "c"}}},
            {"v": "a", "next": {"v": "b", "next": '{"v": "c"}'}},
        ),
    ],
)
def test_json_answers_have_the_type_of_their_schema(schema, sql_type, value, held):
    assert sql_type_of(schema) == sql_type
    assert shaped(value, schema) == held
    kind = duckdb.sql(f"SELECT NULL::{sql_type} AS x").to_arrow_table().schema.field(0).type
    assert pa.array([held], kind).to_pylist() == [held]
    assert CallQuestion("LLM_EXTRACT", "{a}", JsonSchema(schema), ("a",)).sql_type() == sql_type


@pytest.mark.parametrize(
    ("kind", "odd"),
    [("integer", "9" * 30), ("number", "9" * 400), ("string", '"\\ud800"')],
    ids=["int", "float", "text"],
)
def test_an_answer_that_no_sql_type_holds_fails_alone(connect, kind, odd):
    """Decoding under a schema admits whole numbers of any length and halves of surrogate pairs."""
    plain = '"x"' if kind == "string" else "1"
    engine = FakeEngine(lambda row: f'{{"a": {odd if row["id"] == 1 else plain}}}')
    schema = f'{{"type": "object", "properties": {{"a": {{"type": "{kind}"}}}}}}'
    con = connect(engine=engine)
    rows = con.sql(
        f"SELECT id, (LLM_EXTRACT('{{id}}', '{schema}', id)).a AS a FROM range(3) t(id) ORDER BY id"
    ).fetchall()
    assert [a is None for _, a in rows] == [False, True, False]
    why = "not valid Unicode" if kind == "string" else "does not fit into SQL"
    assert con.errors()["reason"].str.contains(why).tolist() == [True]


def test_a_schema_that_grows_without_end_has_a_type():
    """Each of 40 parts names the next one twice: a million million fields."""
    twice = {
        f"d{n}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/d{n + 1}"} for k in "ab"}} for n in range(40)
    }
    assert len(sql_type_of({"$ref": "#/$defs/d0", "$defs": twice})) < 100_000

"""Names in prompts, and the types of answers."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from fake_engine import FakeEngine

from vllm_relational.answer_format.statement import NO, YES
from vllm_relational.records import Choice, FreeText, IntegerRange, JsonSchema, RelationalError
from vllm_relational.sql.functions import (
    LLM_FUNCTIONS,
    Argument,
    CallQuestion,
    SqlFunction,
    canonical_template,
    field_names,
)
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


ADDED = {
    "LLM_PERCENT": SqlFunction(
        "LLM_PERCENT('statement', column, ...)", answer_format=lambda *_: IntegerRange(0, 100), sql_type="BIGINT"
    ),
    "LLM_HOLDS": SqlFunction(
        "LLM_HOLDS('statement', column, ...)", answer_format=lambda *_: Choice((YES, NO)), sql_type="BOOLEAN"
    ),
    "LLM_PARTS": SqlFunction(
        "LLM_PARTS('prompt', column, ...)",
        answer_format=lambda *_: JsonSchema({"type": "object", "properties": {"b": {"type": "integer"}}}),
        sql_type="STRUCT",
    ),
    "LLM_VOTE": SqlFunction("LLM_VOTE('prompt', column)", wording="Vote. ", aggregates=True),
}


@pytest.fixture
def added(monkeypatch):
    for name, function in ADDED.items():
        monkeypatch.setitem(LLM_FUNCTIONS, name, function)


@pytest.mark.parametrize(
    ("query", "types", "rows"),
    [
        ("SELECT LLM_PERCENT('{text}', text) AS v FROM review", ["BIGINT"], 40),
        ("SELECT id FROM (SELECT id, llm_percent('{text}', text) AS v FROM review) WHERE v > 200", ["BIGINT"], 0),
        ("SELECT (LLM_PARTS('{text}', text)).b AS v FROM review WHERE id < 3", ["BIGINT"], 3),
        (
            "SELECT p.id, LLM_PARTS('{text}', text) FROM product p JOIN review r "
            "ON LLM_HOLDS('{name} {text}', name, text) WHERE p.id = r.id",
            ["BIGINT", "STRUCT(b BIGINT)"],
            None,
        ),
        ("SELECT stars, LLM_VOTE('{text}', text) AS v FROM review GROUP BY stars", ["BIGINT", "VARCHAR"], 6),
    ],
)
@pytest.mark.parametrize("optimize", [True, False])
def test_a_row_of_the_table_is_a_function_of_sql(connect, engine, added, query, types, rows, optimize):
    result = connect(optimize=optimize).sql(query)
    assert [str(kind).replace('"', "") for kind in result.types] == types
    assert rows in (None, len(result.fetchall()))
    assert engine.asked


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT 1 FROM review WHERE LLM_VOTE('{text}', text) = 'x'", "LLM_VOTE cannot stand in WHERE"),
        ("SELECT LLM_VOTE('{text}', text, id) FROM review", "LLM_VOTE takes one column"),
        ("SELECT LLM_PERCENT('{text}') FROM review", r"write LLM_PERCENT\('statement', column, ...\)"),
        ("SELECT LLM_PERCENT('{text}', text) FILTER (WHERE id > 3) FROM review", "LLM_PERCENT takes no FILTER"),
    ],
)
def test_its_wrong_calls_are_refused_by_its_name(connect, added, query, reason):
    with pytest.raises(RelationalError, match=reason):
        connect().sql(query)


def test_the_page_has_a_row_for_each_with_its_type():
    page = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
    types = dict(re.findall(r"^\| `(LLM\w*)\(.*?\)` \| `(\w+)` \|", page, re.MULTILINE))
    assert types == {name: function.sql_type for name, function in LLM_FUNCTIONS.items()}

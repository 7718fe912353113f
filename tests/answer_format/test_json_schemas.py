"""A schema is data: nothing is fetched, nothing hangs, and what cannot be used is refused before anything is asked."""

from __future__ import annotations

import enum
import re
import time

import numpy as np
import pydantic
import pytest

from vllm_relational import RelationalError
from vllm_relational.answer_format.json_schemas import plain_schema, schema_check

HUNG = "a" * 40 + "b"  # for ^(a+)+$ a matcher that goes back needs 2^40 steps


class Size(enum.StrEnum):
    SMALL = "small"


class Model(pydantic.BaseModel):
    size: Size


def verdict(schema, document):
    reason = schema_check(schema)(document)
    return reason


@pytest.mark.parametrize(
    ("schema", "document", "fits"),
    [
        ({"pattern": "^(a+)+$"}, "aaa", True),
        ({"pattern": "^(a+)+$"}, HUNG, False),
        ({"pattern": "^(a+)+$"}, 5, True),
        ({"pattern": "^(a|a?)+$"}, HUNG, False),
        ({"patternProperties": {"^(a+)+$": {"type": "integer"}}}, {HUNG: "x"}, True),
        ({"patternProperties": {"^(a+)+$": {"type": "integer"}}}, {"aa": "x"}, False),
        ({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {HUNG: 1}, False),
        ({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {"aa": 1}, True),
        ({"patternProperties": {"^a": {}}, "additionalProperties": {"type": "null"}}, {"a": 1, "b": 2}, False),
        ({"patternProperties": {"^a": {}}, "additionalProperties": {"type": "null"}}, {"a": 1, "b": None}, True),
        ({"propertyNames": {"pattern": "^(a+)+$"}}, {HUNG: 1}, False),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a+)+$"}, HUNG, False),
        ({"$schema": "https://json-schema.org/draft/2019-09/schema", "pattern": "^(a+)+$"}, HUNG, False),
        ({"$schema": "http://json-schema.org/draft-04/schema", "pattern": "^(a+)+$"}, HUNG, False),
        # As JavaScript reads a pattern.
        ({"pattern": r"^\u00e9\ud83d\ude00$"}, "é😀", True),
        ({"pattern": r"^\\u00e9$"}, "\\u00e9", True),
        ({"pattern": r"^\p{Lu}+$"}, "ÄB", True),
        ({"pattern": "^a$"}, "a\n", False),
        ({"pattern": "b"}, "abc", True),
        # References inside the schema.
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}, {"a": 1}, True),
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}, {"a": "1"}, False),
        ({"$id": "http://e.org/r", "$ref": "n", "$defs": {"x": {"$id": "n", "type": "integer"}}}, "1", False),
        ({"$ref": "#n", "$defs": {"x": {"$anchor": "n", "type": "integer"}}}, "1", False),
        ({"$dynamicRef": "#n", "$defs": {"x": {"$dynamicAnchor": "n", "type": "integer"}}}, "1", False),
        ({"$ref": "#/x/n", "x": {"n": {"type": "integer"}}}, "1", False),
        ({"type": "array", "items": {"$ref": "#"}}, [[], [[]]], True),
        ({"type": "array", "items": {"$ref": "#"}}, [[1]], False),
        # What only looks like a reference is data.
        ({"enum": [{"$ref": "http://e.org/x"}]}, {"$ref": "http://e.org/x"}, True),
        ({"properties": {"$ref": {"type": "string"}, "$schema": {"type": "string"}}}, {"$ref": 5}, False),
        # Python's own texts and lists.
        ({"enum": [Size.SMALL], "type": ("string",)}, "small", True),
        ({"required": ("a",)}, {}, False),
        (Model.model_json_schema(), {"size": "small"}, True),
        (Model.model_json_schema(), {"size": "tall"}, False),
    ],
    ids=str,
)
def test_documents(schema, document, fits):
    begin = time.perf_counter()
    assert (schema_check(schema)(document) is None) is fits
    assert time.perf_counter() - begin < 2


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


ENDLESS = {}
ENDLESS["not"] = ENDLESS


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "http://127.0.0.1:9/x.json"}, r"refers at \$.\$ref to 'http://127.0.0.1:9/x.json'.*\$defs"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "which it does not hold"),
        ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
        ({"$ref": "other.json"}, "nothing is fetched"),
        ({"properties": {"a": {"allOf": [{"$ref": "b.json#/x"}]}}}, r"at \$.properties.a.allOf\[0\].\$ref"),
        ({"$ref": "#/$defs/missing"}, "'#/.defs/missing', which it does not hold"),
        ({"$ref": "#/x/b", "x": {"b": {"$ref": "http://e.org/"}}}, r"at \$.\$ref.\$ref"),
        ({"$ref": "#/x", "x": {"type": "nonsense"}}, "not valid"),
        ({"$ref": "#/x", "x": [1]}, "not valid"),
        ({"$dynamicRef": "http://e.org/#n"}, r"at \$.\$dynamicRef"),
        ({"$id": "http://e.org/a/", "$ref": "../b.json"}, "nothing is fetched"),
        ({"$id": "http://[", "$ref": "#/a"}, "JSON schema"),
        ({"$id": "http://e.org/", "properties": {"a": {"$id": "http://["}}}, "an .id that cannot be read"),
        ({"$ref": "#"}, "refers to itself"),
        ({"anyOf": [{"type": "string"}, {"$ref": "#"}]}, "refers to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "refers to itself"),
        ({"$schema": "http://e.org/mine"}, r"dialect 'http://e.org/mine' at \$.\$schema"),
        ({"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}}, "a dialect of a part"),
        ({"pattern": "(?=a)b"}, r"at \$.pattern the pattern '\(\?=a\)b', which RE2 cannot match.*without look-around"),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, r"at \$.properties.a.pattern"),
        ({"patternProperties": {"(?!x)": {}}}, r"at \$.patternProperties"),
        ({"pattern": "a{2000}"}, "counts over 1000"),
        ({"pattern": "("}, r"missing \)"),
        ({"allOf": [{"patternProperties": {"^a": {}}}], "unevaluatedProperties": False}, "write additionalProperties"),
        ({"type": "nonsense"}, r"not valid at \$.type"),
        ({"properties": {"a": {"type": 5}}}, r"not valid at \$.properties.a.type"),
        ({"maximum": float("nan")}, r"at \$.maximum what JSON does not have \(float\)"),
        ({"maximum": 10**400}, r"at \$.maximum"),
        ({"enum": [{1, 2}]}, r"at \$.enum\[0\] what JSON does not have \(set\)"),
        ({"enum": [np.int64(1)]}, r"\(int64\)"),
        ({"const": b"x"}, r"\(bytes\)"),
        ({"title": "\ud800"}, r"at \$.title"),
        ({"properties": {1: {}}}, r"a name at \$.properties that is no text \(int\)"),
        (Model, r"give Model.model_json_schema\(\)"),
        (nested(120), "nested more than 100 deep"),
        (ENDLESS, "nested more than 100 deep"),
        ("object", "of the type str: give a dict"),
        (None, "give a dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_refused(schema, reason, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("something is fetched"))
    with pytest.raises(RelationalError) as caught:
        schema_check(schema)
    assert re.search(reason, str(caught.value)), str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_plain_schema_is_a_copy_in_types_of_json():
    given = {"enum": (Size.SMALL, np.float64(1.5), True, None)}
    plain = plain_schema(given)
    assert plain == {"enum": ["small", 1.5, True, None]}
    assert [type(item) for item in plain["enum"]] == [str, float, bool, type(None)]

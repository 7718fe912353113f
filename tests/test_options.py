"""Options of a wrong type are refused by name, with what they got and what they take; unknown ones likewise."""

from __future__ import annotations

import enum
import inspect
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_engine import FakeEngine

import vllm_relational.sql
from vllm_relational import RelationalError, RelationalLLM
from vllm_relational.config import QueryOptions
from vllm_relational.config.kinds import read_labels, shown
from vllm_relational.config.llm import ServerOptions
from vllm_relational.engine.endpoint import EndpointEngine

FRAME = pd.DataFrame({"text": ["yes", "no"]})


class Sent(enum.StrEnum):
    POS = "pos"
    NEG = "neg"


class Plain(enum.Enum):
    POS = "pos"
    NEG = "neg"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Bit(enum.IntFlag):
    READ = 1
    WRITE = 2


class Half(float, enum.Enum):
    ONE = 0.5


class Wild(str, enum.Enum):  # noqa: UP042 - as before StrEnum
    pass


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __iter__(self):
        raise RuntimeError("no items")


@pytest.fixture
def llm():
    with RelationalLLM(engine=FakeEngine(lambda row: row["text"])) as llm:
        yield llm
        assert llm.engine.asked == []


# ------------------------------------------------------------------------------------------------------- wrong values
WRONG = [
    ({"max_tokens": "a"}, r"max_tokens is 'a': .*whole number"),
    ({"max_tokens": True}, "max_tokens is True"),
    ({"max_tokens": 0}, "max_tokens is 0: an answer needs at least 1"),
    ({"max_tokens": -1}, "max_tokens is -1"),
    ({"max_tokens": 10**12}, "max_tokens is 1000000000000: .*up to 10,000,000"),
    ({"max_tokens": 10**5000}, "max_tokens is <int>"),
    ({"max_tokens": 5.0}, "max_tokens is 5.0"),
    ({"max_tokens": np.array([1, 2])}, "max_tokens is array"),
    ({"pin": (1, 5)}, r"pin is \(1, 5\): give columns"),
    ({"pin": 5}, "pin is 5: give columns"),
    ({"pin": {"text": 1}}, "pin is {'text': 1}"),
    ({"pin": Rude()}, r"pin is <Rude>: its items cannot be read \(no items\)"),
    ({"order": ["x"]}, r"order is \['x'\]: give the name of a planner"),
    ({"order": ""}, "order is ''"),
    ({"keep_order": -1}, "keep_order is -1: give a list of columns"),
    ({"keep_order": "text"}, "keep_order is 'text': give a list of columns"),
    ({"keep_order": [["text", 5]]}, "keep_order is"),
    ({"column_weights": {"text": "x"}}, "column_weights is {'text': 'x'}: give numbers by column"),
    ({"column_weights": ["text"]}, "column_weights is"),
    ({"column_weights": {"text": Decimal(1)}}, "column_weights is"),
    ({"similarity": "x", "dedup": "semantic"}, "similarity is 'x': give a cosine"),
    ({"similarity": float("nan")}, "similarity is nan: give a cosine"),
    ({"similarity": True}, "similarity is True"),
    ({"similarity": 10**400}, "similarity is 1000"),
    ({"audit": -1}, "audit is -1: give a whole number of rows"),
    ({"audit": 0.1}, "audit is 0.1"),
    ({"seed": "a"}, "seed is 'a': give a whole number from 0"),
    ({"seed": 2**31 - 1}, "seed is 2147483647: .*31 bits"),
    ({"range": ("1", "5")}, r"range is \('1', '5'\): give two whole numbers"),
    ({"range": (1, 2, 3)}, "range is .*: give two whole numbers"),
    ({"range": (True, 5)}, "range is .*: give two whole numbers"),
    ({"range": {1: 5}}, "range is .*: give two whole numbers"),
    ({"system_prompt": 5}, "system_prompt is 5: give a text; '' sends none"),
    ({"system_prompt": None}, "system_prompt is None: give a text; '' sends none"),
    ({"system_prompt": "\ud800"}, "system_prompt is .*not valid Unicode"),
    ({"nulls": "maybe"}, "nulls is 'maybe': use one of error, keep"),
    ({"nulls": ["keep"]}, "nulls is .*: use one of error, keep"),
    ({"on_error": np.array(["null", "raise"])}, "on_error is array.*: use one of null, raise"),
    ({"layout": 5}, "layout is 5: use one of question-first, row-first"),
    ({"dedup": 5}, "dedup is 5: use one of exact, normalized, semantic"),
    ({"normalize": "case"}, "normalize is 'case': give rules by column"),
    ({"normalize": {"text": 5}, "dedup": "normalized"}, "normalize is"),
    ({"similar_columns": 5, "dedup": "semantic"}, "similar_columns is 5"),
    ({"embedder": 5, "dedup": "semantic"}, "embedder is 5: give a folder or hub name, or a function"),
    ({"checkpoint": 5}, "checkpoint is 5: give the name of a file"),
    ({"checkpoint": "a\0b"}, "checkpoint is .*: give the name of a file"),
    ({"cache": ""}, "cache is '': give the name of a file"),
    ({"cache": b"file"}, "cache is b'file': give the name of a file"),
    ({"resume": "yes"}, "resume is 'yes': give True or False"),
    ({"progress": 1}, "progress is 1: give True or False"),
    ({"after": [5]}, r"after is \[5\]: give a list of QueryResult.asked"),
    ({"choices": 5}, "choices is 5: give a list of labels"),
    ({"choices": "yes,no"}, "choices is 'yes,no': give a list of labels"),
    ({"choices": {"yes": 1, "no": 2}}, "choices is .*: give a list of labels"),
    ({"choices": {"yes"}}, "a set has another order from run to run"),
    ({"choices": Plain}, "label 1 is .*Plain.POS.*: give its text, e.g. its .value"),
    ({"choices": ["a", Half.ONE]}, "label 2 is .*Half.ONE.*: give its text"),
    ({"choices": ["a", "b\ud800"]}, r"label 2 is 'b\\ud800': it is not valid Unicode: give the whole character"),
    ({"choices": ["caf\udce9"]}, r"label 1 is 'caf\\udce9': it is not valid Unicode: it was given in bytes"),
    ({"choices": Wild("WILD", {"A": "a\udfff"})}, r"label 1 is .*: it is not valid Unicode"),
    ({"max_tokens": Plain.POS}, "max_tokens is .*Plain.POS"),
    ({"max_tokens": Half.ONE}, "max_tokens is .*Half.ONE"),
    ({"similarity": Plain.POS}, "similarity is .*Plain.POS"),
    ({"choices": ["a", None]}, "label 2 is None: give a text"),
    ({"choices": [True, False]}, "label 1 is True"),
    ({"choices": ["a", 1.5]}, "label 2 is 1.5"),
    ({"choices": [("a", "b"), "c"]}, r"label 1 is \('a', 'b'\)"),
    ({"choices": [b"a", "b"]}, "label 1 is b'a'"),
    ({"choices": ["a", "\ud800"]}, "label 2 is"),
    ({"choices": ["a", " "]}, "none of them empty"),
    ({"choices": ["1", 1]}, "'1' occurs twice"),
    ({"choices": ["very good", "Very  good"]}, "occurs twice"),
    ({"choices": ["caf\u00e9", "cafe\u0301"]}, "occurs twice"),
    ({"schema": {"$ref": "http://127.0.0.1:9/x"}}, "nothing is fetched"),
    ({"schema": "object"}, "give a dict"),
]


def case(value) -> str | None:
    """A name that is the same in every process: without addresses."""
    return value if isinstance(value, str) else re.sub(r" at 0x[0-9a-f]+", "", shown(value))


@pytest.mark.parametrize(("options", "reason"), WRONG, ids=case)
@pytest.mark.parametrize("method", ["run", "plan"])
def test_a_wrong_value_is_refused_by_name(llm, method, options, reason):
    with pytest.raises(RelationalError, match=reason) as caught:
        getattr(llm, method)(FRAME, "{text}?", **options)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chioces": ["a", "b"]}, "no option 'chioces': did you mean choices?"),
        ({"temperature": 0.5}, "no option 'temperature'"),
        ({"max_token": 5}, "did you mean max_tokens?"),
        ({"schema_": {}}, "did you mean schema?"),
        ({"dedupe": "exact"}, "did you mean dedup?"),
    ],
)
def test_an_unknown_option_is_named_with_the_known_ones(llm, options, words):
    with pytest.raises(RelationalError) as caught:
        llm.query(FRAME, "{text}?", **options)
    said = str(caught.value)
    assert words in said and "(options: after, audit, cache" in said and "\n" not in said


def test_a_plan_is_for_an_engine(llm):
    with pytest.raises(RelationalError, match="info is of the type str: give an EngineInfo"):
        llm.plan(FRAME, "{text}?", "fast")


@pytest.mark.parametrize("prompt", [5, None, ["{text}?"], b"{text}?", "{text} \ud800?"])
def test_a_prompt_is_a_text(llm, prompt):
    with pytest.raises(RelationalError, match="the prompt is"):
        llm.run(FRAME, prompt)


# ------------------------------------------------------------------------------------------------------- right values
@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["yes", "no"], ("yes", "no")),
        (("yes", "no"), ("yes", "no")),
        (Sent, ("pos", "neg")),
        ([Sent.POS, "neg"], ("pos", "neg")),
        (Number, ("1", "2")),
        ([Number.TWO, 3, "x"], ("2", "3", "x")),
        ([Bit.READ, Bit.READ | Bit.WRITE], ("1", "3")),
        ([1, 2], ("1", "2")),
        ([np.int64(3), np.str_("four")], ("3", "four")),
        (np.array(["a", "b"]), ("a", "b")),
        (pd.Series(["a", "b"]), ("a", "b")),
        ((label for label in "ab"), ("a", "b")),
        ([" padded ", "b"], (" padded ", "b")),
    ],
)
def test_labels_keep_their_meaning(given, labels):
    assert read_labels(given) == labels
    assert {type(label) for label in read_labels(labels)} == {str}


def test_labels_of_an_enum_are_answers():
    with RelationalLLM(engine=FakeEngine(lambda row: "NEG")) as llm:
        answers = llm.query(FRAME, "{text}?", choices=Sent)
        assert answers.tolist() == ["neg", "neg"] and type(answers[0]) is str
        assert llm.query(FRAME, "{text}?", choices=(label for label in ("neg", "pos"))).tolist() == ["neg", "neg"]


@pytest.mark.parametrize(
    ("given", "name", "read"),
    [
        ({"max_tokens": np.int64(5)}, "max_tokens", 5),
        ({"max_tokens": 10_000_000}, "max_tokens", 10_000_000),
        ({"range": np.array([1, 5])}, "range", (1, 5)),
        ({"pin": "text"}, "pin", ("text",)),
        ({"pin": pd.Index(["a", "b"])}, "pin", ("a", "b")),
        ({"pin": None}, "pin", ()),
        ({"keep_order": ["a", "b"]}, "keep_order", (("a", "b"),)),
        ({"keep_order": [["a", "b"], ("c", "d")]}, "keep_order", (("a", "b"), ("c", "d"))),
        ({"similarity": np.float32(1)}, "similarity", 1.0),
        ({"column_weights": {"a": 2}}, "column_weights", {"a": 2.0}),
        ({"normalize": None}, "normalize", {}),
        ({"normalize": {"*": "case"}, "dedup": "normalized"}, "normalize", {"*": ("case",)}),
        ({"cache": Path("a.sqlite")}, "cache", Path("a.sqlite")),
        ({"seed": 2**31 - 2}, "seed", 2**31 - 2),
        ({"resume": np.True_, "checkpoint": "a.jsonl"}, "resume", True),
        ({"system_prompt": Sent.POS}, "system_prompt", "pos"),
        ({"max_tokens": Number.TWO}, "max_tokens", 2),
        ({"range": (Number.ONE, Number.TWO)}, "range", (1, 2)),
        ({"similarity": Half.ONE}, "similarity", 0.5),
        ({"progress": None}, "progress", None),
    ],
)
def test_values_are_read_in_one_type(given, name, read):
    found = getattr(QueryOptions(**given), name)
    assert found == read and type(found) is type(read)


# ------------------------------------------------------------------------------------------------------- other doors
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"model": 5}, "model is 5: give a folder or hub name"),
        ({"model": ""}, "model is ''"),
        ({"model": "m", "tokenizer": ["t"]}, "tokenizer is"),
        ({"model": "m", "order": 5}, "order is 5"),
        ({"model": "m", "quiet": "no"}, "quiet is 'no': give True or False"),
        ({"model": "m", "scheduler": 5}, "scheduler is 5: give settings"),
        ({"model": "m", "scheduler": ["token_exact"]}, "scheduler is"),
        ({"model": "m", "attention": 5}, "attention is 5: use 'dipr'"),
        ({"model": "m", "dipr": "alpha"}, "dipr is 'alpha': give settings"),
        ({"engine": 5}, "engine is 5: give an object with start, ask"),
        ({"engine": FakeEngine}, "engine is"),
        ({"engine": FakeEngine(), "dtype": "half"}, "no option 'dtype'"),
        ({"model": "m", "concurrency": 5}, "concurrency is for a server: name one with base_url"),
        ({"base_url": 5}, "base_url is 5"),
        ({"base_url": "http://h/v1", "concurrency": "x"}, "concurrency is 'x': give a whole number of requests"),
        ({"base_url": "http://h/v1", "concurrency": 0}, "concurrency is 0"),
        ({"base_url": "http://h/v1", "timeout_s": -1}, "timeout_s is -1: give seconds above 0"),
        ({"base_url": "http://h/v1", "timeout_s": float("nan")}, "timeout_s is nan"),
        ({"base_url": "http://h/v1", "api_key": 5}, "api_key is 5"),
        ({"base_url": "http://h/v1", "max_retry": 5}, "no option 'max_retry': did you mean max_retries?"),
    ],
    ids=case,
)
def test_arguments_of_the_object(arguments, reason):
    with pytest.raises(RelationalError, match=reason):
        RelationalLLM(**arguments)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": "a"}, "max_tokens is 'a'"),
        ({"max_tokens": None}, "max_tokens is None"),
        ({"optimize": "no"}, "optimize is 'no': give True or False"),
        ({"sample_rows": -1}, "sample_rows is -1"),
        ({"candidates": 5}, "candidates is 5"),
        ({"rates": (1, 2)}, "rates is"),
        ({"retriever": 5}, "retriever is 5"),
        ({"layout": "sideways"}, "layout is 'sideways'"),
        ({"audit": 0.1}, "audit is 0.1"),
        ({"read_only": "yes"}, "read_only is 'yes'"),
        ({"chioces": []}, "no option 'chioces'"),
        ({"max_token": 5}, "did you mean max_tokens?"),
        ({"side": 5}, "side is 5: give the name of a file"),
        ({"database": 5}, "database is 5"),
        ({"llm": 5}, "llm is 5: give a RelationalLLM"),
    ],
    ids=case,
)
def test_options_of_sql(llm, options, reason):
    with pytest.raises(RelationalError, match=reason):
        vllm_relational.sql.connect(**{"llm": llm, **options})


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda asked: asked.map("{text}?", chioces=[1]), "did you mean choices"),
        (lambda asked: asked.filter("{text}", choices=["a", "b"]), "sets choices itself"),
        (lambda asked: asked.filter("{text}", range=(1, 2)), "exclude each other"),
        (lambda asked: asked.classify("{text}?", "yes,no"), "choices is 'yes,no'"),
        (lambda asked: asked.classify("{text}?", [None, "a"]), "label 1 is None"),
        (lambda asked: asked.score("{text}?", "1", 5), "range is"),
        (lambda asked: asked.score("{text}?", 1, 5, max_tokens="a"), "max_tokens is 'a'"),
    ],
)
def test_options_of_the_accessor(llm, call, reason):
    with pytest.raises(RelationalError, match=reason):
        call(FRAME.llm.using(llm))


# ---------------------------------------------------------------------------------------------------- one definition
def test_the_options_of_a_server_are_those_of_its_engine():
    parameters = list(inspect.signature(EndpointEngine.__init__).parameters.values())[3:]
    known = {name: field.default for name, field in ServerOptions.model_fields.items()}
    assert known == {parameter.name: parameter.default for parameter in parameters}

#!/usr/bin/env python
# ruff: noqa: E501 - tables of values
"""Options, prompts, labels, schemas and answers drawn at random: what comes of them is a value or RelationalError.

    python scripts/robustness/fuzz_options.py --cases 150000 --seed 1

Cases are dealt to five targets in turn: a query that is planned, the object and its server, a session of SQL, a schema
with documents and answers to it, and labels with answers. Every case has a seed of its own, printed with what it broke:
``--only SEED`` repeats it. Exit status 1 if any case raised something else, took longer than SLOW_SECONDS, or gave a
value that the option, the answer format or the schema does not admit.
"""

from __future__ import annotations

import argparse
import enum
import json
import math
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import vllm_relational.sql
from vllm_relational import RelationalError, RelationalLLM
from vllm_relational.answer_format.check import check_answer_format
from vllm_relational.config.kinds import read_labels
from vllm_relational.config.llm import LlmOptions, ServerOptions
from vllm_relational.config.query import QueryOptions
from vllm_relational.config.sql import SqlOptions
from vllm_relational.records import Choice, Completion, EngineInfo, FreeText, IntegerRange, JsonSchema
from vllm_relational.results.outcome import checked
from vllm_relational.results.parse import parser

SLOW_SECONDS = 5.0
TABLE = pa.table({"text": ["a", "b", "a"], "id": [1, 2, 1]})
INFO = EngineInfo("fuzz")


class Shade(enum.StrEnum):
    LIGHT = "light"
    DARK = "dark"


class Step(enum.Enum):
    ONE = 1
    TWO = "two"


class Rude:
    """An object of the user's that fails whatever is asked of it."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __iter__(self) -> Any:
        raise KeyError("no items")

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]


# ------------------------------------------------------------------------------------------------------------- values
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 5, 64, 10**12, 10**400, -(2**63), 2**31 - 1, 0.0, 0.5, 1.0, 1e308, math.nan, math.inf,
    "", " ", "a", "text", "id", "nope", "\0", "\ud800", "é", "yes,no", "exact", "semantic", "normalized", "keep", "error",
    "raise", "null", "row-first", "question-first", "tree", "fixed", "ggr", "original", "{text}", "case", "*", "default",
    b"bytes", Decimal("1.5"), Path("x"), Path(""), Shade.LIGHT, Step.ONE, Shade, Step, Rude(), Rude, print, len,
    np.int64(3), np.float32(0.5), np.bool_(True), np.str_("s"), np.array([1, 2]), np.array(["a", "b"]), np.array(7),
    pa.array(["a", "b"]), (), [], {}, set(), {"a"}, frozenset({"a", "b"}), range(3), iter("ab"), object(), 1j, ...,
)  # fmt: skip
NAMES = [
    *QueryOptions.model_fields,
    "schema",
    "temperature",
    "chioces",
    "self",
    "table",
    "prompt",
    "info",
    "",
    "max tokens",
]


# Values that an option takes, so that cases reach what lies behind the first check.
RIGHT: dict[str, tuple[Any, ...]] = {
    "choices": (["a", "b"], ("x", 1), Shade, [Shade.LIGHT, "c"], ["no", "not sure"]), "range": ((1, 5), [0, 1], (-5, 10**6)),
    "schema": ({}, {"type": "object", "properties": {"a": {"type": "string"}}}), "max_tokens": (1, 64, np.int64(5), 10**7),
    "order": ("tree", "fixed", "fixed_v2", "ggr", "original"), "pin": ("text", ["id"], []), "layout": ("row-first",),
    "keep_order": (["text", "id"], [["id", "text"]]), "column_weights": ({"text": 2}, {"id": 0}, {}), "seed": (0, 7),
    "system_prompt": ("", "Judge."), "nulls": ("keep", "error"), "on_error": ("raise",), "audit": (0, 3), "dedup": ("exact",),
    "normalize": ({}, {"*": "case"}, {"text": ["case", "whitespace"]}), "similarity": (0.5, 1), "similar_columns": ("text",),
    "resume": (False,), "progress": (None, False), "concurrency": (1, 32), "timeout_s": (1, 0.5), "quiet": (True,),
    "model": ("m", Path("m")), "api_key": ("k",), "optimize": (True, False), "batch_rows": (1, 64), "sample_rows": (0, 8),
}  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> Any:
    """Anything: an odd value, or a collection of them."""
    kind = draw.random()
    if depth > 2 or kind < 0.6:
        return draw.choice(ODD)
    items = [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind < 0.75:
        return items
    if kind < 0.85:
        return tuple(items)
    if kind < 0.95:
        return {draw.choice(("text", "id", "*", 1, None, "type", "$ref")): item for item in items}
    return (item for item in items)


def text(draw: random.Random, longest: int = 12) -> str:
    pieces = ("a", "b", "A", " ", "yes", "no", "1", "0", "-", ".", "{", "}", "[", "]", '"', "\\", "\n", "é", "e\u0301",
              "\ud800", "\0", "😀", "<think>", "</think>", "null", "true", "NaN", "9" * 30, "\\ud800", ",", ":", "text")  # fmt: skip
    return "".join(draw.choice(pieces) for _ in range(draw.randrange(longest)))


def options(draw: random.Random, names: list[str], most: int = 3) -> dict[str, Any]:
    chosen = [draw.choice(names) for _ in range(draw.randrange(most + 1))]
    return {name: draw.choice(RIGHT[name]) if name in RIGHT and draw.random() < 0.6 else value(draw) for name in chosen}


# ------------------------------------------------------------------------------------------------------------ targets
def plans(draw: random.Random) -> str:
    """A query over a small table, planned; nothing is asked and no file is made."""
    given = options(draw, NAMES)
    if draw.random() < 0.7:  # where the dangerous ones are not looked at twice
        given.pop("embedder", None)
    if isinstance(given.get("dedup"), str) and given["dedup"] == "semantic":
        given["embedder"] = lambda texts: np.ones((len(texts), 2), np.float32)
    prompt = draw.choice(("{text}?", "{*}", "{text} {id}") * 4 + (text(draw), value(draw)))
    given = {name: item for name, item in given.items() if name not in ("table", "prompt", "self", "info")}
    info = INFO if draw.random() < 0.9 else value(draw)
    RelationalLLM().plan(TABLE, prompt, info, **given)
    return "planned"


def makes(draw: random.Random) -> str:
    """The object with arguments of its own and of a server; nothing is started."""
    names = [*LlmOptions.model_fields, *ServerOptions.model_fields, "max_retry", "concurency"]
    given = options(draw, names)
    if draw.random() < 0.5:
        given["base_url"] = "http://127.0.0.1:9/v1"
    RelationalLLM(**given)
    return "made"


def connects(draw: random.Random) -> str:
    """A session of SQL in memory, and one call explained."""
    names = [name for name in SqlOptions.model_fields if name != "cache"]
    with vllm_relational.sql.connect(llm=RelationalLLM(), **options(draw, [*names, "sides", "chioces"], 2)) as con:
        label = draw.choice(("'a'", "1", "1.5", "true", "NULL", "['b']", "'A'", "''", "id"))
        con.explain(f"SELECT LLM_CLASSIFY('{{id}}', ['a', {label}], id) FROM range(2) t(id)")
    return "connected"


def schema(draw: random.Random, depth: int = 0) -> Any:
    """A schema, or nearly one."""
    patterns = ("^(a+)+$", "(?=a)", "[", "a{2000}", r"\u00e9", r"\p{L}", "(a)\\1", "", "^a|b$", "\ud800", "(a*)*b")
    references = (
        "#",
        "#/$defs/a",
        "#/$defs/b",
        "http://127.0.0.1:9/x",
        "file:///etc/passwd",
        "#a",
        "x.json",
        5,
        "http://[",
    )
    found: dict[Any, Any] = {}
    for _ in range(draw.randrange(4)):
        name = draw.choice((
            "type", "pattern", "patternProperties", "properties", "items", "enum", "const", "$ref", "$dynamicRef", "$id",
            "$schema", "anyOf", "allOf", "not", "required", "additionalProperties", "unevaluatedProperties", "maximum",
            "multipleOf", "minLength", "format", "prefixItems", "$anchor", "if", "then", "dependentSchemas", "uniqueItems",
        ))  # fmt: skip
        inner = schema(draw, depth + 1) if depth < 3 else {}
        found[name] = draw.choice({
            "type": ("string", "integer", "object", "array", "number", "null", ["string", "null"], "x", 5),
            "pattern": patterns, "patternProperties": ({draw.choice(patterns): inner},),
            "properties": ({"a": inner}, {"a": {}, "b": inner}, [], {1: {}}), "items": (inner, [inner], False),
            "enum": (["a", 1], [], [None], [value(draw)]), "const": (value(draw), 1), "$ref": references,
            "$dynamicRef": references, "$id": ("http://e.org/a", "a", 5, "http://["), "anyOf": ([inner], [], [inner, {}]),
            "$schema": ("http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema", "x", 5),
            "allOf": ([inner], inner), "not": (inner,), "required": (["a"], ("a",), "a"), "if": (inner,), "then": (inner,),
            "additionalProperties": (False, inner), "unevaluatedProperties": (False, inner), "maximum": (5, "x", math.nan),
            "multipleOf": (0.01, 3, 0, 1e-300), "minLength": (1, -1, 10**400), "format": ("regex", "date", 5),
            "prefixItems": ([inner],), "$anchor": ("a", "b"), "dependentSchemas": ({"a": inner},), "uniqueItems": (True,),
        }[name])  # fmt: skip
    if depth == 0 and draw.random() < 0.4:
        found["$defs"] = {"a": schema(draw, 2), "b": draw.choice(({"$ref": "#/$defs/a"}, {"type": "integer"}))}
    return found if draw.random() < 0.97 else value(draw)


def document(draw: random.Random, depth: int = 0) -> Any:
    simple = (None, True, 0, 1, -5, 0.5, 1e300, "", "a", "a" * 30 + "b", "é", [], {}, 10**30)
    if depth > 3 or draw.random() < 0.5:
        return draw.choice(simple)
    items = [document(draw, depth + 1) for _ in range(draw.randrange(3))]
    return items if draw.random() < 0.4 else dict(zip(("a", "b", "aaa"), items, strict=False))


def answer(draw: random.Random) -> str:
    """What a model may say, JSON or not."""
    kind = draw.random()
    said = json.dumps(document(draw), ensure_ascii=draw.random() < 0.5)
    if kind < 0.05:
        said = draw.choice(("[" * 200_000, '{"a":' * 50_000, "[" * 500 + "]" * 500, "9" * 5000, "-" + "9" * 5000, "1e999",
                            '{"a": 1, "a": 2}', "NaN", "[Infinity]", '"\\ud800"', '{"\\udfff": 1}', "\ufeff1"))  # fmt: skip
    elif kind < 0.3:
        said = text(draw)
    if draw.random() < 0.2:
        said = draw.choice(("<think>hm</think>", "<think>hm", "hm</think>", "<THINK>\n", "[THINK]a[/THINK]")) + said
    return said


def settle(answer_format: Any, draw: random.Random) -> str:
    """An answer under the answer format: a value that every writer takes, or a reason."""
    check_answer_format(answer_format)
    parse, said = parser(answer_format), answer(draw)
    completion = checked(Completion(0, said, cut=draw.random() < 0.2), parse)
    if completion.text is None:
        assert completion.error, "neither text nor error"
        return "unusable"
    found = parse(completion.text)
    assert not completion.cut or isinstance(answer_format, FreeText), "half an answer passes for a whole one"
    assert not completion.text.lower().lstrip().startswith("<think>"), "a thought is kept"
    if isinstance(answer_format, Choice):
        assert found in answer_format.labels
    elif isinstance(answer_format, IntegerRange):
        assert answer_format.low <= found <= answer_format.high
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    pa.array([json.dumps(found, ensure_ascii=False)], pa.string())
    return "answered"


def reads(draw: random.Random) -> str:
    """A schema, and an answer to it."""
    return settle(JsonSchema(schema(draw), draw.choice((1, 64, 0, "a"))), draw)


def labels(draw: random.Random) -> str:
    """Labels, a range or free text, and an answer to it."""
    kind = draw.random()
    if kind < 0.2:
        return settle(FreeText(draw.choice((1, 64, True))), draw)
    if kind < 0.4:
        return settle(IntegerRange(draw.randrange(-3, 3), draw.randrange(-3, 200)), draw)
    given = [draw.choice(ODD) if draw.random() < 0.1 else text(draw, 4) for _ in range(2 + draw.randrange(3))]
    try:
        found = read_labels(given if draw.random() < 0.9 else value(draw))
    except ValueError as error:  # what an option makes RelationalError of
        return "refused" if type(error) in (ValueError, UnicodeEncodeError) else str(error)
    assert all(type(label) is str for label in found)
    return settle(Choice(found), draw)


TARGETS = (plans, makes, connects, reads, labels)
# Opening a database takes milliseconds, the others much less: fewer of them tell as much.
WEIGHTS = {plans: 40, makes: 60, connects: 2, reads: 60, labels: 60}


# ---------------------------------------------------------------------------------------------------------------- runs
def run_case(seed: int) -> tuple[str, str, str | None]:
    """The target, the outcome, and what is wrong with it if anything is."""
    draw = random.Random(seed)
    target = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    begin = time.thread_time()  # other work on the machine does not count
    try:
        outcome = target(draw)
    except RelationalError as error:
        outcome = "refused"
        if "\n" in str(error).split(" at ")[0] and target is not connects:  # errors of SQL show the place
            return target.__name__, outcome, f"an error of several lines: {error}"
    except BaseException:
        return target.__name__, "broke", traceback.format_exc()
    seconds = time.thread_time() - begin
    return target.__name__, outcome, f"took {seconds:.1f} s" if seconds > SLOW_SECONDS else None


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--cases", type=int, default=150_000)
    arguments.add_argument("--seed", type=int, default=1, help="of the first case; each case adds 1")
    arguments.add_argument("--only", type=int, help="repeat this case")
    chosen = arguments.parse_args()
    warnings.simplefilter("ignore")
    seeds = [chosen.only] if chosen.only is not None else range(chosen.seed, chosen.seed + chosen.cases)
    counts: Counter[str] = Counter()
    broken = 0
    for seed in seeds:
        target, outcome, problem = run_case(seed)
        counts[f"{target}: {outcome}"] += 1
        if problem is not None:
            broken += 1
            print(f"case {seed} ({target}): {problem}", flush=True)
    for name, count in sorted(counts.items()):
        print(f"{name:24} {count:>9,}")
    print(f"{sum(counts.values()):,} cases, {broken} broken")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())

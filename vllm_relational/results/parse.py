"""The text of a completion -> the value of a row, or the reason why there is none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from vllm_relational.answer_format.check import folded_label
from vllm_relational.answer_format.json_schemas import MAX_DEPTH, schema_check
from vllm_relational.answer_format.thoughts import without_thought
from vllm_relational.records import AnswerFormat, Choice, FreeText, IntegerRange, JsonSchema

SHOWN_CHARACTERS, SHOWN_LABELS = 80, 200
_WHOLE = re.compile(r"[+-]?[0-9]+")


class UnparsableAnswer(ValueError):  # noqa: N818 - a row's outcome, not a failure of the program
    """The answer is not one that the answer format admits; the message names both."""


class Parser:
    """A function from the text of a completion to the value of the row; it raises ``UnparsableAnswer``.

    takes_cut: whether a text that was cut off is still an answer. Half a label, number or document is none, even where
               it reads as one: 1 may have been the beginning of 12.

    The engine enforces the answer format; this check holds for engines that cannot.
    """

    def __init__(self, answer_format: AnswerFormat) -> None:
        self.takes_cut = isinstance(answer_format, FreeText)
        self._parse = _parser(answer_format)

    def __call__(self, text: str) -> Any:
        return self._parse(answer_text(text))


def parser(answer_format: AnswerFormat) -> Parser:
    """How completions are read under the answer format."""
    return Parser(answer_format)


def answer_text(text: str) -> str:
    """The answer in a completion's text, without the thought that it may open with. Never empty.

    An empty text is no answer: nothing tells it from a model that was stopped, and a choice or a number never is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a character, which no file format takes
        raise UnparsableAnswer(f"answered {_shown(text)}, which is not valid Unicode") from error
    answer = without_thought(text)
    if answer is None:
        raise UnparsableAnswer("the answer is a thought that does not end: raise --max-tokens (max_tokens=)")
    if not answer.strip():
        after = " after its thought: raise --max-tokens (max_tokens=)" if text.strip() else ""
        raise UnparsableAnswer(f"the answer is empty{after}")
    return answer


def _parser(answer_format: AnswerFormat) -> Callable[[str], Any]:
    match answer_format:
        case FreeText():
            return str.strip
        case Choice(labels):
            return _choice_parser(labels)
        case IntegerRange(low, high):
            return _integer_parser(low, high)
        case JsonSchema(schema):
            return _json_parser(schema)


def arrow_type(answer_format: AnswerFormat) -> pa.DataType:
    """The type of the answer column; JSON answers are stored as their text."""
    return pa.int64() if isinstance(answer_format, IntegerRange) else pa.string()


def _choice_parser(labels: tuple[str, ...]) -> Callable[[str], str]:
    folded = {folded_label(label): label for label in labels}
    expected = _shown_list(labels)

    def parse(text: str) -> str:
        for answer in (text, text.strip().strip("\"'`.!* ")):
            if folded_label(answer) in folded:
                return folded[folded_label(answer)]
        raise UnparsableAnswer(f"answered {_shown(text)}, expected one of: {expected}")

    return parse


def _integer_parser(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        plain = text.strip().strip("\"'`.* ")
        # A long number is none of 64 bits, and Python takes its time to read it.
        number = int(plain) if len(plain) < 30 and _WHOLE.fullmatch(plain) else None
        if number is None or not low <= number <= high:
            raise UnparsableAnswer(f"answered {_shown(text)}, expected a whole number from {low} to {high}")
        return number

    return parse


# --------------------------------------------------------------------------------------------------------------- JSON
def _json_parser(schema: Any) -> Callable[[str], Any]:
    check = schema_check(schema)

    def parse(text: str) -> Any:
        value = _document(text)
        try:
            problem = check(value)
        except Exception as error:  # jsonschema: numbers that no float holds
            raise UnparsableAnswer(f"the schema cannot check {_shown(text)}: {_cut(str(error))}") from None
        if problem is not None:
            raise UnparsableAnswer(f"answered {_shown(text)}, which the schema forbids: {_cut(problem)}")
        return value

    return parse


def _document(text: str) -> Any:
    """The JSON document in a text, of values that every reader of the results takes."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
        depth = _depth(value)
    except RecursionError:
        depth = MAX_DEPTH + 1
    except ValueError as error:
        raise UnparsableAnswer(f"answered {_shown(text)}, which is not JSON: {_reason(error)}") from None
    if depth > MAX_DEPTH:
        raise UnparsableAnswer(f"answered {_shown(text)}, which is nested more than {MAX_DEPTH} deep")
    if "\\u" in text:
        _check_unicode(value, text)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {_shown(twice)} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_shown(text)} is beyond the numbers that there are")
    return number


def _depth(value: Any) -> int:
    """Levels of lists and objects; found without recursion."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _check_unicode(value: Any, text: str) -> None:
    r"""JSON may write half a character, ``"\ud800"``, which no file format takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UnparsableAnswer(f"answered {_shown(text)}, which is not valid Unicode") from None


def _reason(error: ValueError) -> str:
    too_long = "integer string conversion" in str(error)  # Python's limit, with advice for programmers
    return "a number has thousands of digits" if too_long else _cut(str(error))


# -------------------------------------------------------------------------------------------------------------- words
def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_LABELS else f"{text[: SHOWN_LABELS - 3]}..."


def _shown_list(labels: Sequence[str]) -> str:
    return _cut(", ".join(labels))

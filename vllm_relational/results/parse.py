"""The text of a completion -> the value of a row, or the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from vllm_relational.records import Choice, Decision, FreeText, IntegerRange, JsonSchema

SHOWN_CHARACTERS = 80


class UnparsableAnswer(ValueError):  # noqa: N818 - a row's outcome, not a failure of the program
    """The answer is not one that the decision admits; the message names both."""


def parser(decision: Decision) -> Callable[[str], Any]:
    """A function from completion text to value; it raises ``UnparsableAnswer``.

    The engine enforces the decision; this check holds for engines that cannot.
    """
    parse = _parser(decision)

    def checked(text: str) -> Any:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a character, which no file format takes
            raise UnparsableAnswer(f"answered {_shown(text)}, which is not valid Unicode") from error
        return parse(text)

    return checked


def _parser(decision: Decision) -> Callable[[str], Any]:
    match decision:
        case FreeText():
            return str.strip
        case Choice(labels):
            return _choice_parser(labels)
        case IntegerRange(low, high):
            return _integer_parser(low, high)
        case JsonSchema(schema):
            return _json_parser(dict(schema))


def arrow_type(decision: Decision) -> pa.DataType:
    """The type of the answer column; JSON answers are stored as their text."""
    return pa.int64() if isinstance(decision, IntegerRange) else pa.string()


def _choice_parser(labels: tuple[str, ...]) -> Callable[[str], str]:
    folded = {label.strip().casefold(): label for label in labels}

    def parse(text: str) -> str:
        for answer in (text.strip(), text.strip().strip("\"'`.!* ")):
            if answer.casefold() in folded:
                return folded[answer.casefold()]
        raise UnparsableAnswer(f"answered {_shown(text)}, expected one of: {', '.join(labels)}")

    return parse


def _integer_parser(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text.strip().strip("\"'`.* "))
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise UnparsableAnswer(f"answered {_shown(text)}, expected a whole number from {low} to {high}")
        return number

    return parse


def _json_parser(schema: dict[str, Any]) -> Callable[[str], Any]:
    import jsonschema

    validator = jsonschema.validators.validator_for(schema)(schema)

    def parse(text: str) -> Any:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnparsableAnswer(f"answered {_shown(text)}, which is not JSON: {error}") from None
        try:
            problem = next(validator.iter_errors(value), None)
        except Exception as error:  # jsonschema: an unresolvable $ref, a bad pattern, a value nested too deep
            raise UnparsableAnswer(f"the schema cannot check {_shown(text)}: {error}") from None
        if problem is not None:
            raise UnparsableAnswer(f"answered {_shown(text)}, which the schema forbids: {problem.message}")
        return value

    return parse


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")

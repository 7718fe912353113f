"""Answer formats that no answer could satisfy are refused before anything is asked."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

import numpy as np

from vllm_relational.answer_format.json_schemas import schema_check
from vllm_relational.records import AnswerFormat, Choice, FreeText, IntegerRange, JsonSchema, RelationalError

MAX_TOKENS = 10_000_000  # of an answer: more than any context holds


def check_answer_format(answer_format: AnswerFormat) -> None:
    """Raise ``RelationalError`` with the fix when no answer could satisfy the answer format."""
    if answer_format.max_tokens is not None or isinstance(answer_format, FreeText | JsonSchema):
        _check_max_tokens(answer_format.max_tokens)
    match answer_format:
        case Choice(labels):
            _check_labels(labels)
        case IntegerRange(low, high) if low >= high:
            raise RelationalError(f"the range {low} to {high} leaves nothing to decide: low must be below high")
        case IntegerRange(low, high) if low < -(2**63) or high >= 2**63:
            raise RelationalError(f"the range {low} to {high} does not fit into 64 bits: narrow it")
        case JsonSchema(schema):
            schema_check(schema)


def _check_labels(labels: tuple[str, ...]) -> None:
    if len(labels) < 2 or not all(label.strip() for label in labels):
        raise RelationalError(f"choices are {list(labels)}: give at least two, none of them empty")
    twins = [label for label, count in Counter(map(folded_label, labels)).items() if count > 1]
    if twins:
        raise RelationalError(f"the choice {twins[0]!r} occurs twice (case and spaces do not count): drop one")


def folded_label(text: str) -> str:
    """What is left of a label where its case, its blanks and the way its accents are encoded do not count."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def _check_max_tokens(max_tokens: Any) -> None:
    if not isinstance(max_tokens, int | np.integer) or isinstance(max_tokens, bool) or max_tokens < 0:
        raise RelationalError(f"max_tokens is {max_tokens!r}: give a whole number from 1")
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise RelationalError(f"max_tokens is {max_tokens}: an answer needs at least 1, and at most {MAX_TOKENS:,}")

"""What became of a row: an answer that the decision admits, or a reason that begins with its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_relational.records import Completion
from vllm_relational.results.parse import UnparsableAnswer

# A failed row's reason begins with one of these; the report counts by them.
NULL_CELL, TOO_LONG, UNPARSABLE, REFUSED = "null cell", "prompt too long", "unusable answer", "failed request"


@dataclass
class Measured:
    """The engine's own counts over the rows asked."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0

    def add(self, completion: Completion) -> None:
        """Count one completion, answered or failed."""
        self.prompt_tokens += completion.prompt_tokens
        self.output_tokens += completion.output_tokens
        if completion.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + completion.cached_tokens


def checked(completion: Completion, parse: Callable[[str], Any]) -> Completion:
    """The completion, with an error in place of a text that the decision does not admit."""
    if completion.error is not None:
        return dataclasses.replace(completion, text=None, error=f"{REFUSED}: {completion.error}")
    try:
        parse(completion.text or "")
    except UnparsableAnswer as error:
        return dataclasses.replace(completion, text=None, error=f"{UNPARSABLE}: {error}")
    return completion


def admitted(text: str, parse: Callable[[str], Any]) -> bool:
    """Whether the decision admits a text that was stored as an answer."""
    try:
        parse(text)
    except UnparsableAnswer:
        return False
    return True


def kind(reason: str) -> str:
    """What a reason is counted as."""
    return reason.partition(":")[0]

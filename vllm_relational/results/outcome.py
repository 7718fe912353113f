"""What became of a row: an answer that the answer format admits, or a reason that begins with its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vllm_relational.records import Completion
from vllm_relational.results.parse import Parser, UnparsableAnswer, answer_text
from vllm_relational.terminal import printable

# A failed row's reason begins with one of these; the report counts by them.
NULL_CELL, TOO_LONG, UNPARSABLE, REFUSED = "null cell", "prompt too long", "unusable answer", "failed request"
# What a row has, see ``QueryResult.statuses``.
WHOLE, CUT, FAILED = "ok", "cut", "failed"


@dataclass
class Measured:
    """The engine's own counts over the rows asked."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    loaded_tokens: int = 0

    def add(self, completion: Completion) -> None:
        """Count one completion, answered or failed."""
        self.prompt_tokens += completion.prompt_tokens
        self.output_tokens += completion.output_tokens
        self.loaded_tokens += completion.loaded_tokens
        if completion.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + completion.cached_tokens


def checked(completion: Completion, parse: Parser) -> Completion:
    """The completion without thought, with an error in place of a text that the answer format does not admit."""
    if completion.error is not None:
        return dataclasses.replace(completion, text=None, error=printable(f"{REFUSED}: {completion.error}"))
    try:
        text = answer_text(completion.text or "")
        if completion.cut and not parse.takes_cut:
            raise UnparsableAnswer(f"{_cut_off(completion)}: half an answer is none; raise --max-tokens (max_tokens=)")
        parse(text)
    except UnparsableAnswer as error:
        return dataclasses.replace(completion, text=None, error=printable(f"{UNPARSABLE}: {error}"))
    return dataclasses.replace(completion, text=text)


def _cut_off(completion: Completion) -> str:
    after = f" after {completion.output_tokens} tokens" if completion.output_tokens else ""
    return f"the answer was cut off{after}"


def admitted(text: str, parse: Parser, cut: bool = False) -> bool:
    """Whether the answer format admits a text that was stored as an answer. cut: it was stored as cut off."""
    try:
        parse(text)
    except UnparsableAnswer:
        return False
    return parse.takes_cut or not cut


def row_statuses(errors: Sequence[str | None], sources: Sequence[int], cut: Collection[int]) -> list[str]:
    """The status of each row. sources: the row whose answer it has; cut: the rows whose answer was cut off."""
    return [
        FAILED if error is not None else CUT if source in cut else WHOLE
        for error, source in zip(errors, sources, strict=True)
    ]


def kind(reason: str) -> str:
    """What a reason is counted as."""
    return reason.partition(":")[0]

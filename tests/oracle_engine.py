"""A model for tests of SQL: its answer depends on the question and the row alone, and obeys the answer format."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator

from fake_engine import FakeEngine, parts_of, row_of

from vllm_relational.records import AnswerFormat, Choice, Completion, IntegerRange, JsonSchema, Prompt


class OracleEngine(FakeEngine):
    """fails_every: one prompt in so many gets an error, always the same ones; 0 for none."""

    def __init__(self, fails_every: int = 0) -> None:
        super().__init__(model="oracle")
        self.fails_every = fails_every
        self.answer_format: AnswerFormat | None = None
        self.questions: list[str] = []

    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Iterator[Completion]:
        self.answer_format = answer_format
        yield from super().ask(prompts, answer_format)

    def rows(self) -> list[dict]:
        """The rows asked so far."""
        return [row_of(prompt) for prompt in self.asked]

    def _complete(self, prompt: Prompt) -> Completion:
        instruction, row = parts_of(prompt)
        self.questions.append(instruction)
        number = zlib.crc32((instruction + json.dumps(row, sort_keys=True)).encode()) >> 3
        if self.fails_every and number % self.fails_every == 0:
            return Completion(prompt.key, None, "refused by the oracle")
        return Completion(
            prompt.key, answer(number, self.answer_format), prompt_tokens=20, output_tokens=1, cached_tokens=8
        )


def answer(number: int, answer_format: AnswerFormat | None) -> str:
    """An answer that the answer format admits, chosen by the number."""
    match answer_format:
        case Choice(labels):
            return labels[number % len(labels)]
        case IntegerRange(low, high):
            return str(low + number % (high - low + 1))
        case JsonSchema():
            return json.dumps({"a": str(number % 3), "b": number % 5})
        case _:
            return ("yes", "no", "maybe")[number % 3]

"""An engine for fast tests: answers depend on nothing but the row in the prompt, whatever the field order."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from vllm_relational.prompts import FourByteEstimate
from vllm_relational.records import AnswerFormat, Completion, EngineDiedError, EngineInfo, Prompt, TokenSegments

Answer = Callable[[dict[str, Any]], str]
_ROW = r"\{\n(?P<row>(?:\"[^\n]*,\n)*)\}"
_LAYOUTS = [
    re.compile(_ROW + r"\n\n(?P<question>.*)", re.DOTALL),
    re.compile(r"(?P<question>.*)\n\n" + _ROW, re.DOTALL),
]


def parts_of(prompt: Prompt) -> tuple[str, dict[str, Any]]:
    """The question and the record inside a prompt in message form, whichever stands first."""
    found = next(found for layout in _LAYOUTS if (found := layout.fullmatch(prompt.user)))
    lines = found["row"]
    return found["question"], json.loads("{" + lines.rstrip(",\n") + "}")


def row_of(prompt: Prompt) -> dict[str, Any]:
    """The record inside a prompt in message form."""
    return parts_of(prompt)[1]


def canonical(row: dict[str, Any]) -> str:
    """The default answer: the row itself, fields sorted by name."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False)


class FakeEngine:
    """Implements ``Engine``.

    answer:     row -> text of the completion.
    fails:      keys that get an error in place of an answer.
    dies_after: completions after which the engine is gone.
    loses:      keys that are never answered.
    cuts:       keys whose text is stopped at max_tokens.
    shuffle:    seed of a random finishing order; None answers in the order asked.
    """

    prompt_form: Literal["token_ids", "messages"] = "messages"

    def __init__(
        self,
        answer: Answer = canonical,
        *,
        fails: Iterable[int] = (),
        loses: Iterable[int] = (),
        cuts: Iterable[int] = (),
        dies_after: int | None = None,
        shuffle: int | None = None,
        max_model_len: int | None = None,
        model: str = "fake",
    ) -> None:
        self.answer, self.fails, self.loses = answer, set(fails), set(loses)
        self.cuts = set(cuts)
        self.dies_after, self.shuffle, self.max_model_len, self.model = dies_after, shuffle, max_model_len, model
        self.asked: list[Prompt] = []
        self.open_streams = 0
        self.closed = False

    def expected(self) -> EngineInfo:
        return EngineInfo(self.model)

    def start(self) -> EngineInfo:
        return EngineInfo(self.model, max_model_len=self.max_model_len)

    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Iterator[Completion]:
        self.open_streams += 1
        try:
            for done, prompt in enumerate(self._finishing_order(prompts)):
                if done == self.dies_after:
                    raise EngineDiedError("the fake engine died")
                if prompt.key not in self.loses:
                    yield self._complete(prompt)
        finally:
            self.open_streams -= 1

    def _finishing_order(self, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
        if self.shuffle is not None:
            prompts = list(prompts)
            random.Random(self.shuffle).shuffle(prompts)
        for prompt in prompts:
            self.asked.append(prompt)
            yield prompt

    def _complete(self, prompt: Prompt) -> Completion:
        counts = {"prompt_tokens": 10, "output_tokens": 2, "cached_tokens": 4, "loaded_tokens": 3}
        if prompt.key in self.fails:
            return Completion(prompt.key, None, "refused by the fake engine", **counts)
        return Completion(prompt.key, self.answer(row_of(prompt)), **counts, cut=prompt.key in self.cuts)

    def reset_cache(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


class ByteTokenizer(FourByteEstimate):
    """Exact by definition: every byte is one token."""

    counts = "exact"

    def encode_frame(self, text: str, starts_prompt: bool) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def encode_cells(self, texts: Iterable[str]) -> TokenSegments:
        pieces = [self.encode_frame(text, False) for text in texts]
        offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        return TokenSegments(np.concatenate([*pieces, np.empty(0, np.int32)]), offsets)

"""A query whose answers are all there needs no engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm_relational.engine.base import PromptForm
from vllm_relational.records import AnswerFormat, Completion, EngineInfo, Prompt


class NoEngine:
    """An ``Engine`` in the place of one that need not start: all answers are there. model: the one that gave them."""

    prompt_form: PromptForm = "messages"

    def __init__(self, model: str) -> None:
        self.model = model

    def expected(self) -> EngineInfo:
        return EngineInfo(self.model)

    def start(self) -> EngineInfo:
        return EngineInfo(self.model)

    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Iterator[Completion]:
        """Says of each prompt that nobody answers it, should there be one."""
        return (Completion(prompt.key, None, "refused: no engine was started") for prompt in prompts)

    def reset_cache(self) -> bool:
        return True

    def close(self) -> None: ...

"""The one interface behind which every engine stands; tests fake it without vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from vllm_relational.records import AnswerFormat, Completion, EngineInfo, Prompt

PromptForm = Literal["token_ids", "messages"]


class Engine(Protocol):
    """Answers prompts, a bounded number at a time, in the order they come.

    prompt_form: which fields of ``Prompt`` the engine reads.

    ``expected`` says what the engine will most likely be without starting it, and never fails: what it cannot know is
    left at the defaults of ``EngineInfo``. An engine that stands for several (a fleet, a cascade of models) says so in
    ``EngineInfo.num_caches`` and ``more_models``.

    ``start`` may be called more than once and returns the same facts; it raises ``RelationalError`` with the fix
    when the engine cannot be had (no such model, unreachable server).

    ``ask`` pulls prompts lazily, keeps a bounded number in flight, and yields one ``Completion`` a prompt, in
    finishing order. A prompt that fails yields a completion with ``error`` set and does not disturb the others; so
    does one whose answer something other than the model ended. A text that ``max_tokens`` ended has ``cut`` set.
    Where the engine knows how sure the model was, ``confidence`` is set. ``EngineDiedError`` means that no further
    prompt can be answered. Closing the iterator aborts what is in flight and leaves the engine usable.

    ``reset_cache`` forgets cached prefixes where the engine can; it returns False where it cannot.
    """

    prompt_form: PromptForm

    def expected(self) -> EngineInfo: ...

    def start(self) -> EngineInfo: ...

    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Iterator[Completion]: ...

    def reset_cache(self) -> bool: ...

    def close(self) -> None: ...


@contextmanager
def closing(completions: Iterator[Completion]) -> Iterator[Iterator[Completion]]:
    """Abort what is in flight when the job ends early, however long the exception lives."""
    try:
        yield completions
    finally:
        if hasattr(completions, "close"):
            completions.close()

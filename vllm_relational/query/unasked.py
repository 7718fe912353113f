"""Queries that ask nothing, and queries that end before all of their rows are answered: both have a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllm_relational.engine.base import Engine, PromptForm
from vllm_relational.records import AnswerFormat, Completion, EngineInfo, Prompt, QueryResult
from vllm_relational.results.checkpoint import Checkpoint, MemoryAnswers

if TYPE_CHECKING:
    from vllm_relational.query.pipeline import Batch, _Job

# What the reason of a row begins with that was not answered because its query ended before.
INTERRUPTED = "interrupted"

Keep = Callable[[QueryResult], None]


class NoEngine:
    """An ``Engine`` in the place of one that need not start: all answers are there. model: the one that gave them."""

    prompt_form: PromptForm = "messages"

    def __init__(self, model: str) -> None:
        self.model = model

    def start(self) -> EngineInfo:
        return EngineInfo(self.model)

    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Iterator[Completion]:
        """Says of each prompt that nobody answers it, should there be one."""
        return (Completion(prompt.key, None, "refused: no engine was started") for prompt in prompts)

    def reset_cache(self) -> bool:
        return True

    def close(self) -> None: ...


def nothing_asked(job: _Job, engine: Engine) -> QueryResult:
    """The result of a query without a question: a table without rows, or with a null in each. Starts no engine."""
    info = EngineInfo(str(getattr(engine, "model", None) or "not started"))
    batch = job.plan(info, {})
    job.seconds["ask"] = 0.0  # comparisons read how long it took
    return job.result(batch, info, MemoryAnswers())


@contextmanager
def keeping_answers(
    job: _Job, batch: Batch, info: EngineInfo, store: Checkpoint | MemoryAnswers, keep: Keep
) -> Iterator[None]:
    """If the query ends inside by an exception, Ctrl-C too, ``keep`` gets what was answered; then it is raised on.

    Rows without an answer are null, and their reason begins with 'interrupted'.
    """
    try:
        yield
    except BaseException as error:
        reason = _reason(error)
        for key, group in zip(batch.keys.tolist(), batch.groups.tolist(), strict=True):
            if key not in store.answers:
                job.group_errors.setdefault(group, reason)
        keep(job.result(batch, info, store))
        raise


def _reason(error: BaseException) -> str:
    why = "the query was stopped" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
    return f"{INTERRUPTED}: not answered before the query ended: {why}"

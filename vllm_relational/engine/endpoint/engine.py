"""The engine behind an OpenAI-compatible server: vLLM over HTTP, or any other with chat completions."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from urllib.parse import urlsplit

from vllm_relational.engine.base import PromptForm
from vllm_relational.engine.endpoint.connection import MAX_TIMEOUT_S, Address, EndpointConnection, checked_url
from vllm_relational.engine.endpoint.failures import AbortedError, MalformedError, RefusedError, RequestError
from vllm_relational.engine.endpoint.fixes import death, refusal
from vllm_relational.engine.endpoint.models import (
    Card,
    ExpectedModel,
    choose_card,
    is_vllm,
    model_info,
    read_cards,
    served_block_size,
)
from vllm_relational.engine.endpoint.protocol import Dialect
from vllm_relational.engine.endpoint.question import EndpointQuestion, Learned
from vllm_relational.engine.endpoint.secrets import ApiKey
from vllm_relational.engine.endpoint.verdict import Failed, ServerFailedError, Verdict
from vllm_relational.records import AnswerFormat, Completion, EngineInfo, Prompt, RelationalError
from vllm_relational.terminal import printable

LIST_TIMEOUT_S = 30.0
EXPECTED_TIMEOUT_S = 2.0  # where nothing is asked: a plan can do without the server
TRIAL_RETRIES = 2
LAST_ANSWERS_S = 5.0  # for what is in flight when a server begins to refuse
MAX_DEFECT_CHARS = 200
MAX_CONCURRENCY = 10_000  # each is a thread


@dataclass(frozen=True)
class _Server:
    """What ``start`` learned."""

    info: EngineInfo
    vllm: bool
    model: ExpectedModel
    learned: Learned = field(default_factory=Learned)


@dataclass(frozen=True)
class _Answered:
    """A row that was answered, by a request sent at that time."""

    prompt: Prompt
    completion: Completion
    sent_at: float


class EndpointEngine:
    """Asks a server over HTTP; see ``Engine`` for the contract.

    base_url:      as for any OpenAI client, e.g. ``http://localhost:8000/v1``.
    model:         a name the server lists; None for the only one it lists.
    api_key:       None: OPENAI_API_KEY, or no key. It is never shown.
    concurrency:   requests in flight at most, with those whose answers were not taken yet. They are handed over in
                   the order the prompts come; the server may see those that leave within the same millisecond in
                   another order.
    timeout_s:     seconds for the whole answer to one attempt.
    max_retries:   further attempts after connection errors, time-outs and broken answers (once), 408, 409, 425, 429
                   and 5xx.
    retry_delay_s: seconds before the first of them; doubles up to 8, unless the server sends Retry-After.
    served_as:     the model's name in the server's replies, where it is unlike ``model`` (see ``ExpectedModel``).

    A row whose request fails gets an error and the others go on, as long as the server answers others.
    ``EngineDiedError`` is raised when it answers none (``endpoint_verdict``); the answers that came before are yielded
    first.
    """

    prompt_form: PromptForm = "messages"

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        concurrency: int = 32,
        timeout_s: float = 600.0,
        max_retries: int = 5,
        retry_delay_s: float = 0.5,
        served_as: str | None = None,
    ) -> None:
        _check_whole("concurrency", concurrency, 1, MAX_CONCURRENCY)
        _check_whole("max_retries", max_retries, 0, 10**6)
        _check_seconds("timeout_s", timeout_s, positive=True)
        _check_seconds("retry_delay_s", retry_delay_s, positive=False)
        if served_as is not None and not isinstance(served_as, str):
            raise RelationalError(f"served_as is {served_as!r}: give a model's name")
        key = ApiKey.find(api_key)
        self.concurrency = concurrency
        self._model, self._served_as = model, served_as
        self._address = Address(checked_url(base_url), key, timeout_s, max_retries, retry_delay_s)
        self._server: _Server | None = None
        self._expected: EngineInfo | None = None

    # --------------------------------------------------------------------------------------------------- start
    def start(self) -> EngineInfo:
        return self._meet().info

    def _meet(self) -> _Server:
        if self._server is None:
            with _opened(self._address) as connection:
                cards = self._list_models(connection)
                card = choose_card(cards, self._model, self._address.shown)
                vllm = is_vllm(connection, self._address.root, card)
                block_size = served_block_size(connection, self._address.root) if vllm else None
                info = replace(model_info(card, block_size), fingerprint=f"server {self._address.shown}")
                self._server = _Server(info, vllm, ExpectedModel(card["id"], cards, self._served_as))
        return self._server

    def expected(self) -> EngineInfo:
        """What ``start`` said or, for plans that are not run, what the server says of itself if it answers at once.

        No model is asked. A server that is away or says nothing is asked once, and its ``max_model_len`` is None.
        """
        if self._server is not None:
            return self._server.info
        if self._expected is None:
            self._expected = self._glance()
        return self._expected

    def _glance(self) -> EngineInfo:
        address, timeout_s = self._address, min(EXPECTED_TIMEOUT_S, self._address.timeout_s)
        try:
            with _opened(replace(address, timeout_s=timeout_s)) as connection:
                card = choose_card(self._list_models(connection, timeout_s), self._model, address.shown)
                vllm = card.get("owned_by") == "vllm"
                return model_info(card, served_block_size(connection, self._address.root, timeout_s) if vllm else None)
        except RelationalError:
            return EngineInfo(self._model or "")

    def _list_models(self, connection: EndpointConnection, timeout_s: float = LIST_TIMEOUT_S) -> Sequence[Card] | None:
        """The server's model cards; None where it keeps no list. A base URL without a path is also tried with /v1."""
        bare = not urlsplit(self._address.base_url).path
        try:
            return read_cards(connection.get("/models", timeout_s), self._address.shown)
        except RefusedError as error:
            if error.status != 404:
                raise RelationalError(refusal(self._address, error)) from None
        except RequestError as error:
            fix = "start the server or correct base_url"
            raise RelationalError(f"cannot reach the server at {self._address.shown}: {error}; {fix}") from None
        return self._list_models_under_v1(connection, timeout_s) if bare else None

    def _list_models_under_v1(self, connection: EndpointConnection, timeout_s: float) -> Sequence[Card] | None:
        address = replace(self._address, base_url=self._address.base_url + "/v1")
        try:
            cards = read_cards(connection.get(address.base_url + "/models", timeout_s), address.shown)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise RelationalError(refusal(address, error)) from None
        except RequestError:
            return None
        self._address = address
        return cards

    # ----------------------------------------------------------------------------------------------------- ask
    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Generator[Completion, None, None]:
        server = self._meet()
        dialect: Dialect = "vllm" if server.vllm else "response_format"
        with _opened(self._address, self.concurrency + 1) as connection:
            question = EndpointQuestion(connection, server.model, answer_format, dialect, server.learned)
            yield from self._answers(connection, question, iter(prompts))

    def _answers(
        self, connection: EndpointConnection, question: EndpointQuestion, prompts: Iterator[Prompt]
    ) -> Iterator[Completion]:
        verdict = Verdict(self.concurrency)
        try:
            with _workers(connection, self.concurrency) as pool:
                yield from _settled(pool, question, prompts, self.concurrency, verdict)
        except ServerFailedError as failed:
            raise death(self._address, failed.failure, verdict.num_answers) from None

    def reset_cache(self) -> bool:
        """True if the server is vLLM in development mode (VLLM_SERVER_DEV_MODE=1) and has dropped its prefix cache."""
        if not self._meet().vllm:
            return False
        try:
            with _opened(self._address) as connection:
                reply = connection.post_once(self._address.root + "/reset_prefix_cache")
        except RequestError:
            return False
        return bool(reply.get("success", True)) if isinstance(reply, Mapping) else True

    def close(self) -> None:
        """Connections live no longer than one call, so there is nothing to free; ``start`` would ask anew."""
        self._server = self._expected = None


# ------------------------------------------------------------------------------------------------------- threads
@contextmanager
def _opened(address: Address, size: int = 1) -> Iterator[EndpointConnection]:
    connection = EndpointConnection(address, size)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _workers(connection: EndpointConnection, size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are gone at the end, whatever they were waiting for."""
    pool = ThreadPoolExecutor(size, thread_name_prefix="endpoint")
    try:
        yield pool
    finally:
        connection.abort()
        pool.shutdown(wait=True, cancel_futures=True)


def _settled(
    pool: ThreadPoolExecutor, question: EndpointQuestion, prompts: Iterator[Prompt], limit: int, verdict: Verdict
) -> Iterator[Completion]:
    """Submits prompts in order, ``limit`` in flight, and yields answers, and failures once it is known whose they are.

    A place is free once its answer was taken: the consumer has stored it when it wants the next one. So ``limit``
    answers at most are not stored at any moment, and a job that is killed asks no more of them again. A failure keeps
    its place while it is pending: see ``endpoint_verdict`` for how few requests a server that refuses sees by that.
    """
    flight = _Flight(pool, question, prompts, limit, verdict)
    try:
        while flight.pending:
            completions = [completion for outcome in flight.land() for completion in _heard(outcome, verdict)]
            if verdict.is_due:
                yield from completions
                completions = _judged(verdict, flight)
            yield from _taken(completions, flight)
            if not flight.pending:
                yield from _judged(verdict, flight)
    except ServerFailedError as failed:
        yield from _last_answers(flight, failed.failure, verdict)
        raise


def _taken(completions: Sequence[Completion], flight: _Flight) -> Iterator[Completion]:
    """The completions; each place is filled when its completion was taken."""
    flight.fill(len(completions))
    for number, completion in enumerate(completions, 1):
        yield completion
        flight.fill(len(completions) - number)


class _Flight:
    """The requests in flight. With pending failures and completions that were not taken, they are ``limit`` at most."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        question: EndpointQuestion,
        prompts: Iterator[Prompt],
        limit: int,
        verdict: Verdict,
    ) -> None:
        self.question, self.system = question, ""
        self._pool, self._prompts, self._limit, self._verdict = pool, prompts, limit, verdict
        self.pending: list[Future[_Answered | Failed]] = []
        self.fill()

    def fill(self, untaken: int = 0) -> None:
        """Send rows until the limit is reached or there are none. untaken: completions that hold a place still."""
        taken = untaken + self._verdict.num_pending + len(self.pending)
        for prompt in islice(self._prompts, max(self._limit - taken, 0)):
            self.system = prompt.system
            self.pending.append(self._pool.submit(_outcome, self.question, prompt))

    def land(self, seconds: float | None = None) -> list[_Answered | Failed]:
        """Wait for one of them, or for all of them so many seconds; what has finished, in the order sent."""
        until = FIRST_COMPLETED if seconds is None else ALL_COMPLETED
        finished = wait(self.pending, seconds, until).done
        ordered = [future for future in self.pending if future in finished]
        self.pending = [future for future in self.pending if future not in finished]
        return [future.result() for future in ordered]


def _judged(verdict: Verdict, flight: _Flight) -> list[Completion]:
    released = verdict.judge(lambda: flight.question.trial(verdict.known_good, flight.system, TRIAL_RETRIES))
    return [*map(_failed, released)]


def _last_answers(flight: _Flight, failure: RequestError, verdict: Verdict) -> Iterator[Completion]:
    """What was answered meanwhile, or is under way at a server that began to refuse after it took the row."""
    for outcome in flight.land(LAST_ANSWERS_S if isinstance(failure, RefusedError) else 0.0):
        if isinstance(outcome, _Answered):
            verdict.answered(outcome.prompt, outcome.sent_at)
            yield outcome.completion


def _outcome(question: EndpointQuestion, prompt: Prompt) -> _Answered | Failed:
    try:
        return _Answered(prompt, *question.ask(prompt))
    except RequestError as failure:
        return Failed(prompt, failure)
    except AbortedError:
        raise
    except Exception as error:  # a defect in reading one reply: the row's, if others can be read
        what = printable(" ".join(f"{type(error).__name__}: {error}".split())[:MAX_DEFECT_CHARS])
        return Failed(prompt, MalformedError(f"the server's answer could not be read ({what})"))


def _heard(outcome: _Answered | Failed, verdict: Verdict) -> list[Completion]:
    """The completions that are final now."""
    if isinstance(outcome, Failed):
        return [*map(_failed, verdict.failed(outcome))]
    return [*map(_failed, verdict.answered(outcome.prompt, outcome.sent_at)), outcome.completion]


def _failed(failed: Failed) -> Completion:
    return Completion(failed.prompt.key, None, str(failed.failure))


# -------------------------------------------------------------------------------------------------------- options
def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise RelationalError(f"{name} is {value!r}: give a whole number from {least} to {most}")


def _check_seconds(name: str, value: object, positive: bool) -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= MAX_TIMEOUT_S or (positive and number == 0):
        raise RelationalError(f"{name} is {value!r}: it must be {'positive' if positive else 'not negative'} seconds")

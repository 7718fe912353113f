"""The engine behind an OpenAI-compatible server: vLLM over HTTP, or any other with chat completions."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from vllm_relational.engine.base import PromptForm
from vllm_relational.engine.endpoint_connection import (
    PROBE_TIMEOUT_S,
    Address,
    ApiKey,
    Connection,
    LostError,
    RefusedError,
)
from vllm_relational.engine.endpoint_protocol import Dialect, constraint, read_completion, request_body
from vllm_relational.records import Completion, Decision, EngineDiedError, EngineInfo, FreeText, Prompt, RelationalError

logger = logging.getLogger(__name__)

BLOCK_SIZE = 16  # tokens; vLLM's on a GPU
MAX_NAMES_SHOWN = 10
CONSTRAINT_REFUSED = frozenset({400, 422})
JOB_REFUSED = frozenset({401, 402, 403, 404, 405})  # no other row would fare better
LIST_TIMEOUT_S = 30.0
EXPECTED_TIMEOUT_S = 2.0  # where nothing is asked: a plan can do without the server
_TOO_OLD = re.compile(r"0\.([1-9]|10)\.\d")  # releases before structured_outputs; a development build is 0.1.dev
_BLOCK_SIZE_METRIC = re.compile(r'vllm:cache_config_info\{[^}]*\bblock_size="(\d+)"')


@dataclass(frozen=True)
class _Server:
    """What ``start`` learned."""

    info: EngineInfo
    vllm: bool


class EndpointEngine:
    """Asks a server over HTTP; see ``Engine`` for the contract.

    base_url:      as for any OpenAI client, e.g. ``http://localhost:8000/v1``.
    model:         a name the server lists; None for the only one it lists.
    api_key:       None: OPENAI_API_KEY, or no key. It is never shown.
    concurrency:   requests in flight at most. They are handed over in the order the prompts come; the server may
                   see requests that leave within the same millisecond in another order.
    timeout_s:     seconds without an answer after which an attempt is given up.
    max_retries:   further attempts after connection errors, time-outs (once), 408, 409, 429 and 5xx.
    retry_delay_s: seconds before the first of them; doubles up to 8, unless the server sends Retry-After.

    A row whose request is refused (too long, say) gets an error and the others go on. ``EngineDiedError`` is raised
    when the server is gone or refuses all requests alike; the answers that came before are yielded first.
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
    ) -> None:
        if urlsplit(base_url).scheme not in ("http", "https") or not urlsplit(base_url).hostname:
            raise RelationalError("base_url must be a URL such as http://localhost:8000/v1")
        if concurrency < 1 or timeout_s <= 0 or max_retries < 0 or retry_delay_s < 0:
            raise RelationalError(
                "concurrency and timeout_s must be positive, max_retries and retry_delay_s not negative"
            )
        key = ApiKey.find(api_key)
        self.concurrency = concurrency
        self._model = model
        self._address = Address(base_url.rstrip("/"), key, timeout_s, max_retries, retry_delay_s)
        self._server: _Server | None = None
        self._expected: EngineInfo | None = None
        self._refused_constraints: set[str] = set()

    # --------------------------------------------------------------------------------------------------- start
    def start(self) -> EngineInfo:
        return self._meet().info

    def _meet(self) -> _Server:
        if self._server is None:
            with _opened(self._address) as connection:
                cards = self._list_models(connection)
                card = _choose_card(cards, self._model, self._address.shown)
                vllm = _is_vllm(connection, self._address.root, card)
                block_size = _block_size(connection, self._address.root) if vllm else None
                info = replace(_info(card, block_size), fingerprint=f"server {self._address.shown}")
                self._server = _Server(info, vllm)
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
                card = _choose_card(self._list_models(connection, timeout_s), self._model, address.shown)
                vllm = card.get("owned_by") == "vllm"
                return _info(card, _block_size(connection, self._address.root, timeout_s) if vllm else None)
        except RelationalError:
            return EngineInfo(self._model or "")

    def _list_models(self, connection: Connection, timeout_s: float = LIST_TIMEOUT_S) -> list[Mapping[str, Any]] | None:
        """The server's model cards; None where it keeps no list. A base URL without a path is also tried with /v1."""
        bare = not urlsplit(self._address.base_url).path
        try:
            return _cards(connection.get("/models", timeout_s), self._address.shown)
        except RefusedError as error:
            if error.status != 404:
                raise RelationalError(_refusal(self._address, error)) from error
        except LostError as error:
            fix = "start the server or correct base_url"
            raise RelationalError(f"cannot reach the server at {self._address.shown}: {error}; {fix}") from error
        return self._list_models_under_v1(connection, timeout_s) if bare else None

    def _list_models_under_v1(self, connection: Connection, timeout_s: float) -> list[Mapping[str, Any]] | None:
        address = replace(self._address, base_url=self._address.base_url + "/v1")
        try:
            cards = _cards(connection.get(address.base_url + "/models", timeout_s), address.shown)
        except LostError:
            return None
        except RefusedError as error:
            if error.status == 404:
                return None
            raise RelationalError(_refusal(address, error)) from error
        self._address = address
        return cards

    # ----------------------------------------------------------------------------------------------------- ask
    def ask(self, prompts: Iterable[Prompt], decision: Decision) -> Generator[Completion, None, None]:
        server = self._meet()
        dialect: Dialect = "vllm" if server.vllm else "response_format"
        with _opened(self._address) as connection:
            question = _Question(connection, server.info.model, decision, dialect, self._refused_constraints)
            yield from self._answers(connection, question, iter(prompts))

    def _answers(self, connection: Connection, question: _Question, prompts: Iterator[Prompt]) -> Iterator[Completion]:
        num_answers = 0
        with _workers(connection, self.concurrency) as pool:
            for finished in _as_finished(pool, question.ask, prompts, self.concurrency):
                for future in finished:
                    if future.exception() is None:
                        num_answers += 1
                        yield future.result()
                _raise_failure(finished, self._address, num_answers)

    def reset_cache(self) -> bool:
        """True if the server is vLLM in development mode (VLLM_SERVER_DEV_MODE=1) and has dropped its prefix cache."""
        if not self._meet().vllm:
            return False
        try:
            with _opened(self._address) as connection:
                reply = connection.post_once(self._address.root + "/reset_prefix_cache")
        except (RefusedError, LostError):
            return False
        return bool(reply.get("success", True)) if isinstance(reply, Mapping) else True

    def close(self) -> None:
        """Connections live no longer than one call, so there is nothing to free; ``start`` would ask anew."""
        self._server = self._expected = None


class _Question:
    """One decision, asked over one connection from many threads.

    A server may refuse the constraint itself (HTTP 400 or 422 to ``response_format``). That is told from a row that
    it refuses for another reason: the same row is asked in words, and only if that is answered, and no constrained
    request ever was, is the constraint dropped for the rows after it. ``refused_constraints`` outlives the question.
    """

    def __init__(
        self, connection: Connection, model: str, decision: Decision, dialect: Dialect, refused_constraints: set[str]
    ) -> None:
        self._connection = connection
        self._model = model
        self._decision = decision
        self._preferred = dialect
        self._constraint = json.dumps(constraint(decision, dialect), sort_keys=True)
        self._refused_constraints = refused_constraints
        self._accepted = isinstance(decision, FreeText) or dialect != "response_format"
        self._lock = threading.Lock()

    def ask(self, prompt: Prompt) -> Completion:
        dialect: Dialect = "words" if self._constraint in self._refused_constraints else self._preferred
        try:
            completion = self._post(prompt, dialect)
        except RefusedError as error:
            if error.status in JOB_REFUSED:
                raise
            if dialect == "words" or self._accepted or error.status not in CONSTRAINT_REFUSED:
                return Completion(prompt.key, None, str(error))
            return self._ask_in_words(prompt, error)
        self._accepted = self._accepted or dialect == "response_format"
        return completion

    def _ask_in_words(self, prompt: Prompt, refused: RefusedError) -> Completion:
        try:
            completion = self._post(prompt, "words")
        except RefusedError as error:
            if error.status in JOB_REFUSED:
                raise
            return Completion(prompt.key, None, str(refused))
        self._drop_constraint(refused)
        return completion

    def _drop_constraint(self, refused: RefusedError) -> None:
        with self._lock:
            if self._constraint in self._refused_constraints:
                return
            self._refused_constraints.add(self._constraint)
        logger.warning("the server does not take response_format (%s): asking in words, without a constraint", refused)

    def _post(self, prompt: Prompt, dialect: Dialect) -> Completion:
        reply = self._connection.post("/chat/completions", request_body(self._model, prompt, self._decision, dialect))
        return read_completion(prompt.key, reply, self._decision, dialect)


# ------------------------------------------------------------------------------------------------------- threads
@contextmanager
def _opened(address: Address) -> Iterator[Connection]:
    connection = Connection(address)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _workers(connection: Connection, size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are gone at the end, whatever they were waiting for."""
    pool = ThreadPoolExecutor(size, thread_name_prefix="endpoint")
    try:
        yield pool
    finally:
        connection.abort()
        pool.shutdown(wait=True, cancel_futures=True)


def _as_finished(
    pool: ThreadPoolExecutor, ask: Callable[[Prompt], Completion], prompts: Iterator[Prompt], limit: int
) -> Iterator[list[Future[Completion]]]:
    """Submits prompts in order, ``limit`` in flight, and yields what has finished since the last time.

    Freed places are filled before the finished answers are handed on, so the server has work while they are read.
    """
    in_flight = [pool.submit(ask, prompt) for prompt in islice(prompts, limit)]
    while in_flight:
        finished = wait(in_flight, return_when=FIRST_COMPLETED).done
        ordered = [future for future in in_flight if future in finished]
        in_flight = [future for future in in_flight if future not in finished]
        if all(future.exception() is None for future in ordered):
            in_flight += [pool.submit(ask, prompt) for prompt in islice(prompts, len(ordered))]
        yield ordered


def _raise_failure(finished: list[Future[Completion]], address: Address, num_answers: int) -> None:
    failure = next((error for future in finished if (error := future.exception())), None)
    if isinstance(failure, RefusedError):
        after = f"after {num_answers} answers"
        raise EngineDiedError(f"{_refusal(address, failure)} ({after})") from failure
    if isinstance(failure, LostError):
        stopped = f"the server at {address.shown} stopped answering after {num_answers} answers: {failure}"
        raise EngineDiedError(f"{stopped}; start it again") from failure
    if failure is not None:
        raise failure


# ------------------------------------------------------------------------------------------------ models, server
def _refusal(address: Address, error: RefusedError) -> str:
    """Why the server refuses every request alike, and the fix. The server's words on a key may quote it: left out."""
    refused = f"the server at {address.shown} refused the request"
    if error.status in (401, 403):
        key = address.api_key.source
        used = "no API key was given" if key == "none" else f"the API key came from {key}"
        return f"{refused} (HTTP {error.status}): {used}; give a valid one with api_key or OPENAI_API_KEY"
    return f"{refused}: {error}; check base_url, the model and the account"


def _cards(reply: object, shown: str) -> list[Mapping[str, Any]]:
    cards = reply.get("data") if isinstance(reply, Mapping) else None
    if not isinstance(cards, list):
        raise RelationalError(f"the server at {shown} gives no list of models; correct base_url, it often ends in /v1")
    return [card for card in cards if isinstance(card, Mapping) and isinstance(card.get("id"), str)]


def _choose_card(cards: list[Mapping[str, Any]] | None, model: str | None, shown: str) -> Mapping[str, Any]:
    if cards is None:
        if model is None:
            raise RelationalError(
                f"the server at {shown} has no /models; give the name with model=, or correct base_url"
            )
        return {"id": model}
    if model is None and len(cards) == 1:
        return cards[0]
    for card in cards:
        if card["id"] == model:
            return card
    raise RelationalError(_no_such_model([card["id"] for card in cards], model, shown))


def _no_such_model(names: list[str], model: str | None, shown: str) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    listed = (", ".join(names[:MAX_NAMES_SHOWN]) + more) or "no model"
    if model is None:
        return f"the server at {shown} serves {listed}; choose one with model="
    close = get_close_matches(model, names, cutoff=0.4)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; choose another with model="
    return f"the server at {shown} does not serve {model!r}, it serves {listed}{hint}"


def _info(card: Mapping[str, Any], block_size: int | None) -> EngineInfo:
    longest = card.get("max_model_len")
    known = longest if type(longest) is int and longest > 0 else None
    return EngineInfo(card["id"], known, None, block_size or BLOCK_SIZE)


def _block_size(connection: Connection, root: str, timeout_s: float = PROBE_TIMEOUT_S) -> int | None:
    """From vLLM's metrics, since it depends on the machine: 128 tokens on a CPU. None where they are not served."""
    try:
        found = _BLOCK_SIZE_METRIC.search(str(connection.get(root + "/metrics", timeout_s)))
    except (RefusedError, LostError):
        return None
    return int(found[1]) if found else None


def _is_vllm(connection: Connection, root: str, card: Mapping[str, Any]) -> bool:
    """True for a vLLM that takes ``structured_outputs``; the cards of other servers name another owner."""
    if card.get("owned_by") not in (None, "vllm"):
        return False
    try:
        reply = connection.get(root + "/version")
    except (RefusedError, LostError):
        return False
    version = reply.get("version") if isinstance(reply, Mapping) else None
    return isinstance(version, str) and not _TOO_OLD.match(version)

"""HTTP to one server through the openai client: retries that can be interrupted, and an abort from another thread.

The client's own retries sleep where nothing can wake them (up to two minutes when the server asks for it), so it is
told not to retry and the same rules are kept here: connection errors, time-outs, 408, 409, 429 and 5xx, exponential
back-off, Retry-After honoured up to ``MAX_RETRY_AFTER_S``.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai

from vllm_relational.engine.endpoint_protocol import one_line, server_message
from vllm_relational.records import RelationalError

CONNECT_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 5.0
MAX_RETRY_DELAY_S = 8.0
MAX_RETRY_AFTER_S = 120.0
RETRIED_STATUSES = frozenset({408, 409, 429})


class RefusedError(Exception):
    """The server answered with an HTTP error, or did not answer this request while it answered others."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LostError(Exception):
    """The server cannot be reached, or has stopped answering."""


class AbortedError(Exception):
    """``Connection.abort`` was called."""


@dataclass(frozen=True)
class ApiKey:
    """A key and where it came from; only the latter is ever shown."""

    value: str = field(repr=False)
    source: str

    @staticmethod
    def find(argument: str | None) -> ApiKey:
        """The key from the argument, else from OPENAI_API_KEY, else the placeholder that open servers accept."""
        value = (argument or "").strip()
        source = "the api_key argument"
        if not value:
            value, source = os.environ.get("OPENAI_API_KEY", "").strip(), "OPENAI_API_KEY"
        if not value:
            return ApiKey("EMPTY", "none")
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise RelationalError(f"the API key from {source} holds blanks or characters outside ASCII; copy it again")
        return ApiKey(value, source)

    def hide(self, text: str) -> str:
        return text if self.source == "none" else text.replace(self.value, "[API key]")


@dataclass(frozen=True)
class Address:
    """Where the server is and how patiently it is asked. Times are in seconds."""

    base_url: str
    api_key: ApiKey
    timeout_s: float
    max_retries: int
    retry_delay_s: float

    @property
    def root(self) -> str:
        """The URL under which vLLM offers what is not part of OpenAI's interface."""
        return self.base_url.removesuffix("/v1")

    @property
    def shown(self) -> str:
        """The URL without user, password and query."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Connection:
    """A pool of connections to one server, as many as threads use it.

    ``get`` and ``post`` return the decoded JSON of the answer (a string if it is not JSON) and raise ``RefusedError``,
    ``LostError`` or, after ``abort``, ``AbortedError``. ``abort`` may be called from any thread: it wakes the threads
    that wait for an answer or for their next attempt, and the server sees their requests disconnect.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.num_answers = 0
        self._aborted = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._client = self._make_client()

    def _make_client(self) -> openai.OpenAI:
        seconds = self.address.timeout_s
        timeout = openai.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT_S))
        http = openai.DefaultHttpxClient(timeout=timeout, event_hooks={"request": [self._watch]})
        key = self.address.api_key.value
        return openai.OpenAI(
            base_url=self.address.base_url, api_key=key, timeout=timeout, max_retries=0, http_client=http
        )

    def get(self, url: str, timeout_s: float = PROBE_TIMEOUT_S) -> object:
        """One attempt; ``url`` is absolute or relative to the base URL."""
        return self._once(lambda: self._client.get(url, cast_to=object, options={"timeout": timeout_s}), timeout_s)

    def post_once(self, url: str) -> object:
        """One attempt with an empty body."""
        return self._once(lambda: self._client.post(url, cast_to=object), self.address.timeout_s)

    def post(self, path: str, body: Mapping[str, Any]) -> object:
        """As many attempts as the address allows; a time-out is tried once more, so that a dead server is noticed."""
        started = time.monotonic()
        for attempt in range(self.address.max_retries + 1):
            answered = self.num_answers
            try:
                reply = self._client.post(path, body=dict(body), cast_to=object)
            except (openai.APIError, ValueError) as error:
                delay = self._delay(error, attempt, time.monotonic() - started)
                if self._aborted.is_set() or delay is None:
                    alive = self.num_answers > answered
                    raise self._translated(error, attempt + 1, self.address.timeout_s, alive) from error
                self._aborted.wait(delay)
            else:
                self._count_answer()
                return reply
        raise AssertionError("the last attempt either returns or raises")

    def _once(self, attempt: Callable[[], object], timeout_s: float) -> object:
        try:
            return attempt()
        except (openai.APIError, ValueError) as error:
            raise self._translated(error, 1, timeout_s, alive=False) from error

    def _count_answer(self) -> None:
        with self._lock:
            self.num_answers += 1

    def _delay(self, error: Exception, attempt: int, elapsed_s: float) -> float | None:
        """Seconds before the next attempt; None when there is to be none."""
        backoff: float = min(self.address.retry_delay_s * 2**attempt, MAX_RETRY_DELAY_S) * random.uniform(0.75, 1.0)
        if attempt >= self.address.max_retries:
            return None
        if isinstance(error, openai.APITimeoutError):
            return backoff if elapsed_s < 2 * self.address.timeout_s else None
        if isinstance(error, openai.APIConnectionError):
            return backoff
        if isinstance(error, openai.APIStatusError) and _is_passing(error.status_code):
            asked = retry_after_s(error.response.headers)
            return backoff if asked is None else asked if asked <= MAX_RETRY_AFTER_S else None
        return None

    def _translated(self, error: Exception, tries: int, timeout_s: float, alive: bool) -> Exception:
        """``alive``: the server answered other requests while this attempt waited."""
        hide, after = self.address.api_key.hide, f" after {tries} attempts" if tries > 1 else ""
        if self._aborted.is_set():
            return AbortedError()
        if isinstance(error, openai.APITimeoutError):
            message = f"no answer in {timeout_s:g} s{after}"
            return RefusedError(408, message) if alive else LostError(message)
        if isinstance(error, openai.APIConnectionError):
            return LostError(hide(one_line(str(error.__cause__ or error)) + after))
        if isinstance(error, openai.APIStatusError):
            self._count_answer()
            message = server_message(error.body or error.response.text)
            return RefusedError(error.status_code, hide(f"HTTP {error.status_code}{after}: {message}"))
        if isinstance(error, UnicodeEncodeError):
            return RefusedError(400, "the prompt is not valid Unicode text; mend the row")
        return RefusedError(200, "the server's answer is not JSON")

    # --------------------------------------------------------------------------------------------------- abort
    def _watch(self, request: Any) -> None:
        """Called by the HTTP client before each request: has its sockets reported as they open."""
        if self._aborted.is_set():
            raise AbortedError
        request.extensions["trace"] = self._note_socket

    def _note_socket(self, event: str, info: Mapping[str, Any]) -> None:
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        opened = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._sockets = {known for known in self._sockets if known.fileno() >= 0} | {opened}
            if self._aborted.is_set():
                _shut(opened)

    def abort(self) -> None:
        """Ends every request in flight; no further one is sent."""
        with self._lock:
            self._aborted.set()
            for opened in self._sockets:
                _shut(opened)

    def close(self) -> None:
        self._client.close()


def _is_passing(status: int) -> bool:
    """Whether a later attempt may fare better."""
    return status in RETRIED_STATUSES or status >= 500


def _shut(opened: socket.socket) -> None:
    """Closing a socket would not wake the thread that waits on it; shutting it down does."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(opened, socket.SHUT_RDWR)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the Retry-After header, a number or a date; None where it says nothing usable."""
    text = headers.get("retry-after")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        parsed = email.utils.parsedate_tz(text)
        seconds = email.utils.mktime_tz(parsed) - time.time() if parsed else -1.0
    return seconds if seconds > 0 else None

"""HTTP to one server: retries that can be interrupted, and an abort from another thread.

Retried are connection errors, time-outs and broken answers (once), 408, 409, 425, 429 and 5xx, after an exponential
back-off or after Retry-After, up to ``MAX_RETRY_AFTER_S``. Redirects are followed within the server's origin only:
what is asked holds the user's rows, and goes nowhere else.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import httpcore
import httpx

from vllm_relational.engine.endpoint.failures import (
    AbortedError,
    LostError,
    MalformedError,
    RefusedError,
    RequestError,
)
from vllm_relational.engine.endpoint.protocol import one_line, server_message
from vllm_relational.engine.endpoint.secrets import ApiKey, Secrets
from vllm_relational.engine.endpoint.transport import DEFAULT_LIMIT, MAX_REDIRECTS, Backend, BoundedTransport
from vllm_relational.records import RelationalError
from vllm_relational.terminal import printable

CONNECT_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 5.0
MAX_OLD_CONNECTIONS = 3  # found closed in one attempt
MAX_RETRY_DELAY_S = 8.0
MAX_RETRY_AFTER_S = 120.0
OPENAI_HEADERS = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
MAX_TIMEOUT_S = 1e8
_URL_EXAMPLE = "base_url must be a URL such as http://localhost:8000/v1"


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
        return printable(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))

    def url(self, path: str) -> str:
        """``path``, absolute or under the base URL, without user and password; a query of the base URL is kept."""
        if "://" in path:
            return urlunsplit(_anonymous(urlsplit(path)))
        parts = _anonymous(urlsplit(self.base_url))
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))

    @property
    def user(self) -> tuple[str, str] | None:
        """User and password of the base URL."""
        user, _, password = urlsplit(self.base_url).netloc.rpartition("@")[0].partition(":")
        return (unquote(user), unquote(password)) if user or password else None


def _anonymous(parts: SplitResult) -> SplitResult:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2])


def checked_url(base_url: object) -> str:
    """The base URL without slashes at its end. Raises ``RelationalError`` for what is none."""
    if not isinstance(base_url, str):
        raise RelationalError(f"{_URL_EXAMPLE}, not a {type(base_url).__name__}")
    try:
        parts = urlsplit(base_url)
        port = parts.port  # not a number, or too large a one, is found here
        httpx.URL(urlunsplit(_anonymous(parts)))
    except (ValueError, httpx.InvalidURL) as error:
        raise RelationalError(f"{_URL_EXAMPLE}: {printable(str(error))}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or port == 0
        or not base_url.isprintable()
        or " " in base_url
    ):
        raise RelationalError(_URL_EXAMPLE)
    return base_url.rstrip("/")


class EndpointConnection:
    """A pool of connections to one server, as many as threads use it.

    ``get`` and ``post`` return the decoded JSON of the answer (``get`` a text if it is not JSON) and raise
    ``RequestError`` or, after ``abort``, ``AbortedError``. ``abort`` may be called from any thread: it wakes the
    threads that wait for an answer or for their next attempt, and the server sees their requests disconnect.
    """

    def __init__(self, address: Address, size: int = 1) -> None:
        self.address = address
        self.secrets = Secrets.of(address.base_url, address.api_key)
        self._aborted = threading.Event()
        self._backend = Backend()
        self._client = self._make_client(size)

    def _make_client(self, size: int) -> httpx.Client:
        headers = {"accept-encoding": "identity", "user-agent": "vllm-relational"}
        for header, variable in OPENAI_HEADERS.items():
            value = os.environ.get(variable, "")
            if value and value.isascii() and value.isprintable():
                headers[header] = value
        if self.address.user is None:
            headers["authorization"] = f"Bearer {self.address.api_key.value}"
        return httpx.Client(
            auth=self.address.user,
            headers=headers,
            transport=BoundedTransport(self.address.base_url, self._backend, size),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            event_hooks={"request": [self._watch]},
            trust_env=False,  # .netrc would add a password, the proxies are known to the transport
        )

    # ----------------------------------------------------------------------------------------------- requests
    def get(self, path: str, timeout_s: float = PROBE_TIMEOUT_S) -> object:
        """One attempt; ``path`` is absolute or relative to the base URL."""
        content = self._attempt("GET", path, timeout_s)
        try:
            return decoded(content)
        except MalformedError:
            return content.decode("utf-8", "replace")

    def post_once(self, path: str) -> object:
        """One attempt with an empty body."""
        content = self._attempt("POST", path, self.address.timeout_s)
        return decoded(content) if content.strip() else ""

    def post(
        self, path: str, body: Mapping[str, Any], max_bytes: int = DEFAULT_LIMIT, max_retries: int | None = None
    ) -> tuple[object, float]:
        """The answer and when the attempt that got it began. max_retries: None for as many as the address allows.

        A time-out is tried once more, so that a dead server is noticed.
        """
        allowed = self.address.max_retries
        retries = allowed if max_retries is None else min(max_retries, allowed)
        raw, started = _encoded(body), time.monotonic()
        for attempt in range(retries + 1):
            sent_at = time.monotonic()
            failure: RequestError | None = None
            try:
                return decoded(self._attempt("POST", path, self.address.timeout_s, raw, max_bytes)), sent_at
            except RequestError as error:
                failure = error
            delay = None if attempt == retries else self._delay(failure, attempt, time.monotonic() - started)
            if delay is None:
                raise _with_tries(failure, attempt + 1, sent_at)
            if self._aborted.wait(delay):
                raise AbortedError
        raise AssertionError("the last attempt either returns or raises")

    def _delay(self, error: RequestError, attempt: int, elapsed_s: float) -> float | None:
        """Seconds before the next attempt; None when there is to be none."""
        growth = 2.0 ** min(attempt, 10)
        backoff = min(self.address.retry_delay_s * growth, MAX_RETRY_DELAY_S) * random.uniform(0.75, 1.0)
        if isinstance(error, LostError):
            return backoff if not error.silent or elapsed_s < 2 * self.address.timeout_s else None
        if isinstance(error, MalformedError):
            return backoff if error.again and attempt == 0 else None
        if isinstance(error, RefusedError) and error.is_passing:
            asked = error.retry_after_s
            return backoff if asked is None else asked if asked <= MAX_RETRY_AFTER_S else None
        return None

    def _attempt(
        self, method: str, path: str, timeout_s: float, raw: bytes | None = None, max_bytes: int = DEFAULT_LIMIT
    ) -> bytes:
        """The body of an answer without error."""
        failure: Exception | None = None
        try:
            response = self._send(method, path, timeout_s, raw, max_bytes)
        except Exception as error:
            failure = self._translated(error, timeout_s)
        if failure is not None:
            raise failure  # here, where the library's exception, which may quote a key, is no part of it
        if response.is_success:
            return response.content
        raise self._refused(response)

    def _send(self, method: str, path: str, timeout_s: float, raw: bytes | None, max_bytes: int) -> httpx.Response:
        request = self._client.build_request(
            method,
            self.address.url(path),
            content=raw,
            headers={"content-type": "application/json"} if raw is not None else None,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            extensions={"max_bytes": max_bytes, "method": method},
        )
        self._backend.begin(timeout_s)
        for _ in range(MAX_OLD_CONNECTIONS):
            try:
                return self._client.send(request)
            except (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError):
                if not self._backend.used_an_old_connection or self._aborted.is_set():
                    raise  # else the server closed it while it was idle: that is no failure of the request
        return self._client.send(request)

    def _translated(self, error: Exception, timeout_s: float) -> Exception:
        if self._aborted.is_set():
            return AbortedError()
        if isinstance(error, RequestError | RelationalError):
            return error
        if isinstance(error, httpcore.TimeoutException | TimeoutError):
            return LostError(f"no answer in {timeout_s:g} s", silent=True)
        if isinstance(error, httpx.TooManyRedirects):
            return MalformedError(f"the server redirects more than {MAX_REDIRECTS} times")
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return MalformedError("the server redirects to what is no web address")
        return LostError(f"the connection failed: {self.clean(str(error)) or type(error).__name__}")

    def _refused(self, response: httpx.Response) -> RefusedError:
        try:
            reply = decoded(response.content)
        except MalformedError:
            reply = response.content.decode("utf-8", "replace")
        return self.refusal(response.status_code, reply, response.headers)

    def refusal(self, status: int, reply: object, headers: Mapping[str, str] | None = None) -> RefusedError:
        """What a reply says that is an error."""
        message = self.clean(server_message(reply))
        parameter, code = named_reason(reply)
        text = f"HTTP {status}: {message}" if status != 200 else f"the server answered: {message}"
        return RefusedError(
            status, text, parameter=parameter, code=code, retry_after_s=retry_after_s(headers) if headers else None
        )

    def clean(self, text: str) -> str:
        """Words of the server as they may be shown and stored: without keys, on one line, cut, escaped."""
        return one_line(printable(" ".join(self.secrets.hide(text).split())))

    # --------------------------------------------------------------------------------------------------- abort
    def _watch(self, request: httpx.Request) -> None:
        """Called before each request is sent, also before those that redirects lead to."""
        if self._aborted.is_set():
            raise AbortedError
        here, there = httpx.URL(self.address.url("")), request.url
        if _origin(here) != _origin(there):
            place = printable(f"{there.scheme}://{there.netloc.decode('ascii', 'replace')}")[:200]
            raise MalformedError(
                f"the server redirects to {place}: not followed, the rows would go there; if that is right, give it as "
                "base_url"
            )
        if request.method != request.extensions.get("method", request.method):
            raise MalformedError("the server redirects to a page: correct base_url, it often ends in /v1")

    def abort(self) -> None:
        """Ends every request in flight; no further one is sent."""
        self._aborted.set()
        self._backend.abort()

    def close(self) -> None:
        self._client.close()


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RefusedError(400, "the prompt is not valid Unicode text; mend the row") from None


def _with_tries(failure: RequestError, tries: int, sent_at: float) -> RequestError:
    """The failure, which says how often it was tried."""
    failure.sent_at = sent_at
    if tries > 1:
        head, colon, rest = str(failure).partition(": ")
        after = f" after {tries} attempts"
        is_refused = isinstance(failure, RefusedError)
        failure.args = (f"{head}{after}{colon}{rest}" if is_refused else f"{failure}{after}",)
    return failure


def decoded(content: bytes) -> object:
    """The JSON document in a body; ``MalformedError`` if there is none."""
    try:
        return json.loads(content)
    except RecursionError:
        reason, again = "the server's answer is nested too deeply", False
    except ValueError:
        reason, again = "the server's answer is not JSON", True
    raise MalformedError(reason, again)


def named_reason(reply: object) -> tuple[str, str]:
    """The parameter that an error names, and its code or type; '' where it does not."""
    error = reply.get("error") if isinstance(reply, Mapping) else None
    error = error if isinstance(error, Mapping) else reply if isinstance(reply, Mapping) else {}
    parameter, *codes = (error.get(name) for name in ("param", "code", "type"))
    return (
        parameter[:100] if isinstance(parameter, str) else "",
        " ".join(code[:100] for code in codes if isinstance(code, str)),
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the Retry-After header, a number or a date, infinite for a date that no clock shows; None
    where it says nothing usable."""
    text = (headers.get("retry-after") or "").strip()[:100]
    try:
        seconds = float(text)
    except ValueError:
        seconds = _seconds_until(text)
    return seconds if seconds > 0 else None  # NaN is not


def _seconds_until(text: str) -> float:
    try:
        parsed = email.utils.parsedate_tz(text)
        if parsed is None:
            return -1.0
        return email.utils.mktime_tz(parsed) - time.time()
    except (ValueError, OverflowError, IndexError, TypeError):
        return math.inf if any(char.isdigit() for char in text) else -1.0

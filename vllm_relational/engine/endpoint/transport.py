"""HTTP with bounds: an answer may take so many seconds and hold so many bytes, whatever the server does.

``httpx`` bounds the wait for each piece of an answer; a server that sends a byte a second keeps it waiting for ever.
Here every operation on a socket gets what is left of the attempt's time, and a body is read, and unpacked, up to a
limit.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from vllm_relational.engine.endpoint.failures import MalformedError
from vllm_relational.records import RelationalError
from vllm_relational.terminal import printable

MAX_REDIRECTS = 5
DEFAULT_LIMIT = 4 * 2**20  # bytes of an answer whose request does not say
_UNPACKED = frozenset({"", "identity"})
_PACKED = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class Backend(httpcore.NetworkBackend):
    """TCP whose waits end at the deadline of the thread's attempt, and at once after ``abort``."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()
        self._attempt = threading.local()
        self._open: set[_Stream] = set()
        self._lock = threading.Lock()
        self._aborted = False

    def begin(self, seconds: float) -> None:
        """This thread starts an attempt that may take so long."""
        self._attempt.deadline = time.monotonic() + seconds
        self._attempt.connected = False

    @property
    def used_an_old_connection(self) -> bool:
        """Whether this thread's attempt opened none; the server may have closed the one it took meanwhile."""
        return not self._attempt.connected

    def left(self, timeout: float | None, error: type[Exception]) -> float:
        """Seconds that the thread may still wait."""
        seconds: float = self._attempt.deadline - time.monotonic()
        if seconds <= 0:
            raise error()
        return seconds if timeout is None else min(seconds, timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        seconds = self.left(timeout, httpcore.ConnectTimeout)
        self._attempt.connected = True
        return self.keep(_Stream(self._inner.connect_tcp(host, port, seconds, local_address, socket_options), self))

    def keep(self, stream: _Stream) -> _Stream:
        with self._lock:
            self._open.add(stream)
            if self._aborted:
                stream.shut()
        return stream

    def forget(self, stream: _Stream) -> None:
        with self._lock:
            self._open.discard(stream)

    def abort(self) -> None:
        """End every wait on a socket, of those opened later too."""
        with self._lock:
            self._aborted = True
            for stream in self._open:
                stream.shut()


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, backend: Backend) -> None:
        self._inner, self._backend = inner, backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._backend.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._backend.left(timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = self._backend.left(timeout, httpcore.ConnectTimeout)
        secure = self._inner.start_tls(ssl_context, server_hostname, seconds)
        self._backend.forget(self)
        return self._backend.keep(_Stream(secure, self._backend))

    def close(self) -> None:
        self._backend.forget(self)
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def shut(self) -> None:
        """Closing a socket would not wake the thread that waits on it; shutting it down does."""
        with suppress(OSError):
            socket.socket.shutdown(self.get_extra_info("socket"), socket.SHUT_RDWR)


class BoundedTransport(httpx.BaseTransport):
    """Reads each answer whole. A request's extensions may hold ``max_bytes``, the limit for its body.

    Raises what ``httpcore`` raises, and ``MalformedError`` for a body that is too large or cannot be unpacked.
    """

    def __init__(self, url: str, backend: Backend, connections: int) -> None:
        self._pool = _pool(url, backend, connections)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        response = self._pool.handle_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions={"timeout": request.extensions.get("timeout", {})},
            )
        )
        limit = request.extensions.get("max_bytes", DEFAULT_LIMIT)
        try:
            raw = _read(response, limit)
        finally:
            response.close()
        headers = httpx.Headers(response.headers)
        content = unpacked(raw, headers.pop("content-encoding", "").strip().lower(), limit)
        return httpx.Response(response.status, headers=_without_length(headers), content=content)

    def close(self) -> None:
        self._pool.close()


def _without_length(headers: httpx.Headers) -> httpx.Headers:
    """What described the body as it travelled."""
    for name in ("content-length", "transfer-encoding"):
        headers.pop(name, None)
    return headers


def _read(response: httpcore.Response, limit: int) -> bytes:
    pieces, size = [], 0
    for piece in response.iter_stream():
        size += len(piece)
        if size > limit:
            raise MalformedError(f"the server's answer is longer than {limit:,} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def unpacked(raw: bytes, encoding: str, limit: int) -> bytes:
    """The body as it was before the server packed it, which it was told not to do; at most ``limit`` bytes."""
    if encoding in _UNPACKED or not raw:
        return raw
    if encoding not in _PACKED:
        raise MalformedError(f"the server's answer is packed ({printable(encoding[:40])}), which was not asked for")
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        content = unpacker.decompress(raw, limit + 1)
    except zlib.error:
        raise MalformedError(f"the server's answer is not the {encoding} that it says", again=True) from None
    if len(content) > limit:
        raise MalformedError(f"the server's answer is longer than {limit:,} bytes")
    if not unpacker.eof:
        raise MalformedError("the server's answer ends early", again=True)
    return content


# ------------------------------------------------------------------------------------------------ pool and proxy
def _pool(url: str, backend: Backend, connections: int) -> httpcore.ConnectionPool:
    """Connections to that server, through the proxy that the environment names for it (HTTPS_PROXY, NO_PROXY...)."""
    settings: dict[str, Any] = {
        "ssl_context": tls_context() if url.startswith("https:") else None,
        "max_connections": connections,
        "max_keepalive_connections": connections,
        "keepalive_expiry": 5.0,
        "network_backend": backend,
    }
    proxy = proxy_of(url)
    if proxy is None:
        return httpcore.ConnectionPool(**settings)
    kind = httpcore.SOCKSProxy if proxy.raw_scheme.startswith(b"socks") else httpcore.HTTPProxy
    auth = (proxy.username, proxy.password) if proxy.username else None
    try:
        return kind(str(proxy.copy_with(username=None, password=None)), proxy_auth=auth, **settings)
    except (ImportError, RuntimeError) as error:
        raise RelationalError(f"the proxy of the environment cannot be used: {error}") from None


def proxy_of(url: str) -> httpx.URL | None:
    """The proxy for that address by the environment; None where it is reached directly."""
    parsed, proxies = httpx.URL(url), getproxies()
    found = proxies.get(parsed.scheme) or proxies.get("all")
    if not found or proxy_bypass(f"{parsed.host}:{parsed.port}" if parsed.port else parsed.host):
        return None
    try:
        return httpx.URL(found if "://" in found else f"http://{found}")
    except httpx.InvalidURL:
        raise RelationalError("the proxy of the environment is no URL: correct HTTPS_PROXY or HTTP_PROXY") from None


def tls_context() -> ssl.SSLContext:
    """Trusts what this machine trusts, and the authorities that httpx brings; SSL_CERT_FILE is honoured."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context

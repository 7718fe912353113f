"""An OpenAI-compatible server on this machine that says what a test tells it to."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Wire = Callable[[BaseHTTPRequestHandler], None]  # writes what it likes, after which the connection is closed
Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]] | Wire


def chat(text: str | None, finish: str = "stop", **usage: Any) -> Reply:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return 200, {"id": "x", "object": "chat.completion", "choices": [choice], **({"usage": usage} if usage else {})}


def fail(status: int, message: str = "no", **headers: str) -> Reply:
    return status, {"error": {"message": message}}, {name.replace("_", "-"): text for name, text in headers.items()}


def _body(document: Any) -> bytes:
    if isinstance(document, bytes):
        return document
    return document.encode() if isinstance(document, str) else json.dumps(document).encode()


class FakeServer:
    """Answers with ``reply(body)``; records the bodies in order of arrival, how many were in flight at once, and all
    paths that were asked for."""

    def __init__(self) -> None:
        self.models: Reply = (200, {"data": [{"id": "tiny", "max_model_len": 2048, "owned_by": "vllm"}]})
        self.version: Reply = (200, {"version": "0.32.0"})
        self.reset: Reply = (404, {})
        self.metrics: Reply = (404, {})
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: chat("yes")
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.prefix = "/v1"
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.sockets: list[socket.socket] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        # Connections are cut on purpose.
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    @property
    def users(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]

    def other(self, version: Reply = (404, {})) -> FakeServer:
        """Not vLLM any more."""
        self.version = version
        return self

    def kill(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        for opened in self.sockets:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        self.released.set()

    def _chat(self, body: dict[str, Any]) -> Reply:
        with self.lock:
            self.bodies.append(body)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return self.reply(body)
        finally:
            with self.lock:
                self.in_flight -= 1

    def _route(self, path: str, body: dict[str, Any]) -> Reply:
        self.paths.append(path)
        if path == self.prefix + "/chat/completions":
            return self._chat(body)
        known = {
            self.prefix + "/models": self.models,
            "/version": self.version,
            "/metrics": self.metrics,
            "/reset_prefix_cache": self.reset,
        }
        return known.get(path, (404, {"detail": "Not Found"}))

    def _handler(fake) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                fake.sockets.append(self.connection)

            def do_GET(self) -> None:
                self.answer()

            do_POST = do_GET  # noqa: N815

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                reply = fake._route(self.path, json.loads(raw) if raw else {})
                if callable(reply):
                    self.close_connection = True
                    reply(self)
                    return
                status, document, *headers = reply
                data = _body(document)
                self.send_response(status)
                self.send_header("content-type", "text/html" if isinstance(document, str) else "application/json")
                self.send_header("content-length", str(len(data)))
                for name, text in (headers[0] if headers else {}).items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the client went away, or the server was killed
                    super().handle()

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

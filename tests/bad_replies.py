"""What servers have been seen to do to a request, and worse: kinds of replies, and what becomes of the row."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
import zlib
from http.server import BaseHTTPRequestHandler
from typing import Any

from fake_server import Reply, Wire, chat, fail

SECRET = "sk-secret-3141592653"
GOOD = json.dumps(chat("yes")[1]).encode()
ANSWERED = ""  # in place of a reason: the row is answered "yes"
PATIENCE_S = 6.0  # of a server that is slow on purpose; more than a client waits
Handler = BaseHTTPRequestHandler


# ---------------------------------------------------------------------------------------------------------- wires
def wire(*pieces: bytes, pause_s: float = 0.0) -> Wire:
    """Write these bytes, and close."""

    def write(handler: Handler) -> None:
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause_s)

    return write


def page(body: bytes, *headers: str, status: str = "200 OK", length: object = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", *headers]
    lines += [f"content-length: {len(body) if length is None else length}"] if length != "" else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def reset(handler: Handler) -> None:
    """The connection breaks off at once, as from a proxy that gives up."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def silent(handler: Handler) -> None:
    _wait(handler)


def _wait(handler: Handler) -> None:
    """Until the client has gone."""
    handler.connection.settimeout(PATIENCE_S)
    handler.connection.recv(1)


def trickle(data: bytes) -> Wire:
    """A byte now and then: no wait for one of them is long."""

    def write(handler: Handler) -> None:
        end = time.monotonic() + PATIENCE_S
        for byte in data:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)
            if time.monotonic() > end:
                return

    return write


def endless(start: bytes, piece: bytes) -> Wire:
    """Until the client has had enough; at most 3 GB."""

    def write(handler: Handler) -> None:
        handler.wfile.write(start)
        for _ in range(3 * 2**30 // len(piece)):
            handler.wfile.write(piece)

    return write


def changed(**fields: Any) -> Reply:
    """A good completion with other fields."""
    return 200, {**chat("yes")[1], **fields}


def choice(**fields: Any) -> Reply:
    """A good completion whose choice has other fields."""
    return 200, {"choices": [{**chat("yes")[1]["choices"][0], **fields}]}


def content(value: Any, **fields: Any) -> Reply:
    return choice(message={"role": "assistant", "content": value, **fields})


def redirect(place: str, status: int = 307) -> Reply:
    return status, {}, {"location": place}


TOO_LONG, NOT_JSON, NO_CHAT, LATE = "longer than [0-9,]+ bytes", "is not JSON", "not a chat completion", "no answer in"
BIG = b"x" * 65536
LOST = "."  # any reason: the words are those of the HTTP library

WIRES: dict[str, tuple[Reply, str]] = {
    "reset": (reset, LOST),
    "closed": (wire(), LOST),
    "closed in the status line": (wire(b"HTTP/1.1 2"), LOST),
    "closed in the headers": (wire(b"HTTP/1.1 200 OK\r\ncontent-type: app"), LOST),
    "closed in the body": (wire(page(GOOD, length=len(GOOD) + 5)), LOST),
    "closed in a chunk": (wire(page(b"ff\r\n{", "transfer-encoding: chunked", length="")), LOST),
    "not HTTP": (wire(b"\x00\xffSSH-2.0-OpenSSH\r\n\r\n"), LOST),
    "HTTP/2": (wire(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), LOST),
    "no status": (wire(b"HTTP/1.1 OK\r\n\r\n"), LOST),
    "a header of 300 KB": (wire(page(GOOD, "x-long: " + "a" * 300_000)), LOST),
    "10,000 headers": (wire(page(GOOD, *(f"x-{i}: {i}" * 2 for i in range(10_000)))), LOST),
    "headers without end": (endless(b"HTTP/1.1 200 OK\r\n", b"x-a: " + b"a" * 1000 + b"\r\n"), LOST),
    "a header with control characters": (wire(page(GOOD, "x-a: \x1b[2J\x00")), LOST),
    "a negative length": (wire(page(GOOD, length=-1)), LOST),
    "a length that is a word": (wire(page(GOOD, length="many")), LOST),
    "two lengths": (wire(page(GOOD, "content-length: 3")), LOST),
    "chunks without a size": (wire(page(b"zz\r\n{}\r\n0\r\n\r\n", "transfer-encoding: chunked", length="")), LOST),
    "a chunk of 2^80 bytes": (wire(page(b"f" * 20 + b"\r\n{}", "transfer-encoding: chunked", length="")), LOST),
    "bad gzip": (wire(page(b"not gzip at all", "content-encoding: gzip")), "is not the gzip that it says"),
    "half a gzip": (wire(page(gzip.compress(GOOD)[:-20], "content-encoding: gzip")), "ends early"),
    "a gzip bomb": (wire(page(gzip.compress(bytes(2**25)), "content-encoding: gzip")), TOO_LONG),
    "bad deflate": (wire(page(b"\x00\x01", "content-encoding: deflate")), "is not the deflate"),
    "brotli": (wire(page(b"\x8b\x02\x80", "content-encoding: br")), r"packed \(br\), which was not asked for"),
    "an unknown packing": (wire(page(GOOD, "content-encoding: \x1b[2J")), LOST),
    "packed twice": (wire(page(gzip.compress(gzip.compress(GOOD)), "content-encoding: gzip, gzip")), "packed"),
    "good gzip": (wire(page(gzip.compress(GOOD), "content-encoding: gzip")), ANSWERED),
    "good deflate": (wire(page(zlib.compress(GOOD), "content-encoding: deflate")), ANSWERED),
    "nothing": (silent, LATE),
    "headers byte by byte": (trickle(page(GOOD)), LATE),
    "a body byte by byte": (trickle(page(GOOD, "transfer-encoding: chunked", length="") + b"1\r\n \r\n" * 99), LATE),
    "3 GB": (endless(page(b"", length=3 * 2**30), BIG), TOO_LONG),
    "chunks without end": (
        endless(page(b"", "transfer-encoding: chunked", length=""), b"10000\r\n" + BIG + b"\r\n"),
        TOO_LONG,
    ),
    "5 GB announced": (wire(page(GOOD, length=5 * 2**30)), LOST),
    "no length": (wire(page(GOOD, length="")), ANSWERED),
}

REDIRECTS: dict[str, tuple[Reply, str]] = {
    "a redirect loop": (redirect("/v1/chat/completions"), "redirects more than 5 times"),
    "a redirect elsewhere": (
        redirect("http://127.0.0.2:9/v1/chat/completions"),
        r"redirects to http://127\.0\.0\.2:9: not",
    ),
    "a redirect to another port": (redirect("http://127.0.0.1:9/"), r"redirects to http://127\.0\.0\.1:9: not"),
    "a redirect to TLS": (
        redirect("https://127.0.0.1/v1/chat/completions", 308),
        "redirects to https://127.0.0.1: not",
    ),
    "a redirect to a page": (redirect("/login", 302), "redirects to a page"),
    "a redirect by GET": (redirect("/v1/chat/completions", 303), "redirects to a page"),
    "a redirect to a file": (redirect("file:///etc/passwd"), "redirects to file://"),
    "a redirect to a script": (redirect("javascript:alert(1)"), "redirects to"),
    "a redirect to a bad address": (redirect("http://[::1:abc"), LOST),
    "a redirect to a bad port": (redirect("http://127.0.0.1:abc/"), LOST),
    "a redirect to nowhere": ((307, {}), "HTTP 307"),
}

STATUSES = [*range(400, 432), 444, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 524, 529, 599]
REFUSALS: dict[str, tuple[Reply, str]] = {
    f"HTTP {status}": (fail(status, "no luck"), rf"HTTP {status}( after 2 attempts)?: no luck") for status in STATUSES
}
REFUSALS |= {
    "HTTP 204": (wire(b"HTTP/1.1 204 No Content\r\n\r\n"), NOT_JSON),
    "HTTP 304": (wire(b"HTTP/1.1 304 Not Modified\r\n\r\n"), "HTTP 304"),
    "HTTP 999": (wire(page(GOOD, status="999 Request denied")), "HTTP 999"),
    "HTTP 100 and no more": (wire(b"HTTP/1.1 100 Continue\r\n\r\n"), LOST),
    "an error without a body": ((400, b""), "HTTP 400: no reason given"),
    "an error of 5 MB": ((400, "x" * 5_000_000), TOO_LONG),
    "an error of 2 MB": ((400, "x" * 2_000_000), "^HTTP 400: x+...$"),
    "an error that is no object": ((400, [1, 2]), r"HTTP 400: \[1, 2\]"),
    "an error whose message is a list": ((400, {"error": {"message": [{}]}}), "HTTP 400"),
    "an error in an error": ((400, b'{"error":' * 500 + b'"deep"' + b"}" * 500), "HTTP 400: deep"),
    "an error nested too deeply": ((400, b"[" * 200_000), "HTTP 400"),
    "an error with control characters": (
        fail(400, "a\x1b]0;title\x07\u202eb\r\nc"),
        r"^HTTP 400: a\\x1b\]0;title\\x07\\u202eb c$",
    ),
    "an error with the key": (fail(400, f"bad key {SECRET}!"), r"^HTTP 400: bad key \[API key\]!$"),
    "the key where texts are cut": (fail(400, "x" * 180 + SECRET + "y" * 50), r"^HTTP 400: x{180}\[API key\]y+\.\.\.$"),
    "an error without end": (endless(page(b"", status="400 Bad", length=""), BIG), TOO_LONG),
}

BODIES: dict[str, tuple[Reply, str]] = {
    "no body": ((200, b""), NOT_JSON),
    "blanks": ((200, b" \n "), NOT_JSON),
    "half a document": ((200, GOOD[:-9]), NOT_JSON),
    "two documents": ((200, GOOD + GOOD), NOT_JSON),
    "a page": ((200, "<html>welcome</html>"), NOT_JSON),
    "events": ((200, b"data: " + GOOD + b"\n\ndata: [DONE]\n\n"), NOT_JSON),
    "not UTF-8": ((200, b'{"choices": "\xff\xfe"}'), NOT_JSON),
    "a number of 5,000 digits": ((200, b'{"choices": ' + b"9" * 5000 + b"}"), NOT_JSON),
    "200,000 brackets": ((200, b"[" * 200_000), "nested too deeply"),
    "100,000 objects": ((200, b'{"a":' * 100_000), "nested too deeply"),
    "null": ((200, None), NO_CHAT),
    "a list": ((200, []), NO_CHAT),
    "a text": ((200, b'"yes"'), NO_CHAT),
    "an empty object": ((200, {}), NO_CHAT),
    "NaN": ((200, b"NaN"), NO_CHAT),
    "a mark of byte order": ((200, b"\xef\xbb\xbf" + GOOD), ANSWERED),
    "UTF-16": ((200, GOOD.decode().encode("utf-16")), ANSWERED),
    "text/plain": ((200, GOOD.decode()), ANSWERED),
    "unknown fields": (changed(x={"y": [1]}, object=5, id=None, created=1e300), ANSWERED),
    "an error under 200": ((200, {"error": {"message": "down"}}), "^the server answered: down$"),
    "an error text under 200": ((200, {"error": "down", "choices": []}), "^the server answered: down$"),
    "an error with a status under 200": ((200, {"error": {"message": "gone", "code": 404}}), "^HTTP 404: gone$"),
    "an empty error": (changed(error={}), ANSWERED),
    "no choices": (changed(choices=None), NO_CHAT),
    "choices that are an object": (changed(choices={"0": {}}), NO_CHAT),
    "an empty list of choices": (changed(choices=[]), "."),
    "a choice that is null": (changed(choices=[None]), NO_CHAT),
    "two choices": (changed(choices=chat("yes")[1]["choices"] * 2), "gives 2 answers"),
    "another choice": (choice(index=1), "another choice"),
    "a choice with a text as index": (choice(index="0"), "another choice"),
    "a choice with a truth as index": (choice(index=False), "another choice"),
    "a choice without an index": (choice(index=None), ANSWERED),
    "a message that is null": (choice(message=None), "."),
    "a message that is a list": (choice(message=["yes"]), "."),
    "a content that is a number": (content(5), "."),
    "a content that is an object": (content({"text": "yes"}), "."),
    "a content in parts": (content([{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]), ANSWERED),
    "a content in parts with a thought": (
        content([{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "yes"}]),
        ANSWERED,
    ),
    "a content that is no Unicode": (content("yes \ud83d"), "not valid Unicode"),
    "a refusal with the key": (
        content(None, refusal=f"not with {SECRET}"),
        r"the model refused: not with \[API key\]$",
    ),
    "another model": (changed(model="gpt-5"), r"model 'gpt-5', not 'tiny'; .*served_as='gpt-5'"),
    "another model with control characters": (changed(model="\x1b[2J"), r"model '\\\\?x1b\[2J', not 'tiny'"),
    "a model that is a number": (changed(model=7), ANSWERED),
    "the same model": (changed(model="tiny"), ANSWERED),
    "a dated model": (changed(model="tiny-2024-08-06"), ANSWERED),
    "the model's path": (changed(model="/models/tiny"), ANSWERED),
}

COUNTS: list[Any] = [None, "12", -1, True, 1.5, 10**30, [], {}, [[]], "\x1b[2J"]
BODIES |= {
    f"a count that is {count!r}": (
        changed(usage=dict.fromkeys(("prompt_tokens", "completion_tokens"), count)),
        ANSWERED,
    )
    for count in COUNTS
}
BODIES |= {f"a usage that is {usage!r}": (changed(usage=usage), ANSWERED) for usage in COUNTS}
BODIES |= {
    "more cached than asked": (
        changed(usage={"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}}),
        ANSWERED,
    ),
    "an infinite count": (
        (200, GOOD[:-1] + b', "usage": {"prompt_tokens": 1e999, "completion_tokens": NaN}}'),
        ANSWERED,
    ),
}

AFTERS = ["0", "-5", "nan", "inf", "1e309", "soon", "", "9" * 400, "Fri, 31 Dec 99999 23:59:59 GMT", "31 Dec", "\x7f"]
DELAYS: dict[str, tuple[Reply, str]] = {
    f"Retry-After: {text[:30]!r}": (fail(429, "busy", retry_after=text), "HTTP 429( after 2 attempts)?: busy")
    for text in AFTERS
}

KINDS: dict[str, tuple[Reply, str]] = {**WIRES, **REDIRECTS, **REFUSALS, **BODIES, **DELAYS}

"""Addresses, keys, waits and bounds of the connection to a server."""

from __future__ import annotations

import gzip
import logging
import math
import socket
import ssl
import threading
import time
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from bad_replies import page, trickle, wire
from fake_server import FakeServer, Reply, chat, fail

from vllm_relational import RelationalLLM
from vllm_relational.engine.endpoint import EndpointEngine
from vllm_relational.engine.endpoint.connection import Address, EndpointConnection, checked_url, retry_after_s
from vllm_relational.engine.endpoint.failures import MalformedError, RefusedError
from vllm_relational.engine.endpoint.secrets import HIDDEN, ApiKey, Secrets
from vllm_relational.engine.endpoint.transport import proxy_of, unpacked
from vllm_relational.records import Choice, EngineDiedError, Prompt, RelationalError

YES_NO = Choice(("yes", "no"))
KEY = "sk-proj-Ab3/+=9-secret_3141592653"


def rows(count: int) -> list[Prompt]:
    return [Prompt(key, user=f"row {key}") for key in range(count)]


# ------------------------------------------------------------------------------------------------------ addresses
@pytest.mark.parametrize(
    "url",
    [
        "http://h:abc/v1",
        "http://h:99999/v1",
        "http://h:-1/v1",
        "http://h:0/v1",
        "http://[::1/v1",
        "http://[g::1]/v1",
        "http://a b/v1",
        "http://h/\x1b[2J",
        "http://h\n/v1",
        "http://",
        "https:///v1",
        "ftp://h/v1",
        "h:8000",
        "//h/v1",
        "",
        "http://\ud800/v1",
        "http://xn--\u2603.\u202e",
        7,
        None,
        b"http://h",
    ],
)
def test_what_is_no_base_url_is_named(url: Any) -> None:
    with pytest.raises(RelationalError, match="base_url must be a URL such as") as raised:
        EndpointEngine(url).start()
    assert str(raised.value).isprintable()


def test_a_password_in_a_bad_url_is_not_shown() -> None:
    with pytest.raises(RelationalError) as raised:
        EndpointEngine("http://user:hunter2hunter2@h:abc/v1")
    assert "hunter2" not in str(raised.value)


def test_parts_of_an_address() -> None:
    url = checked_url("http://me:p%40ss@h:81/v1?api-version=7")
    address = Address(url, ApiKey("EMPTY", "none"), 1, 0, 0)
    assert address.url("/models") == "http://h:81/v1/models?api-version=7"
    assert address.user == ("me", "p@ss") and address.shown == "http://h:81/v1"
    assert checked_url("http://[::1]:8000/v1//") == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("concurrency", 0),
        ("concurrency", "4"),
        ("concurrency", 2.0),
        ("concurrency", True),
        ("concurrency", 10**6),
        ("timeout_s", 0),
        ("timeout_s", math.nan),
        ("timeout_s", math.inf),
        ("timeout_s", "5"),
        ("max_retries", -1),
        ("max_retries", None),
        ("retry_delay_s", -0.1),
        ("retry_delay_s", math.nan),
        ("api_key", 5),
        ("served_as", 5),
    ],
)
def test_options_of_a_wrong_kind_are_named(option: str, value: Any) -> None:
    with pytest.raises(RelationalError, match=option):
        EndpointEngine("http://h/v1", **{option: value})


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    with pytest.raises(RelationalError, match=r"no option 'retries': did you mean max_retries"):
        RelationalLLM(base_url="http://h/v1", retries=3).start()


def test_many_retries_do_not_overflow() -> None:
    connection = EndpointConnection(Address("http://h/v1", ApiKey("EMPTY", "none"), 1.0, 10**6, 1e6))
    assert 0 < (connection._delay(RefusedError(503, "busy"), 10**5, 0.0) or 0) <= 8


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"https_proxy": "http://p:1"}, "http://p:1"),
        ({"https_proxy": "p:1"}, "http://p:1"),
        ({"all_proxy": "http://p:2"}, "http://p:2"),
        ({"https_proxy": "http://p:1", "no_proxy": "example.org"}, None),
        ({"http_proxy": "http://p:1"}, None),
    ],
)
def test_the_proxy_of_the_environment(
    environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_of("https://api.example.org/v1")
    assert (str(found) if found is not None else None) == proxy


def test_rows_go_through_the_proxy(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    route, seen = fake_server._route, []

    def through(path: str, body: dict[str, Any]) -> Reply:
        seen.append(path)
        return route(path.removeprefix("http://model.invalid:81"), body)

    fake_server._route = through  # type: ignore[method-assign]
    monkeypatch.setenv("http_proxy", fake_server.root)
    monkeypatch.delenv("NO_PROXY")
    asked = EndpointEngine("http://model.invalid:81/v1")
    assert [answer.text for answer in asked.ask(rows(3), YES_NO)] == ["yes"] * 3
    assert seen[0] == "http://model.invalid:81/v1/models"
    monkeypatch.setenv("http_proxy", "http://[::1")
    with pytest.raises(RelationalError, match="proxy of the environment"):
        EndpointEngine("http://model.invalid:81/v1").start()


# ----------------------------------------------------------------------------------------------------------- keys
@pytest.mark.parametrize(
    "form",
    [KEY, quote(KEY, safe=""), f"Bearer {KEY}", KEY[:15] + "...", "..." + KEY[-9:], KEY[5:20], f'{{"key": "{KEY}"}}'],
)
def test_a_key_is_hidden_in_every_form(form: str) -> None:
    hidden = Secrets((KEY,)).hide(f"the key {form}, is bad")
    assert HIDDEN in hidden and hidden.startswith("the key ") and hidden.endswith(", is bad")
    assert not any(KEY[i : i + 8] in hidden for i in range(len(KEY) - 7))
    assert KEY not in repr(Secrets((KEY,))) and KEY not in repr(ApiKey(KEY, "x"))


@pytest.mark.parametrize(
    ("key", "text", "hidden"),
    [
        ("x", "the axis x is missing", f"the axis {HIDDEN} is missing"),
        ("EMPTY", "EMPTY is not EMPTYING", f"{HIDDEN} is not EMPTYING"),
        ("secret7", "key secret7!", f"key {HIDDEN}!"),
        ("secret78", "asecret78b secret7", f"a{HIDDEN}b secret7"),
        ("secret789", "secret78 ecret789 secret7", f"{HIDDEN} {HIDDEN} secret7"),
    ],
)
def test_short_keys_leave_words_alone(key: str, text: str, hidden: str) -> None:
    assert Secrets((key,)).hide(text) == hidden


def test_the_key_is_in_no_traceback_and_no_log(fake_server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for reply in [fail(401, f"bad {KEY}"), fail(400, f"bad {KEY[:20]}"), (200, {"error": KEY}), fail(500, KEY)]:
        fake_server.reply = lambda body, reply=reply: reply
        asked = EndpointEngine(fake_server.root + "/v1", api_key=KEY, max_retries=0)
        with pytest.raises(EngineDiedError) as raised:
            list(asked.ask(rows(3), YES_NO))
        shown = "".join(traceback.format_exception(raised.value))
        error: BaseException | None = raised.value
        while error is not None:  # also what a traceback leaves out
            shown += repr(error) + str(error.args)
            error = error.__context__
        assert KEY[:8] not in shown
    assert KEY[:8] not in caplog.text


def test_a_password_goes_to_the_server_and_nowhere_else(
    fake_server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake_server.reply = lambda body: fail(400, "bad password hunter2hunter2")
    url = fake_server.root.replace("http://", "http://me:hunter2hunter2@")
    with pytest.raises(EngineDiedError) as raised:
        list(EndpointEngine(url + "/v1").ask(rows(2), YES_NO))
    assert "hunter2" not in str(raised.value) + caplog.text


# ---------------------------------------------------------------------------------------------------------- waits
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2.5", 2.5),
        (" 7 ", 7.0),
        ("0", None),
        ("-3", None),
        ("nan", None),
        ("inf", math.inf),
        ("1e400", math.inf),
        ("soon", None),
        ("", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", math.inf),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
        ("31 Foo 2024", None),
        ("\x00", None),
    ],
)
def test_waits_that_servers_ask_for(text: str, seconds: float | None) -> None:
    found = retry_after_s({"retry-after": text})
    assert found == seconds or (text == "31 Foo 2024" and found == math.inf)


@pytest.mark.parametrize("after", ["Fri, 31 Dec 99999 23:59:59 GMT", "-1", "nan", "garbage", "999999999999"])
def test_no_wait_is_without_bound(fake_server: FakeServer, after: str) -> None:
    fake_server.reply = lambda body: fail(429, "busy", retry_after=after) if "row 0" in str(body) else chat("yes")
    started = time.monotonic()
    asked = EndpointEngine(fake_server.root + "/v1", max_retries=2, retry_delay_s=0.001)
    answers = {answer.key: answer for answer in asked.ask(rows(4), YES_NO)}
    assert (answers[0].error or "").endswith("busy") and answers[3].text == "yes"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("data", [page(b" " * 500), b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"b" * 500])
def test_a_trickled_answer_ends_with_its_time(fake_server: FakeServer, data: bytes) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return trickle(data) if "row 0" in str(body) else chat("yes")

    fake_server.reply = reply
    started = time.monotonic()
    asked = EndpointEngine(fake_server.root + "/v1", timeout_s=0.3, max_retries=0)
    answers = {answer.key: answer for answer in asked.ask(rows(3), YES_NO)}
    assert answers[0].error == "no answer in 0.3 s" and answers[1].text == "yes"
    assert time.monotonic() - started < 2


def test_a_connection_that_the_server_closed_while_it_was_idle_is_no_failure(fake_server: FakeServer) -> None:
    good = page(b'{"choices": [{"message": {"content": "yes"}}]}')  # says nothing of closing, and closes
    fake_server.reply = lambda body: wire(good)
    asked = EndpointEngine(fake_server.root + "/v1", max_retries=0, concurrency=2)
    assert [answer.text for answer in asked.ask(rows(40), YES_NO)] == ["yes"] * 40


def test_a_redirect_within_the_server_is_followed(fake_server: FakeServer) -> None:
    moved = fake_server.root + "/v1/chat/completions"
    fake_server.prefix = "/other"
    answers = iter([(307, {}, {"location": moved}), chat("yes")])
    fake_server._route = lambda path, body: (  # type: ignore[method-assign]
        (200, {"data": [{"id": "tiny"}]}) if path.endswith("/models") else next(answers) if body else (404, {})
    )
    assert [answer.text for answer in EndpointEngine(fake_server.root + "/v1").ask(rows(1), YES_NO)] == ["yes"]


def test_nothing_is_sent_to_another_origin(fake_server: FakeServer) -> None:
    other = socket.create_server(("127.0.0.1", 0))
    reached: list[Any] = []
    thread = threading.Thread(target=lambda: reached.append(other.accept()), daemon=True)
    thread.start()
    place = f"http://127.0.0.1:{other.getsockname()[1]}"
    fake_server.reply = lambda body: (308, {}, {"location": f"{place}/v1/chat/completions"})
    with pytest.raises(EngineDiedError, match=f"redirects to {place}: not followed"):
        list(EndpointEngine(fake_server.root + "/v1", api_key=KEY).ask(rows(3), YES_NO))
    fake_server.models = (302, {}, {"location": f"{place}/v1/models"})
    with pytest.raises(RelationalError, match=f"redirects to {place}: not followed"):
        EndpointEngine(fake_server.root + "/v1", api_key=KEY).start()
    other.close()
    assert reached == []


# ------------------------------------------------------------------------------------------------------------ TLS
CERTIFICATE = Path(__file__).parents[2] / "fixtures" / "localhost.pem"  # of 127.0.0.1, with its key, signed by itself


@pytest.fixture
def secure_server(fake_server: FakeServer) -> str:
    """The URL of the fake server, which speaks TLS now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    fake_server.http.socket = context.wrap_socket(fake_server.http.socket, server_side=True)
    return fake_server.root.replace("http:", "https:") + "/v1"


def test_a_server_with_tls(secure_server: str, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RelationalError, match="certificate verify failed"):
        EndpointEngine(secure_server).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    fake_server.reply = lambda body: trickle(page(b" " * 200)) if "row 1" in str(body) else chat("yes")
    asked = EndpointEngine(secure_server, concurrency=2, timeout_s=1.0, max_retries=0)
    answers = {answer.key: answer for answer in asked.ask(rows(6), YES_NO)}
    assert [answers[key].text for key in range(6)] == ["yes", None, "yes", "yes", "yes", "yes"]
    assert answers[1].error == "no answer in 1 s"


# --------------------------------------------------------------------------------------------------------- bounds
def test_packed_bodies_are_unpacked_up_to_the_limit() -> None:
    assert unpacked(gzip.compress(b"x" * 100), "gzip", 100) == b"x" * 100
    with pytest.raises(MalformedError, match="longer than 99 bytes"):
        unpacked(gzip.compress(b"x" * 100), "gzip", 99)


def test_an_answer_may_be_as_long_as_its_tokens(fake_server: FakeServer) -> None:
    from vllm_relational.records import FreeText

    text = "é" * 1_000_000  # 12 MB as JSON escapes it
    fake_server.reply = lambda body: chat(text)
    asked = EndpointEngine(fake_server.root + "/v1", max_retries=0)
    assert [answer.text for answer in asked.ask(rows(1), FreeText(500_000))] == [text]
    fake_server.reply = lambda body: chat(text if "row 0" in str(body) else "short")
    answers = {answer.key: answer for answer in asked.ask(rows(3), FreeText(64))}
    assert "is longer than 4,198,400 bytes" in (answers[0].error or "") and answers[1].text == "short"

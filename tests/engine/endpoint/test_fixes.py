"""What ends a job names its true fix; every fix that a message names can be done in Python and on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Reply, chat, fail
from typer.testing import CliRunner

from vllm_relational.cli.app import app
from vllm_relational.config import QueryOptions
from vllm_relational.config.llm import LlmOptions, ServerOptions
from vllm_relational.engine.endpoint import EndpointEngine
from vllm_relational.engine.endpoint.connection import Address
from vllm_relational.engine.endpoint.failures import LostError, MalformedError, RefusedError
from vllm_relational.engine.endpoint.fixes import death
from vllm_relational.engine.endpoint.secrets import ApiKey
from vllm_relational.records import Choice, EngineDiedError, FreeText, JsonSchema, Prompt

ADDRESS = Address("http://h/v1", ApiKey.find("sk-12345678"), 600.0, 5, 0.5)
TOO_LARGE = [
    (400, "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum context length is 200"),
    (400, "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens"),
    (400, "max_tokens is too large: 100000. This model supports at most 16384 completion tokens"),
    (422, "maxOutputTokens is 100000 but the supported range is from 1 to 65537"),
    (400, "prompt is too long: 210000 tokens"),
    (413, "Payload"),
]


def said(failure: Any, num_answers: int = 0) -> str:
    return str(death(ADDRESS, failure, num_answers))


def refused(status: int, message: str = "no", **named: Any) -> str:
    return said(RefusedError(status, f"HTTP {status}: {message}", **named))


@pytest.mark.parametrize(("status", "message"), TOO_LARGE)
def test_what_is_too_large(status: int, message: str) -> None:
    told = refused(status, message)
    assert message in told and "lower --max-tokens (max_tokens=), ask about shorter rows" in told
    assert "base_url" not in told


@pytest.mark.parametrize(
    ("status", "message", "named", "fix"),
    [
        (
            429,
            "slow down",
            {"retry_after_s": 86_400.0},
            "a pause of 24 hours, a job waits 120 s: run it again after that",
        ),
        (429, "quota", {"retry_after_s": 121.0}, "a pause of 2 minutes"),
        (503, "closed", {"retry_after_s": float("inf")}, "a pause of many years"),
        (429, "slow down", {"retry_after_s": 120.0}, "lower --concurrency (concurrency=), or raise --retries (max_ret"),
        (429, "Rate limit exceeded", {}, "lower --concurrency (concurrency=), or raise --retries (max_retries=)"),
        (429, "You exceeded your current quota", {}, "the account has used up what it may"),
        (429, "no", {"code": "insufficient_quota"}, "the account has used up what it may"),
        (402, "no", {}, "the account has used up what it may"),
        (400, "Your credit balance is too low", {}, "the account has used up what it may"),
        (403, "country not supported", {}, "country not supported; the API key came from the api_key argument; give"),
        (404, "no such model", {}, "correct --base-url (base_url=), it often ends in /v1, or --model (model=)"),
        (500, "oops", {}, "see the server's log; if it has too much to do, lower --concurrency"),
        (408, "late", {}, "see the server's log"),
        (400, 'Grammar error: Unimplemented keys: ["not"]', {}, "simplify the schema (--schema, schema=)"),
        (400, "Failed to transform json schema into a grammar: minimum greater than maximum", {}, "simplify the sch"),
        (400, "no", {"parameter": "response_format"}, "simplify the schema"),
        (400, "strange", {}, "check --base-url (base_url=), --model (model=) and the account"),
    ],
)
def test_the_fix_goes_by_what_the_server_said(status: int, message: str, named: dict[str, Any], fix: str) -> None:
    assert fix in refused(status, message, **named)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_was_good_before(status: int) -> None:
    failure = RefusedError(status, f"HTTP {status}: Incorrect API key provided: sk-12***78")
    assert "give a valid one with api_key or OPENAI_API_KEY (after 0 answers)" in said(failure)
    after = said(failure, 40)
    assert "40 rows were answered: its rights or limits have changed" in after and "valid one" not in after
    assert "sk-12" not in after


def test_servers_that_are_slow_or_gone() -> None:
    silent, gone = LostError("no answer in 600 s", silent=True), LostError("the connection failed: refused")
    assert "no answer in 600 s; raise --timeout (timeout_s=) if it needs longer, else start it again" in said(silent, 3)
    assert said(gone, 3).endswith("stopped answering after 3 answers: the connection failed: refused; start it again")
    page = MalformedError("the server's answer is not JSON", again=True)
    assert "correct base_url" in said(page) and "base_url" not in said(page, 3)


MESSAGES = [
    *[refused(status, message) for status, message in TOO_LARGE],
    *[refused(status) for status in (400, 401, 402, 403, 404, 429, 500)],
    said(LostError("no answer", silent=True)),
]


@pytest.mark.parametrize("command", ["run", "bench", "sql"])
def test_every_option_that_is_named_can_be_given(command: str) -> None:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output)
    python = {*ServerOptions.model_fields, *LlmOptions.model_fields, *QueryOptions.model_fields}
    named = {pair for told in MESSAGES for pair in re.findall(r"(--[a-z-]+) \((\w+)=\)", told)}
    assert len(named) >= 5
    for option, keyword in named | {("--served-as", "served_as"), ("--retries", "max_retries")}:
        assert f"{option} " in shown and keyword in python
    defaults = (ServerOptions.model_fields[name].default for name in ("timeout_s", "max_retries"))
    assert all(f"; {default:g} by default" in shown for default in defaults)


# ------------------------------------------------------------------------------------------- over a server, and the CLI
def run(server: FakeServer, folder: Path, *more: object) -> Any:
    (folder / "t.csv").write_text("text\nhello\nworld\n")
    arguments = ["run", folder / "t.csv", "-p", "{text}?", "--base-url", f"{server.root}/v1", *more]
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_limit_that_is_too_large_for_every_row(fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.reply = lambda body: fail(*TOO_LARGE[0]) if body["max_tokens"] > 100 else chat("yes")
    ended = run(fake_server, tmp_path, "--max-tokens", 500)
    assert ended.exit_code == 2 and "lower --max-tokens" in ended.stderr and ended.stderr.count("too large") == 1
    assert run(fake_server, tmp_path, "--max-tokens", 100).exit_code == 0


@pytest.mark.parametrize("rows", [1, 200])
def test_a_schema_that_the_server_cannot_compile(fake_server: FakeServer, rows: int) -> None:
    why = 'Grammar error: Unimplemented keys: ["uniqueItems"]'
    fake_server.reply = lambda body: fail(400, why) if "structured_outputs" in body else chat("[]")
    engine = EndpointEngine(fake_server.root + "/v1", concurrency=4)
    asked = engine.ask([Prompt(key, user=f"{key}") for key in range(rows)], JsonSchema({"uniqueItems": True}))
    with pytest.raises(EngineDiedError, match=r"Unimplemented keys: .*; simplify the schema .*after 0 answers"):
        list(asked)
    assert len(fake_server.bodies) <= 2 * 4


def test_served_as_on_the_command_line(fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.reply = lambda body: (200, {**chat("yes")[1], "model": "the qwen"})
    ended = run(fake_server, tmp_path)
    assert ended.exit_code == 2 and "give --served-as 'the qwen' (served_as='the qwen')" in ended.stderr
    assert run(fake_server, tmp_path, "--served-as", "the qwen").exit_code == 0


def test_retries_and_timeout_on_the_command_line(fake_server: FakeServer, tmp_path: Path) -> None:
    fake_server.reply = lambda body: fail(500, "no")
    assert run(fake_server, tmp_path, "--retries", 0, "--concurrency", 1).exit_code == 2
    assert len(fake_server.bodies) == 2  # a row and the trial
    fake_server.reply = lambda body: (fake_server.released.wait(5), chat("yes"))[1]
    ended = run(fake_server, tmp_path, "--timeout", 0.05, "--retries", 0)
    fake_server.released.set()
    assert ended.exit_code == 2 and "no answer in 0.05 s" in ended.stderr
    for name in ("--timeout", "--retries"):
        assert run(fake_server, tmp_path, name, "-1").exit_code == 2


def test_options_of_a_server_need_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\nhello\n")
    for option, name in {"--timeout": "timeout_s", "--retries": "max_retries", "--served-as": "served_as"}.items():
        given = ["run", str(tmp_path / "t.csv"), "-p", "{text}?", "-m", "m", option, "5"]
        ended = CliRunner().invoke(app, given)
        assert ended.exit_code == 2 and f"{name} is for a server: name one with base_url" in ended.stderr


# ----------------------------------------------------------------------------------------------- learned, and empty
def test_each_parameter_that_is_not_taken_has_its_own_reason(
    fake_server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {
        "max_tokens": "Unsupported parameter: 'max_tokens', use 'max_completion_tokens'",
        "temperature": "Unsupported value: 'temperature'",
        "response_format": "no such format",
    }

    def reply(body: dict[str, Any]) -> Reply:
        return next((fail(400, why) for name, why in reasons.items() if name in body), chat("yes"))

    fake_server.other().reply = reply
    engine = EndpointEngine(fake_server.root + "/v1", concurrency=1)
    assert [done.text for done in engine.ask([Prompt(0, user="a"), Prompt(1, user="b")], Choice(("yes", "no")))] == [
        "yes",
        "yes",
    ]
    notes = [record.message for record in caplog.records if "does not take" in record.message]
    assert len(notes) == 3
    for note, (name, why) in zip(notes, reasons.items(), strict=True):
        assert note.startswith(f"the server does not take {name} (HTTP 400: {why})")


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_an_empty_text_is_one_thing(fake_server: FakeServer, content: str | None) -> None:
    fake_server.reply = lambda body: chat(content)
    engine = EndpointEngine(fake_server.root + "/v1", concurrency=1)
    (done,) = engine.ask([Prompt(0, user="a")], FreeText())
    assert done.error is None and done.text is not None and not done.text.strip()


def test_null_and_an_empty_text_give_one_reason(fake_server: FakeServer, tmp_path: Path) -> None:
    shown = []
    for content in (None, ""):
        fake_server.reply = lambda body, content=content: chat(content)
        run(fake_server, tmp_path, "-o", tmp_path / "o.jsonl", "--overwrite")
        shown.append((tmp_path / "o.jsonl").read_text())
    assert shown[0] == shown[1] and shown[0].count("unusable answer: the answer is empty") == 2


def test_a_server_that_refuses_a_key_in_mid_job(fake_server: FakeServer) -> None:
    fake_server.reply = lambda body: chat("yes") if len(fake_server.bodies) <= 3 else fail(403, "no more today")
    engine = EndpointEngine(fake_server.root + "/v1", concurrency=1)
    with pytest.raises(EngineDiedError, match=r"HTTP 403: no more today; .* 3 rows were answered"):
        list(engine.ask([Prompt(key, user=f"{key}") for key in range(9)], FreeText()))

"""One bad row fails alone, one bad server stops early: the rule, and both sides of it over a real server."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_replies import WIRES, redirect, reset
from fake_server import FakeServer, Reply, chat, fail
from typer.testing import CliRunner

from vllm_relational.cli.app import app
from vllm_relational.engine.endpoint import EndpointEngine
from vllm_relational.engine.endpoint.failures import LostError, RefusedError, RequestError
from vllm_relational.engine.endpoint.protocol import read_completion
from vllm_relational.engine.endpoint.question import TINY
from vllm_relational.engine.endpoint.verdict import Failed, ServerFailedError, Verdict
from vllm_relational.records import Choice, EngineDiedError, FreeText, Prompt

pytestmark = pytest.mark.slow  # waits for servers that refuse

YES_NO = Choice(("yes", "no"))


def user(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def prompts(count: int) -> list[Prompt]:
    return [Prompt(key, system="Judge.", user=f"row {key}.") for key in range(count)]


def engine(server: FakeServer, **options: Any) -> EndpointEngine:
    return EndpointEngine(server.root + "/v1", **{"retry_delay_s": 0.001, "timeout_s": 5.0, **options})


# ------------------------------------------------------------------------------------------------------- the rule
def failed(key: int, sent_at: float, failure: RequestError | None = None) -> Failed:
    failure = failure or RefusedError(403, "HTTP 403: no")
    failure.sent_at = sent_at
    return Failed(Prompt(key), failure)


def keys(released: list[Failed]) -> list[int]:
    return [one.prompt.key for one in released]


def forbidden(failure: RequestError) -> Callable[[], float]:
    def trial() -> float:
        raise failure

    return trial


def test_an_answer_to_a_later_request_makes_it_the_rows() -> None:
    verdict = Verdict(8)
    assert keys(verdict.failed(failed(0, sent_at=2.0))) == []
    assert keys(verdict.answered(Prompt(1), sent_at=1.0)) == []  # sent before: says nothing
    assert keys(verdict.answered(Prompt(2), sent_at=2.5)) == [0]
    assert keys(verdict.failed(failed(3, sent_at=2.2))) == [3]  # known by then
    assert keys(verdict.failed(failed(4, sent_at=2.6))) == []


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (2, 2), (3, 2), (11, 2), (32, 8)])
def test_the_verdict_is_due_after_so_many_failures(concurrency: int, most: int) -> None:
    verdict = Verdict(concurrency)
    for key in range(most):
        assert not verdict.is_due
        verdict.failed(failed(key, sent_at=key))
    assert verdict.is_due
    assert keys(verdict.judge(lambda: 100.0)) == list(range(most)) and not verdict.is_due
    assert verdict.judge(forbidden(LostError("never asked"))) == []


def test_a_trial_that_fails_too_is_the_end() -> None:
    for row, trial, named in [
        (RefusedError(403, "the row's"), RefusedError(403, "the trial's"), "the row's"),
        (RefusedError(403, "the row's"), LostError("the trial's"), "the trial's"),
        (LostError("the row's"), LostError("the trial's"), "the row's"),
    ]:
        verdict = Verdict(4)
        verdict.failed(failed(0, 1.0, row))
        with pytest.raises(ServerFailedError, match=named):
            verdict.judge(forbidden(trial))


@pytest.mark.parametrize(("status", "asks"), [(400, False), (413, False), (422, False), (403, True), (500, True)])
def test_at_the_end_a_refusal_of_a_row_needs_no_trial_once_a_row_was_answered(status: int, asks: bool) -> None:
    verdict, asked = Verdict(8), []
    verdict.answered(Prompt(0), sent_at=1.0)
    verdict.failed(failed(1, 2.0, RefusedError(status, "no")))
    assert keys(verdict.judge(lambda: asked.append(1) or 3.0)) == [1]
    assert bool(asked) == asks
    first = Verdict(8)
    first.failed(failed(1, 2.0, RefusedError(status, "no")))
    first.judge(lambda: asked.append(2) or 3.0)
    assert asked[-1] == 2  # nothing was answered yet: every kind is tried


# ------------------------------------------------------------------------------------------- one bad row, a server
ALONE: dict[str, Reply] = {
    "reset": reset,
    "bad gzip": WIRES["bad gzip"][0],
    "a header of 300 KB": WIRES["a header of 300 KB"][0],
    "a redirect loop": redirect("/v1/chat/completions"),
    **{f"HTTP {status}": fail(status, "not this one") for status in (400, 401, 402, 403, 404, 405, 451, 500)},
    "quota": fail(429, "You exceeded your current quota"),
}


@pytest.mark.parametrize("place", [0, 3, 5])
@pytest.mark.parametrize("name", ALONE)
def test_a_row_fails_alone(fake_server: FakeServer, name: str, place: int) -> None:
    fake_server.reply = lambda body: ALONE[name] if f"row {place}." in user(body) else chat("yes")
    for concurrency in (1, 4):
        answers = list(engine(fake_server, concurrency=concurrency, max_retries=1).ask(prompts(6), YES_NO))
        assert sorted(answer.key for answer in answers) == list(range(6))
        assert [answer.key for answer in answers if answer.error] == [place]


def test_the_trial_repeats_a_row_that_was_answered(fake_server: FakeServer) -> None:
    fake_server.reply = lambda body: fail(403, "no") if "row 1." in user(body) else chat("yes")
    list(engine(fake_server, concurrency=1).ask(prompts(3), YES_NO))
    assert fake_server.users == ["row 0.", "row 1.", "row 0.", "row 2."]


@pytest.mark.parametrize("status", [400, 403])
def test_one_answer_among_refusals_keeps_the_job_alive(fake_server: FakeServer, status: int) -> None:
    fake_server.reply = lambda body: chat("yes") if user(body) in ("row 30.", TINY) else fail(status, "no")
    answers = {answer.key: answer for answer in engine(fake_server, concurrency=4).ask(prompts(40), YES_NO)}
    assert len(answers) == 40 and answers[30].text == "yes"
    assert sum(answer.error is not None for answer in answers.values()) == 39


def test_a_bad_row_is_in_the_output_and_the_others_too(fake_server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n" + "".join(f"row {i}.\n" for i in range(20)))
    fake_server.reply = lambda body: reset if "row 7." in user(body) else chat("yes")
    arguments = ["run", tmp_path / "t.csv", "-p", "{text}?", "-o", tmp_path / "o.csv", "--base-url"]
    result = CliRunner().invoke(app, [*map(str, arguments), f"{fake_server.root}/v1", "--engine-arg", "max_retries=1"])
    assert result.exit_code == 1
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert len(lines) == 21 and sum("failed request: the connection failed" in line for line in lines) == 1


def test_a_defect_of_ours_in_reading_a_reply_is_the_rows_too(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reader(key: int, *others: Any) -> Any:
        if key == 1:
            raise KeyError("a \x1b[2J")
        return read_completion(key, *others)

    monkeypatch.setattr("vllm_relational.engine.endpoint.question.read_completion", reader)
    answers = {answer.key: answer for answer in engine(fake_server, concurrency=2).ask(prompts(4), YES_NO)}
    assert answers[1].error == "the server's answer could not be read (KeyError: 'a \\x1b[2J')"
    assert answers[3].text == "yes"


# ------------------------------------------------------------------------------------------ one refusal for all rows
FOR_ALL: dict[str, Reply] = {
    "key": fail(401, "Incorrect API key provided"),
    "account": fail(402, "Insufficient Balance"),
    "forbidden": fail(403, "country not supported"),
    "model": fail(404, "The model `tiny` does not exist"),
    "parameter": (400, {"error": {"message": "Unknown parameter: 'messages'", "param": "messages"}}),
    "quota": (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}),
    "credit as a bad request": fail(400, "Your credit balance is too low"),
    "a page": (200, "<html>Welcome to nginx</html>"),
    "another model": (200, {**chat("yes")[1], "model": "other"}),
    "redirect": redirect("https://login.example/"),
}


@pytest.mark.parametrize("concurrency", [1, 2, 8])
@pytest.mark.parametrize("name", FOR_ALL)
def test_a_refusal_of_all_rows_ends_the_job(fake_server: FakeServer, name: str, concurrency: int) -> None:
    fake_server.other().reply = lambda body: FOR_ALL[name]
    with pytest.raises(EngineDiedError, match=r"after 0 answers") as raised:
        list(engine(fake_server, concurrency=concurrency, max_retries=0).ask(prompts(1000), FreeText()))
    assert len(fake_server.bodies) <= 2 * concurrency
    assert "\n" not in str(raised.value) and raised.value.__cause__ is None


def test_a_refusal_with_the_id_of_each_request_is_one_refusal(fake_server: FakeServer) -> None:
    fake_server.other().reply = lambda body: fail(400, f"no service for you (request req_{next(number):02d}cQ)")
    number = itertools.count()
    with pytest.raises(EngineDiedError, match="no service for you"):
        list(engine(fake_server, concurrency=8).ask(prompts(100), YES_NO))
    in_words = sum("response_format" not in body for body in fake_server.bodies)
    assert in_words == 1 and len(fake_server.bodies) <= 2 * 8


@pytest.mark.parametrize("name", ["key", "model", "quota", "forbidden"])
@pytest.mark.parametrize(("concurrency", "rows"), [(1, 200), (4, 200), (32, 200), (4, 60)])
def test_a_server_that_begins_to_refuse_ends_the_job(
    fake_server: FakeServer, name: str, concurrency: int, rows: int
) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if next(number) < 40:  # of those that arrived
            return chat("yes")
        refused.append(1)
        return FOR_ALL[name]

    number, refused = itertools.count(), []
    fake_server.reply = reply
    answers = []
    with pytest.raises(EngineDiedError, match="after 40 answers"):
        for answer in engine(fake_server, concurrency=concurrency).ask(prompts(rows), YES_NO):
            answers.append(answer)
    assert sum(answer.text == "yes" for answer in answers) == 40
    assert len(refused) <= 2 * concurrency  # the trial among them


@pytest.mark.parametrize("concurrency", [2, 4, 9, 32])
def test_the_most_requests_that_a_server_sees_after_it_began_to_refuse(
    fake_server: FakeServer, concurrency: int
) -> None:
    """All but one of those in flight at that moment were sent before a request that was answered, so they are decided
    and their places filled; as many as there are places follow, and the trial."""

    def reply(body: dict[str, Any]) -> Reply:
        with fake_server.lock:
            number = next(count)
        if number in (concurrency - 1, concurrency):  # the second one is sent when the first one was answered
            wait_for(lambda: len(fake_server.bodies) >= concurrency)
            return chat("yes")
        if number < concurrency:
            wait_for(lambda: len(fake_server.bodies) >= concurrency + 2)  # both answers were taken
        with fake_server.lock:
            refused.append(number)
        if number > concurrency + 1:  # the first one that follows is refused at once: nothing takes its place
            wait_for(lambda: len(refused) >= 2 * concurrency - 1)
        return fail(403, "no")

    count, refused = itertools.count(), []
    fake_server.reply = reply
    with pytest.raises(EngineDiedError, match="after 2 answers"):
        list(engine(fake_server, concurrency=concurrency).ask(prompts(200), YES_NO))
    assert len(refused) == 2 * concurrency


def wait_for(condition: Callable[[], bool]) -> None:
    patience = time.monotonic() + 4
    while not condition() and time.monotonic() < patience:
        time.sleep(0.001)


def test_slow_answers_to_earlier_requests_do_not_hide_that_all_later_ones_are_refused(fake_server: FakeServer) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if user(body) in slow:
            slow.remove(user(body))
            time.sleep(0.3)
            return chat("yes")
        return fail(403, "no")

    slow = ["row 0.", "row 1.", "row 2."]
    fake_server.reply = reply
    with pytest.raises(EngineDiedError):
        list(engine(fake_server, concurrency=4).ask(prompts(1000), YES_NO))
    assert len(fake_server.bodies) <= 3 + 8


def test_the_answers_before_a_refusal_are_kept_and_the_status_is_2(fake_server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n" + "".join(f"row {i}\n" for i in range(50)))
    fake_server.reply = lambda body: chat("yes") if len(fake_server.bodies) <= 10 else FOR_ALL["quota"]
    arguments = ["run", tmp_path / "t.csv", "-p", "{text}?", "-o", tmp_path / "o.csv", "--concurrency", 2, "--base-url"]
    result = CliRunner().invoke(app, [*map(str, arguments), f"{fake_server.root}/v1"])
    assert result.exit_code == 2 and result.stderr.count("quota") == 1 and "10 answers are in" in result.stderr
    fake_server.reply = lambda body: chat("yes")
    result = CliRunner().invoke(app, [*map(str, arguments), f"{fake_server.root}/v1", "--resume"])
    assert result.exit_code == 0 and (tmp_path / "o.csv").read_text().count("yes") == 50


# ------------------------------------------------------------------------------------------------ learned parameters
def new_style(refused: dict[str, str], seen: threading.Lock) -> Callable[[dict[str, Any]], Reply]:
    def reply(body: dict[str, Any]) -> Reply:
        time.sleep(0.01)
        for name, message in refused.items():
            if name in body:
                return 400, {"error": {"message": message, "param": name, "code": "unsupported_parameter"}}
        return chat("yes")

    return reply


GPT_5 = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
    "instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is "
    "supported.",
}


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("named", [("max_tokens",), ("temperature",), ("max_tokens", "temperature")])
def test_parameters_that_a_server_refuses_are_learned_once(
    fake_server: FakeServer, concurrency: int, named: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    fake_server.other().reply = new_style({name: GPT_5[name] for name in named}, threading.Lock())
    asked = engine(fake_server, concurrency=concurrency)
    answers = list(asked.ask(prompts(50), FreeText(7)))
    assert [answer.text for answer in answers] == ["yes"] * 50
    refused = sum(any(name in body for name in named) for body in fake_server.bodies)
    assert refused <= concurrency + len(named) - 1
    last = fake_server.bodies[-1]
    assert last.get("max_completion_tokens") == (7 if "max_tokens" in named else None)
    assert ("temperature" in last) == ("temperature" not in named)
    assert sum("does not take" in record.message for record in caplog.records) == len(named)
    fake_server.bodies.clear()
    list(asked.ask(prompts(3), FreeText(7)))
    assert not any(name in body for body in fake_server.bodies for name in named)


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Only user and assistant roles are supported!",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
    ],
)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_models_without_a_system_role_read_it_from_the_user(
    fake_server: FakeServer, message: str, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    refuses = lambda body: body["messages"][0]["role"] == "system"  # noqa: E731
    fake_server.reply = lambda body: fail(400, message) if refuses(body) else chat("yes")
    questions = [Prompt(key, system="Be brief.", user=f"row {key}") for key in range(20)]
    answers = list(engine(fake_server, concurrency=concurrency).ask(questions, FreeText(7)))
    assert [answer.text for answer in answers] == ["yes"] * 20
    assert sum(map(refuses, fake_server.bodies)) <= concurrency
    assert fake_server.bodies[-1]["messages"][0]["content"].startswith("Be brief.\n\nrow ")
    assert sum("does not take the system role" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    "message",
    ["`temperature` may only be set to 1 when thinking is enabled", "temperature must be 1 for this model"],
)
def test_a_temperature_that_is_fixed_is_left_out(fake_server: FakeServer, message: str) -> None:
    fake_server.reply = lambda body: fail(400, message) if "temperature" in body else chat("yes")
    answers = list(engine(fake_server, concurrency=4).ask(prompts(20), FreeText(7)))
    assert [answer.text for answer in answers] == ["yes"] * 20
    assert sum("temperature" in body for body in fake_server.bodies) <= 4


def test_a_limit_that_is_too_large_is_the_rows_matter(fake_server: FakeServer) -> None:
    message = "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum context length is 200"
    fake_server.reply = lambda body: fail(400, message) if "row 1." in user(body) else chat("yes")
    answers = {answer.key: answer for answer in engine(fake_server, concurrency=1).ask(prompts(3), FreeText(500))}
    assert answers[1].error == f"HTTP 400: {message}" and answers[2].text == "yes"
    assert all("max_tokens" in body for body in fake_server.bodies)


def test_a_parameter_and_a_constraint_that_are_refused(fake_server: FakeServer) -> None:
    named = {"temperature": GPT_5["temperature"], "response_format": "response_format is not available"}
    fake_server.other().reply = new_style(named, threading.Lock())
    answers = list(engine(fake_server, concurrency=4).ask(prompts(20), YES_NO))
    assert {answer.text for answer in answers} == {"yes"}
    assert sum("response_format" in body or "temperature" in body for body in fake_server.bodies) <= 5


def test_a_server_that_refuses_what_it_wants_instead_ends_the_job(fake_server: FakeServer) -> None:
    names = {**GPT_5, "max_completion_tokens": "Unknown parameter: 'max_completion_tokens'"}
    fake_server.other().reply = new_style(names, threading.Lock())
    with pytest.raises(EngineDiedError, match="max_completion_tokens"):
        list(engine(fake_server, concurrency=8).ask(prompts(100), FreeText()))
    assert len(fake_server.bodies) <= 2 * 8 + len(names)

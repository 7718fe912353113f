"""The endpoint engine against a real HTTP server on this machine."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_server import FakeServer, Reply, chat, fail

from vllm_relational.engine.endpoint import EndpointEngine
from vllm_relational.engine.endpoint.connection import retry_after_s
from vllm_relational.engine.endpoint.protocol import plain_text, read_completion, request_body, token_limit
from vllm_relational.records import (
    Choice,
    Completion,
    EngineDiedError,
    FreeText,
    IntegerRange,
    JsonSchema,
    Prompt,
    RelationalError,
)

YES_NO = Choice(("yes", "no"))
KEY = "sk-secret-3141592653"


@pytest.fixture
def server(fake_server: FakeServer) -> FakeServer:
    return fake_server


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("endpoint")]


def engine(server: FakeServer, **options: Any) -> EndpointEngine:
    return EndpointEngine(server.root + "/v1", **{"retry_delay_s": 0.01, "timeout_s": 5.0, **options})


def prompts(count: int) -> list[Prompt]:
    return [Prompt(key, system="Judge.", user=f"row {key}") for key in range(count)]


def ask(asked: EndpointEngine, count: int = 1, answer_format: Any = YES_NO) -> dict[int, Completion]:
    return {completion.key: completion for completion in asked.ask(prompts(count), answer_format)}


# --------------------------------------------------------------------------------------------------------- start
def test_start_reads_the_model_card(server: FakeServer) -> None:
    info = engine(server).start()
    assert (info.model, info.max_model_len, info.kv_cache_tokens, info.block_size) == ("tiny", 2048, None, 16)


def test_start_reads_the_block_size_from_the_metrics(server: FakeServer) -> None:
    server.metrics = (200, 'vllm:cache_config_info{_block_size_resolved="True",block_size="128",engine="0"} 1.0\n')
    assert engine(server).start().block_size == 128


def test_what_is_expected_is_what_start_would_say_and_asks_no_model(server: FakeServer) -> None:
    server.metrics = (200, 'vllm:cache_config_info{block_size="128",engine="0"} 1.0\n')
    looked = engine(server)
    for _ in range(3):
        info = looked.expected()
        assert (info.model, info.max_model_len, info.block_size) == ("tiny", 2048, 128)
    assert server.paths == ["/v1/models", "/metrics"] and server.bodies == []
    assert looked.start().fingerprint and looked.expected() == looked.start()


def test_nothing_is_expected_of_a_server_that_does_not_say(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_relational.engine.endpoint.engine.EXPECTED_TIMEOUT_S", 0.2)
    assert EndpointEngine(server.root).expected().max_model_len == 2048  # the path /v1 is found here too
    assert engine(server, model="other").expected().max_model_len is None
    for models in [(404, {}), (500, {}), (401, {}), (200, []), (200, {"data": [{"id": "tiny"}]})]:
        server.models = models
        assert engine(server).expected().max_model_len is None
    server.models = (200, {"data": []})
    slow = socket.create_server(("127.0.0.1", 0))  # takes the request and never answers
    port, begin = slow.getsockname()[1], time.perf_counter()
    silent = EndpointEngine(f"http://127.0.0.1:{port}/v1")
    assert silent.expected().max_model_len is None
    slow.close()  # and now is gone
    assert silent.expected() == EndpointEngine(f"http://127.0.0.1:{port}/v1").expected()
    assert time.perf_counter() - begin < 3


def test_a_missing_v1_is_added(server: FakeServer) -> None:
    asked = EndpointEngine(server.root)
    assert asked.start().model == "tiny"
    assert ask(asked)[0].text == "yes"
    assert "structured_outputs" in server.bodies[0]


def test_a_wrong_model_is_named_with_close_matches(server: FakeServer) -> None:
    server.models = (200, {"data": [{"id": "Qwen2.5-7B-Instruct"}, {"id": "bge-small"}]})
    with pytest.raises(RelationalError, match=r"did you mean Qwen2\.5-7B-Instruct\?"):
        engine(server, model="Qwen2.5-7B-instruct").start()
    with pytest.raises(RelationalError, match=r"serves Qwen2\.5-7B-Instruct, bge-small; choose one with --model"):
        engine(server).start()


def test_many_names_are_not_all_listed(server: FakeServer) -> None:
    server.models = (200, {"data": [{"id": f"m{number}"} for number in range(500)]})
    with pytest.raises(RelationalError, match="and 490 more"):
        engine(server).start()


def test_a_server_without_a_list_needs_the_name(server: FakeServer) -> None:
    server.models = (404, {})
    with pytest.raises(RelationalError, match="has no /models; give the name with --model"):
        engine(server).start()
    assert engine(server, model="mine").start().model == "mine"


def test_a_page_that_is_no_list_of_models(server: FakeServer) -> None:
    server.models = (200, "<html>welcome</html>")
    with pytest.raises(RelationalError, match="often ends in /v1"):
        engine(server).start()


def test_an_unreachable_server_is_named_with_the_fix() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://user:password@127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(RelationalError) as raised:
            EndpointEngine(url, retry_delay_s=0.01).start()
    message = str(raised.value)
    assert "cannot reach the server at http://127.0.0.1:" in message and "start the server" in message
    assert "password" not in message and "\n" not in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_by_its_source(server: FakeServer, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    server.models = fail(status, f"Incorrect API key provided: {KEY}")
    for options, source in [({}, "no API key was given"), ({"api_key": KEY}, "came from the api_key argument")]:
        with pytest.raises(RelationalError, match=source) as raised:
            engine(server, **options).start()
        assert KEY not in str(raised.value)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(RelationalError, match="came from OPENAI_API_KEY"):
        engine(server).start()


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "http://h", "concurrency": 0},
        {"base_url": "http://h", "timeout_s": 0},
    ],
)
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(RelationalError, match=r"http://localhost:8000/v1|must be positive|whole number from 1"):
        EndpointEngine(**options)


def test_the_key_is_in_no_message(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "vllm_relational")
    asked = engine(server, api_key=KEY)
    assert KEY not in repr(vars(asked))
    server.other().reply = but_for_row_0(fail(400, f"bad request with {KEY}"))
    assert KEY not in (ask(asked)[0].error or KEY)
    server.reply = lambda body: fail(401, f"key {KEY} has expired")
    with pytest.raises(EngineDiedError) as raised:
        ask(asked)
    assert KEY not in str(raised.value) and KEY not in caplog.text
    with pytest.raises(RelationalError) as raised_by_key:
        engine(server, api_key=f"{KEY}\n{KEY}")
    assert KEY not in str(raised_by_key.value)


# ------------------------------------------------------------------------------------------------ order, places
def test_one_at_a_time_arrives_in_the_order_given(server: FakeServer) -> None:
    answers = list(engine(server, concurrency=1).ask(prompts(30), YES_NO))
    assert server.users == [f"row {key}" for key in range(30)]
    assert [answer.key for answer in answers] == list(range(30))
    assert server.most_in_flight == 1


def test_never_more_in_flight_than_allowed_and_pulled_lazily(server: FakeServer) -> None:
    pulled = 0

    def counted() -> Iterator[Prompt]:
        nonlocal pulled
        for prompt in prompts(40):
            pulled += 1
            yield prompt

    def slow(body: dict[str, Any]) -> Reply:
        patience = time.monotonic() + 2
        while server.most_in_flight < 4 and time.monotonic() < patience:
            time.sleep(0.001)
        time.sleep(0.01)
        return chat("no")

    server.reply = slow
    seen = 0
    for completion in engine(server, concurrency=4).ask(counted(), YES_NO):
        seen += 1
        assert completion.text == "no" and pulled <= seen + 8
    assert seen == 40 and server.most_in_flight == 4


def test_nothing_asked_nothing_sent(server: FakeServer) -> None:
    assert ask(engine(server), 0) == {} and server.bodies == []


# --------------------------------------------------------------------------------------------- retries, failures
def test_busy_then_free(server: FakeServer) -> None:
    server.reply = lambda body: fail(503, "loading") if len(server.bodies) < 3 else chat("yes")
    assert ask(engine(server))[0].text == "yes" and len(server.bodies) == 3


def test_retry_after_is_honoured(server: FakeServer) -> None:
    server.reply = lambda body: fail(429, "slow", retry_after="0.3") if len(server.bodies) < 2 else chat("yes")
    started = time.monotonic()
    assert ask(engine(server))[0].text == "yes"
    assert 0.3 <= time.monotonic() - started < 3


def test_retry_after_as_a_number_a_date_or_nonsense() -> None:
    assert retry_after_s({"retry-after": "2.5"}) == 2.5
    assert retry_after_s({"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}) > 1e6  # type: ignore[operator]
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None


def test_a_wait_of_an_hour_is_not_waited_for(server: FakeServer) -> None:
    server.reply = but_for_row_0(fail(429, "daily limit used", retry_after="3600"))
    assert ask(engine(server))[0].error == "HTTP 429: daily limit used"


def test_a_row_whose_retries_are_used_up_fails_alone(server: FakeServer) -> None:
    server.reply = lambda body: fail(500, "oops") if "row 1" in server_user(body) else chat("yes")
    answers = ask(engine(server, max_retries=2), 3)
    assert answers[1].error == "HTTP 500 after 3 attempts: oops"
    assert answers[0].text == answers[2].text == "yes"


def but_for_row_0(reply: Reply) -> Callable[[dict[str, Any]], Reply]:
    """A server that gives that reply for row 0 and works for all others."""
    return lambda body: reply if "row 0" in server_user(body) else chat("yes")


def server_user(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


@pytest.mark.parametrize("vllm", [True, False])
def test_one_bad_row_does_not_disturb_the_others(server: FakeServer, vllm: bool) -> None:
    long = "This model's maximum\ncontext length is 2048 tokens. " + "x" * 500
    server.reply = lambda body: fail(400, long) if "row 0" in server_user(body) else chat('{"answer": "no"}')
    if not vllm:
        server.other()
    answers = ask(engine(server, concurrency=2), 6, JsonSchema({"type": "object"}))
    error = answers[0].error or ""
    assert error.startswith("HTTP 400: This model's maximum context length") and len(error) < 230 and "\n" not in error
    assert all(answers[key].text == '{"answer": "no"}' for key in range(1, 6))
    if not vllm:  # the constraint was kept
        assert sum("response_format" in body for body in server.bodies) == 6


def test_text_that_is_not_unicode_fails_alone(server: FakeServer) -> None:
    rows = [Prompt(0, user="\ud800"), Prompt(1, user="fine")]
    answers = {answer.key: answer for answer in engine(server).ask(rows, YES_NO)}
    assert "not valid Unicode" in (answers[0].error or "") and answers[1].text == "yes"


def test_a_slow_row_fails_alone_while_others_are_answered(server: FakeServer) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if "row 0" in server_user(body):
            server.released.wait(5)
        time.sleep(0.05)
        return chat("yes")

    server.reply = reply
    answers = ask(engine(server, concurrency=2, timeout_s=0.3), 30)
    assert answers[0].error == "no answer in 0.3 s after 2 attempts"
    assert all(answers[key].text == "yes" for key in range(1, 30))


def test_a_killed_server_ends_the_job(server: FakeServer) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if len(server.bodies) > 5:
            threading.Thread(target=server.kill).start()
            server.released.wait(5)
        return chat("yes")

    server.reply = reply
    answers = []
    started = time.monotonic()
    with pytest.raises(EngineDiedError, match=rf"{server.root}/v1 stopped answering .*start it again") as raised:
        for answer in engine(server, concurrency=3, max_retries=2).ask(prompts(100), YES_NO):
            answers.append(answer)
    assert f"after {len(answers)} answers" in str(raised.value)
    assert len(answers) <= 5 and time.monotonic() - started < 3


def test_a_frozen_server_ends_the_job(server: FakeServer) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        server.released.wait(5)
        return chat("yes")

    server.reply = reply
    started = time.monotonic()
    with pytest.raises(EngineDiedError, match=r"after 0 answers: no answer in 0\.2 s"):
        ask(engine(server, timeout_s=0.2), 8)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_all_requests_ends_the_job(server: FakeServer, status: int) -> None:
    server.reply = lambda body: chat("yes") if len(server.bodies) < 3 else fail(status, "gone")
    with pytest.raises(EngineDiedError, match=rf"HTTP {status}.*after 2 answers"):
        ask(engine(server, concurrency=1), 9)
    assert len(server.bodies) == 4  # the refused row, and the trial


def test_an_early_close_cancels_and_leaves_the_engine_usable(server: FakeServer) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if len(server.bodies) > 1:
            server.released.wait(5)
        return chat("yes")

    server.reply = reply
    asked = engine(server, concurrency=4)
    answers = asked.ask(iter(prompts(1000)), YES_NO)
    next(answers)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 1 and len(server.bodies) <= 5
    server.released.set()
    assert len(ask(asked, 3)) == 3


def test_an_early_close_does_not_wait_for_the_next_attempt(server: FakeServer) -> None:
    server.reply = lambda body: chat("yes") if "row 0" in server_user(body) else fail(503, "busy", retry_after="60")
    answers = engine(server, concurrency=4).ask(prompts(9), YES_NO)
    next(answers)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 1


def test_an_error_in_the_source_of_prompts_passes_through(server: FakeServer) -> None:
    def broken() -> Iterator[Prompt]:
        yield from prompts(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(engine(server, concurrency=2).ask(broken(), YES_NO))


# ------------------------------------------------------------------------------------------------------ dialects
@pytest.mark.parametrize(
    ("answer_format", "outputs"),
    [
        (YES_NO, {"choice": ["yes", "Yes", "YES", "no", "No", "NO"]}),
        (IntegerRange(-1, 2), {"choice": ["-1", "0", "1", "2"]}),
        (IntegerRange(0, 500), {"json": {"type": "integer", "minimum": 0, "maximum": 500}}),
        (JsonSchema({"type": "object"}), {"json": {"type": "object"}}),
        (FreeText(7), None),
    ],
)
def test_what_vllm_is_asked(server: FakeServer, answer_format: Any, outputs: Any) -> None:
    ask(engine(server), 1, answer_format)
    body = server.bodies[0]
    assert body.get("structured_outputs") == outputs and "response_format" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["model"] == "tiny" and body["temperature"] == 0
    assert body["messages"] == [{"role": "system", "content": "Judge."}, {"role": "user", "content": "row 0"}]


def test_what_another_server_is_asked(server: FakeServer) -> None:
    server.other().reply = lambda body: chat('{"answer": "no"}')
    assert ask(engine(server))[0].text == "no"
    body = server.bodies[0]
    form = body["response_format"]["json_schema"]
    assert form["name"] == "answer" and form["strict"] is True
    assert form["schema"]["properties"] == {"answer": {"type": "string", "enum": ["yes", "no"]}}
    assert form["schema"]["required"] == ["answer"] and form["schema"]["additionalProperties"] is False
    assert not {"structured_outputs", "chat_template_kwargs"} & set(body)


@pytest.mark.parametrize(
    ("version", "owner"),
    [((200, {"version": "0.8.5"}), "vllm"), ((200, {"version": "1.2.3"}), "other"), ((404, {}), "vllm")],
)
def test_servers_that_do_not_take_structured_outputs(server: FakeServer, version: Reply, owner: str) -> None:
    server.models = (200, {"data": [{"id": "tiny", "owned_by": owner}]})
    ask(engine(server.other(version)))
    assert "response_format" in server.bodies[0]


def test_a_development_build_of_vllm_is_vllm(server: FakeServer) -> None:
    ask(engine(server.other((200, {"version": "0.1.dev9+gabc"}))))
    assert "structured_outputs" in server.bodies[0]


def test_a_refused_response_format_is_dropped_once(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.other().reply = lambda body: fail(400, "unknown field") if "response_format" in body else chat(" yes\n")
    asked = engine(server, concurrency=2)
    assert {answer.text for answer in ask(asked, 10).values()} == {"yes"}
    assert sum("response_format" in body for body in server.bodies) <= 2
    assert server.users[-1].endswith('exactly one of these, without quotes, and nothing else: "yes", "no".')
    server.bodies.clear()
    ask(asked, 3)
    assert not any("response_format" in body for body in server.bodies)
    assert [record.levelname for record in caplog.records if record.name.startswith("vllm_relational")] == ["WARNING"]


@pytest.mark.parametrize(
    ("answer_format", "words", "answer", "text"),
    [
        (IntegerRange(1, 5), "from 1 to 5", "3", "3"),
        (JsonSchema({"type": "object"}), '{"type": "object"}', '```json\n{"a": 1}\n```', '{"a": 1}'),
        (FreeText(), "u", " so ", " so "),
    ],
)
def test_words_instead_of_a_constraint(answer_format: Any, words: str, answer: str, text: str) -> None:
    body = request_body("m", Prompt(0, user="u"), answer_format, "words")
    assert server_user(body).startswith("u") and words in server_user(body) and "response_format" not in body
    assert plain_text(answer, answer_format, "words") == text


# ------------------------------------------------------------------------------------------------------- answers
def test_cached_tokens_are_read(server: FakeServer) -> None:
    usage: dict[str, Any] = {
        "prompt_tokens": 40,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 32},
    }
    server.reply = lambda body: chat("yes", **usage)
    assert ask(engine(server))[0] == Completion(0, "yes", None, 40, 2, 32)
    server.reply = lambda body: chat("yes", prompt_tokens=40, completion_tokens=2, prompt_tokens_details=None)
    assert ask(engine(server))[0] == Completion(0, "yes", None, 40, 2, None)
    server.reply = lambda body: chat("yes")
    assert ask(engine(server))[0] == Completion(0, "yes", None, 0, 0, None)


@pytest.mark.parametrize(
    ("said", "cached", "loaded"),
    [
        ({"contexts": {"loaded": 16, "lost": 8}}, 24, 16),
        ({"contexts": {"loaded": 99, "lost": 0}}, 32, 0),  # more than the prompt has
        ({"contexts": "many"}, 32, 0),
        ({"other": 1}, 32, 0),
        (None, 32, 0),
        ([], 32, 0),
    ],
)
def test_loaded_tokens_are_read_and_what_was_lost_is_not_cached(
    server: FakeServer, said: Any, cached: int, loaded: int
) -> None:
    usage: dict[str, Any] = {"prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 32}}
    status, reply = chat("yes", **usage)
    server.reply = lambda body: (status, {**reply, "kv_transfer_params": said})
    assert ask(engine(server))[0] == Completion(0, "yes", None, 40, 0, cached, loaded_tokens=loaded)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (chat("half a sen", "content_filter"), "the server stopped the answer (finish reason content_filter)"),
        (chat('{"a": 1}', "error"), "the server stopped the answer (finish reason error)"),
        (chat('{"a": 1}', "abort"), "the server stopped the answer (finish reason abort)"),
        (chat('{"a": 1}', "insufficient_system_resource"), "the server stopped the answer"),
        (chat(None, "tool_calls"), "the server stopped the answer (finish reason tool_calls)"),
        (chat('{"a": 1}', ["stop"]), "the server stopped the answer (finish reason ['stop'])"),
        ((200, {"choices": []}), "the server gives no answer: its list of choices is empty"),
        ((200, {"error": {"message": "upstream is down"}}), "the server answered: upstream is down"),
        ((200, "<html>hello</html>"), "the server's answer is not JSON after 2 attempts"),
        ((200, ["hello"]), "the server's answer is not a chat completion"),
        ((200, {"choices": [{"message": {"refusal": "I cannot."}}]}), "the model refused: I cannot."),
        (
            (200, {"choices": [{"message": {"content": "", "reasoning": "hmm"}}]}),
            "the answer is empty: the model spent",
        ),
        ((422, {"detail": [{"msg": "bad"}]}), "HTTP 422: [{'msg': 'bad'}]"),
        ((413, "too large"), "HTTP 413: too large"),
    ],
)
def test_answers_that_are_none(server: FakeServer, reply: Reply, error: str) -> None:
    server.reply = but_for_row_0(reply)
    answer = ask(engine(server), 1, JsonSchema({"type": "object"}))[0]
    assert answer.text is None and (answer.error or "").startswith(error)


@pytest.mark.parametrize("answer_format", [FreeText(4), YES_NO, JsonSchema({})])
@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_a_text_that_was_cut_off_is_marked(answer_format: Any, finish: str) -> None:
    completion = read_completion(0, chat("a long st", finish)[1], answer_format, "vllm")
    assert (completion.text, completion.error, completion.cut) == ("a long st", None, True)


@pytest.mark.parametrize("finish", ["stop", "eos_token", "STOP", "end_turn", None])
def test_a_text_that_the_model_ended_is_whole(finish: Any) -> None:
    completion = read_completion(0, chat(" a long story ", finish)[1], FreeText(4), "vllm")
    assert (completion.text, completion.error, completion.cut) == (" a long story ", None, False)


def test_an_empty_text_is_judged_with_those_of_other_engines() -> None:
    assert read_completion(0, chat("  \n")[1], FreeText(4), "vllm") == Completion(0, "  \n")


@pytest.mark.parametrize("dialect", ["vllm", "response_format", "words"])
@pytest.mark.parametrize("thought", ["<think>\nyes or {no}?\n</think>\n\n", "so it is\n</think>\n", "<THINK></THINK>"])
def test_the_wrapping_behind_a_thought_is_taken_off(dialect: Any, thought: str) -> None:
    wrapped = {"vllm": "yes", "response_format": '{"answer": "yes"}', "words": "yes"}[dialect]
    assert read_completion(0, chat(thought + wrapped)[1], YES_NO, dialect).text == "yes"
    assert plain_text(thought + '```json\n{"a": 1}\n```', JsonSchema({}), "words") == '{"a": 1}'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"answer": "no"}', "no"),
        ('\n{ "answer": 4 }', "4"),
        ("no", "no"),
        ("4", "4"),
        ('{"reply": 1}', '{"reply": 1}'),
        ('{"answer": null}', "null"),
        ("[" * 100_000, "[" * 100_000),
        ('{"answer": ' * 50_000, ('{"answer": ' * 50_000).strip()),
    ],
)
def test_wrapped_answers_are_unwrapped(content: str, text: str) -> None:
    assert plain_text(content, YES_NO, "response_format") == text


def test_token_limits_cover_the_longest_answer() -> None:
    assert token_limit(FreeText(5)) == 5 and token_limit(JsonSchema({}, 9)) == 9
    for labels in [("a", "a much longer label"), ("日本語", "é"), ('quote "', "\n")]:
        longest = max(len(json.dumps({"answer": label}, indent=2).encode()) for label in labels)
        assert token_limit(Choice(labels)) >= longest
    assert token_limit(IntegerRange(-100000, 1)) >= len('{"answer": -100000}')


# --------------------------------------------------------------------------------------------------- reset, close
def test_reset_cache_where_the_server_can(server: FakeServer) -> None:
    asked = engine(server)
    assert asked.reset_cache() is False
    server.reset = (200, {"success": True})
    assert asked.reset_cache() is True
    server.reset = (200, {"success": False})
    assert asked.reset_cache() is False
    server.reset = (200, {"success": True})
    assert engine(server.other()).reset_cache() is False
    asked.close()
    asked.close()

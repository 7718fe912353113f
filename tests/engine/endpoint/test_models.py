"""Which names in a reply are names of the model that was asked, and what a server says of its models."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fake_server import FakeServer, chat

from vllm_relational.engine.endpoint import EndpointEngine
from vllm_relational.engine.endpoint.models import ExpectedModel, block_size_in
from vllm_relational.records import Choice, EngineDiedError, Prompt, RelationalError


def cards(*names: str, **roots: str) -> list[dict[str, Any]]:
    return [*({"id": name} for name in names), *({"id": name, "root": root} for name, root in roots.items())]


@pytest.mark.parametrize(
    ("asked", "replied"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o", "GPT-4o"),
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gemini-2.0-flash", "gemini-2.0-flash-001"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
        ("claude-3-5-sonnet", "claude-3-5-sonnet@20241022"),
        ("llama3", "llama3:latest"),
        ("meta/llama3", "llama3"),
        ("llama3", "meta/llama3"),
        ("meta/llama3", "/models/meta/llama3/"),
        ("openai/gpt-4o", "gpt-4o-2024-08-06"),
        ("tiny", "./tiny.gguf"),
        ("tiny", None),
        ("tiny", ""),
        ("tiny", 7),
        ("tiny", ["x"]),
    ],
)
def test_names_of_the_model_that_was_asked(asked: str, replied: object) -> None:
    assert ExpectedModel(asked, cards(asked, "another")).admits(replied)
    assert ExpectedModel(asked, None).admits(replied)


@pytest.mark.parametrize(
    ("asked", "replied"),
    [
        ("gpt-4o", "gpt-4o-mini"),
        ("gpt-4o-mini", "gpt-4o"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06"),
        ("llama-3", "llama-2"),
        ("llama-3", "llama"),
        ("llama-3-8b", "llama-3-70b"),
        ("meta/llama3", "other/llama3"),
        ("tiny", "tiny-instruct"),
        ("tiny", "another"),
        ("tiny", "/models/another"),
        ("tiny", "\x1b[2J"),
    ],
)
def test_names_of_other_models(asked: str, replied: str) -> None:
    assert not ExpectedModel(asked, cards(asked, "another")).admits(replied)


def test_aliases_of_one_model_share_its_root() -> None:
    served = cards(fast="/m/Qwen2.5-7B", good="/m/Qwen2.5-7B", other="/m/Llama-3")
    assert all(ExpectedModel("fast", served).admits(name) for name in ("fast", "good", "/m/Qwen2.5-7B", "Qwen2.5-7B"))
    assert not any(ExpectedModel("fast", served).admits(name) for name in ("other", "/m/Llama-3"))


def test_an_adapter_is_not_its_base_model() -> None:
    served = [{"id": "base", "root": "/m/b"}, {"id": "adapter", "root": "/m/b", "parent": "base"}]
    assert not ExpectedModel("base", served).admits("adapter")


def test_a_listed_name_that_looks_like_ours_is_another_model() -> None:
    assert not ExpectedModel("org/tiny", cards("org/tiny", "tiny")).admits("tiny")
    assert ExpectedModel("tiny", cards("tiny", "tiny-2024-08-06")).admits("tiny-2024-08-06")


def test_without_a_list_the_first_name_holds() -> None:
    deployment = ExpectedModel("my-deployment", None)
    assert deployment.admits("gpt-4o-2024-08-06") and deployment.admits("gpt-4o-2024-08-06")
    assert deployment.admits("my-deployment") and not deployment.admits("gpt-4o-mini")


def test_the_name_that_the_user_gave(fake_server: FakeServer) -> None:
    fake_server.reply = lambda body: (200, {**chat("yes")[1], "model": "qwen"})
    rows, answer_format = [Prompt(0, user="a"), Prompt(1, user="b")], Choice(("yes", "no"))
    with pytest.raises(EngineDiedError, match=r"model 'qwen', not 'tiny'; .* --served-as qwen \(served_as='qwen'\)"):
        list(EndpointEngine(fake_server.root, retry_delay_s=0).ask(rows, answer_format))
    told = EndpointEngine(fake_server.root, served_as="qwen")
    assert [answer.text for answer in told.ask(rows, answer_format)] == ["yes", "yes"]


# ------------------------------------------------------------------------------------------- what servers say of it
@pytest.mark.parametrize(
    ("page", "size"),
    [
        ('# HELP\nvllm:cache_config_info{a="1",block_size="128",engine="0"} 1.0\n', 128),
        ('vllm:cache_config_info{block_size="16"} 1.0', 16),
        ('vllm:cache_config_info{_block_size="128"} 1.0\n', None),
        ('vllm:cache_config_info{a="1"} block_size="128"', None),
        ('vllm:cache_config_info{block_size="0"}', None),
        ('vllm:cache_config_info{block_size="-16"}', None),
        ('vllm:cache_config_info{block_size="٣"}', None),
        ('vllm:cache_config_info{block_size="' + "9" * 5000 + '"}', None),
        ("", None),
    ],
)
def test_the_block_size_in_a_page_of_metrics(page: str, size: int | None) -> None:
    assert block_size_in(page) == size


@pytest.mark.parametrize("piece", ["vllm:cache_config_info{", "vllm:cache_config_info{a,", "x{\n"])
def test_a_hostile_page_of_metrics_is_read_once(piece: str) -> None:
    started = time.perf_counter()
    assert block_size_in(piece * (4_000_000 // len(piece))) is None
    assert time.perf_counter() - started < 2


def test_a_page_of_metrics_without_end_is_not_read_to_it(fake_server: FakeServer) -> None:
    fake_server.metrics = (200, "x" * 10_000_000)
    assert EndpointEngine(fake_server.root + "/v1").start().block_size == 16


@pytest.mark.parametrize("length", [10**400, -1, 0, True, "2048", 2048.0, [1], None])
def test_a_context_that_is_no_length_is_unknown(fake_server: FakeServer, length: object) -> None:
    fake_server.models = (200, {"data": [{"id": "tiny", "max_model_len": length}]})
    assert EndpointEngine(fake_server.root + "/v1").start().max_model_len is None


@pytest.mark.parametrize("listed", [b"[" * 100_000, b"{", {"data": {}}, {"data": [1, None, {"id": 5}]}, b""])
def test_a_list_of_models_that_is_none(fake_server: FakeServer, listed: Any) -> None:
    fake_server.models = (200, listed)
    with pytest.raises(RelationalError) as raised:
        EndpointEngine(fake_server.root + "/v1").start()
    assert "\n" not in str(raised.value)


def test_names_of_a_server_cannot_steer_the_terminal(fake_server: FakeServer) -> None:
    fake_server.models = (
        200,
        {"data": [{"id": "a\x1b[2J"}, {"id": "b" * 1000}, *({"id": f"m{i}"} for i in range(20_000))]},
    )
    started = time.perf_counter()
    with pytest.raises(RelationalError) as raised:
        EndpointEngine(fake_server.root + "/v1", model="a[2J").start()
    message = str(raised.value)
    assert "a\\x1b[2J" in message and message.isprintable() and len(message) < 2000
    assert time.perf_counter() - started < 3

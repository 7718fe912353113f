"""A place of the endpoint engine is free once its answer was taken: what a killed job asks again is bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from fake_server import FakeServer, Reply, chat, fail

from vllm_relational.engine.endpoint import EndpointEngine
from vllm_relational.records import FreeText, Prompt

ROWS = 14


def asked(server: FakeServer, concurrency: int, rows: Iterator[Prompt] | list[Prompt] | None = None):
    engine = EndpointEngine(server.root + "/v1", concurrency=concurrency, retry_delay_s=0.01, timeout_s=5.0)
    return engine.ask(rows or [Prompt(key, system="Judge.", user=f"row {key}") for key in range(ROWS)], FreeText())


def settles_at(server: FakeServer, number: int) -> bool:
    """Whether the server gets so many requests, answers them all, and gets no more though it is waited for them."""
    patience = time.monotonic() + 5
    while (len(server.bodies) < number or server.in_flight) and time.monotonic() < patience:
        time.sleep(0.001)
    time.sleep(0.02)
    return len(server.bodies) == number


@pytest.mark.parametrize("concurrency", [1, 2, 4, ROWS - 1, ROWS, ROWS + 1])
def test_no_more_than_the_limit_are_asked_and_not_taken(fake_server: FakeServer, concurrency: int) -> None:
    """The consumer stops at every answer until all that were asked are answered: the one in its hand is not stored."""
    answers = asked(fake_server, concurrency)
    for stored, _ in enumerate(answers):
        assert settles_at(fake_server, min(stored + concurrency, ROWS))
    assert len(fake_server.bodies) == ROWS


@pytest.mark.parametrize("bad", [0, 3, ROWS - 1])
def test_a_row_that_fails_alone_gives_its_place_back(fake_server: FakeServer, bad: int) -> None:
    """Once it is known that the failure is the row's and not the server's."""

    def reply(body: dict) -> Reply:
        return fail(400, "too long") if body["messages"][-1]["content"] == f"row {bad}" else chat("good")

    fake_server.reply = reply
    seen = []
    for completion in asked(fake_server, 4):
        answered = sum(done.text is not None for done in seen)
        assert len(fake_server.bodies) <= answered + 4 + 1
        seen.append(completion)
    assert sorted(completion.key for completion in seen) == list(range(ROWS))
    assert [completion.key for completion in seen if completion.text is None] == [bad]
    assert len(fake_server.bodies) == ROWS


def test_a_source_of_rows_that_breaks_costs_no_answer_that_came(fake_server: FakeServer) -> None:
    def broken() -> Iterator[Prompt]:
        yield Prompt(0, system="Judge.", user="row 0")
        raise ZeroDivisionError

    answers = asked(fake_server, 1, broken())
    assert next(answers).key == 0
    with pytest.raises(ZeroDivisionError):
        next(answers)


def test_all_places_are_used_while_answers_are_taken_at_once(fake_server: FakeServer) -> None:
    """Every request waits until as many as allowed are there: a place that were left empty would cost 2 seconds."""
    waited = []

    def reply(body: dict) -> Reply:
        began, group = time.monotonic(), (len(fake_server.bodies) - 1) // 4 + 1
        while len(fake_server.bodies) < min(4 * group, ROWS) and time.monotonic() < began + 2:
            time.sleep(0.001)
        waited.append(time.monotonic() - began)
        return chat("good")

    fake_server.reply = reply
    assert len(list(asked(fake_server, 4))) == ROWS
    assert max(waited) < 2 and fake_server.most_in_flight == 4

"""Whoever waits for an engine process that is gone is told so."""

from __future__ import annotations

import queue
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from vllm_relational.vllm_ext.process import liveness

exceptions = pytest.importorskip("vllm.v1.engine.exceptions")


class Client:
    """As ``SyncMPClient`` of vLLM."""

    def __init__(self) -> None:
        self.outputs_queue: queue.SimpleQueue = queue.SimpleQueue()
        self.resources = SimpleNamespace(engine_dead=False)
        self.utility_results: dict[int, Future] = {}


def watched(engine_core: object) -> SimpleNamespace:
    return SimpleNamespace(llm_engine=SimpleNamespace(engine_core=engine_core))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(liveness, "POLL_SECONDS", 0.001)


def test_the_death_comes_out_of_the_queue_and_of_calls_that_wait():
    core, waiting, answered = Client(), Future(), Future()
    answered.set_result(7)
    core.utility_results = {1: waiting, 2: answered}
    liveness.watch_engine(watched(core))
    core.resources.engine_dead = True
    assert isinstance(core.outputs_queue.get(timeout=30), exceptions.EngineDeadError)
    assert isinstance(waiting.exception(timeout=30), exceptions.EngineDeadError) and answered.result() == 7


def test_an_engine_in_this_process_is_not_watched(monkeypatch):
    monkeypatch.setattr(liveness.threading, "Thread", None)  # making one would raise
    liveness.watch_engine(watched(SimpleNamespace()))

"""The calls into vLLM's engine that its documented interface does not have: check, step, abort, stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_relational.vllm_ext.process.shared_memory import mapped_by, processes_of, remove_left_over


def dead_engine_error() -> type[Exception]:
    """What vLLM raises when its engine process is gone."""
    from vllm.v1.engine.exceptions import EngineDeadError

    error: type[Exception] = EngineDeadError
    return error


def step(llm: Any) -> list[Any]:
    """Wait for the next outputs of the engine; those with ``finished`` are whole answers."""
    outputs: list[Any] = llm.llm_engine.step()
    return outputs


def check_parameters(llm: Any, params: Any) -> None:
    """Raise what vLLM would raise for every request with these sampling parameters: it compiles their constraint."""
    config = llm.llm_engine.vllm_config
    constraints = config.structured_outputs_config
    params.clone().verify(config.model_config, config.speculative_config, constraints, llm.get_tokenizer())


def external_id(internal_id: str) -> str:
    """The id that outputs carry: vLLM adds a random suffix to the one it was given."""
    return internal_id.partition("-")[0]


def abort(llm: Any, internal_ids: Sequence[str]) -> None:
    """Drop requests; returns once the engine is between two steps.

    An engine stopped in the middle of a step reports a crash. The question asked last has no effect; the engine
    answers it between steps, after everything sent before.
    """
    llm.llm_engine.abort_request(list(internal_ids), internal=True)
    llm.llm_engine.engine_core.get_supported_tasks()


def shutdown(llm: Any, timeout_s: float | None = None) -> None:
    """Stop the engine process, and remove the shared memory that its workers leave.

    timeout_s: for its last work, before it is killed; None for vLLM's own 5 seconds.
    """
    processes = processes_of(llm)
    names = mapped_by(processes)
    llm.llm_engine.engine_core.shutdown(timeout=timeout_s)
    remove_left_over(names, processes)

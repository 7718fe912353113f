"""The engine's process, seen from the one that asks."""

from __future__ import annotations

from vllm_relational.vllm_ext.contract.target import Target, target

PROCESS: tuple[Target, ...] = (
    target(
        "vllm.entrypoints.llm",
        "LLM",
        "process.live_engine process.liveness process.facts process.shared_memory",
        "the offline engine",
        attributes="llm_engine",
        get_tokenizer="",
    ),
    target(
        "vllm.v1.engine.llm_engine",
        "LLMEngine",
        "process.live_engine process.liveness process.facts process.shared_memory",
        "steps, and requests that are dropped",
        attributes="engine_core vllm_config",
        step="",
        abort_request="request_ids, internal=",
    ),
    target(
        "vllm.v1.engine.core_client",
        "EngineCoreClient",
        "process.live_engine",
        "stops the engine; a question that is answered between two steps",
        shutdown="timeout=",
        get_supported_tasks="",
    ),
    target(
        "vllm.v1.engine.core_client",
        "MPClient",
        "process.liveness process.shared_memory",
        "an engine in a process of its own",
        attributes="resources utility_results",
    ),
    target(
        "vllm.v1.engine.core_client",
        "SyncMPClient",
        "process.liveness",
        "outputs that a caller waits for",
        attributes="outputs_queue",
    ),
    target(
        "vllm.v1.engine.core_client",
        "BackgroundResources",
        "process.liveness process.shared_memory",
        "whether the engine's process is dead",
        attributes="engine_dead engine_manager",
    ),
    target(
        "vllm.v1.engine.utils",
        "CoreEngineProcManager",
        "process.shared_memory",
        "the engine's processes",
        attributes="processes",
    ),
    target(
        "vllm.v1.engine.exceptions",
        "EngineDeadError",
        "process.live_engine process.liveness",
        "what a caller gets when the process is gone",
    ),
    target(
        "vllm.sampling_params",
        "SamplingParams",
        "process.live_engine",
        "checked once for all rows",
        clone="",
        verify="model_config, speculative_config, structured_outputs_config, tokenizer",
    ),
)

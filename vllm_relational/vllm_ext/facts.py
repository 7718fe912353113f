"""What a started vLLM engine says of itself."""

from __future__ import annotations

from typing import Any

from vllm_relational.records import EngineInfo


def engine_info(llm: Any, model: str) -> EngineInfo:
    """Context length, KV cache size and block size of a ``vllm.LLM``, from its resolved configuration."""
    config = llm.llm_engine.vllm_config
    cache = config.cache_config
    blocks = (cache.num_gpu_blocks or 1) - 1  # vLLM sets block 0 aside
    return EngineInfo(
        model=model,
        max_model_len=config.model_config.max_model_len,
        kv_cache_tokens=blocks * cache.block_size or None,
        block_size=cache.block_size,
        prefix_caching=bool(cache.enable_prefix_caching),
    )


def max_num_seqs(llm: Any) -> int:
    """How many requests the scheduler runs at a time."""
    return int(llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)


def is_cpu() -> bool:
    """Whether vLLM will run on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())

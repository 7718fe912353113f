"""What a started vLLM engine says of itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vllm_relational.records import EngineInfo
from vllm_relational.vllm_ext.settings import ATTENTION_BACKEND, SCHEDULER, read_attention, read_settings


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
        **scheduler_facts(config.scheduler_config.scheduler_cls, config.additional_config),
        fingerprint="; ".join([_fingerprint(config.model_config, cache.cache_dtype), *_attention(config)]),
    )


def scheduler_facts(scheduler_cls: Any, additional_config: Any) -> dict[str, Any]:
    """``eviction`` of ``EngineInfo`` as asked for; a model that does not allow it is not noticed."""
    name = scheduler_cls if isinstance(scheduler_cls, str) else getattr(scheduler_cls, "__name__", "")
    if name != SCHEDULER and name != SCHEDULER.rpartition(".")[2]:
        return {}
    return {"eviction": read_settings(additional_config).eviction}


def _attention(config: Any) -> list[str]:
    """The settings of sparse attention, on which answers depend; nothing for vLLM's own, which keeps answers known."""
    backend = config.attention_config.backend
    if getattr(backend, "name", backend) != ATTENTION_BACKEND:
        return []
    return [str(read_attention(config.additional_config))]


def _fingerprint(model: Any, cache_dtype: Any) -> str:
    """What tells this model from others of its name: precision, quantisation, revision, overrides, files of a folder.

    cache_dtype: precision of the KV cache, which changes answers too.
    """
    facts = [str(model.dtype), str(model.quantization), str(model.revision), _files(Path(model.model))]
    return "; ".join([*facts, str(cache_dtype), repr(model.hf_overrides)])


def _files(folder: Path) -> str:
    """Digest of names, sizes and times of a model's files: to read weights whole would cost minutes."""
    if not folder.is_dir():
        return ""
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def max_num_seqs(llm: Any) -> int:
    """How many requests the scheduler runs at a time."""
    return int(llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)


def is_cpu() -> bool:
    """Whether vLLM will run on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())

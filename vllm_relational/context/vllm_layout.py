"""What the pages of a vLLM engine mean, as plain values: engines of equal values may read each other's pages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_relational.context.fingerprint import LENGTH_DEPENDENT_ROPE, fingerprint_of_folder, rope_kinds
from vllm_relational.records import RelationalError
from vllm_relational.sparse.settings import read_dipr

STABLE_HASHES = ("sha256", "sha256_cbor")
"""vLLM seeds these alike in every process, or all by PYTHONHASHSEED; others at random."""
OUR_BACKEND = "CUSTOM"
WEIGHTS = "weights"
"""Setting of the connector: a name for weights that are in no file."""


def facts_of(vllm_config: Any, groups: Sequence[Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """All that keys and values of a page depend on beside its tokens.

    groups: ``KVCacheConfig.kv_cache_groups``. extra: the settings of the connector. Raises ``RelationalError`` for
    engines whose pages mean something in this process only.
    """
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    if vllm_config.lora_config is not None:
        raise RelationalError("contexts do not tell one LoRA adapter's weights from another's: leave one of both out")
    return {
        "weights": _weights(vllm_config, extra),
        "dtype": str(model.dtype),
        "cache_dtype": str(cache.cache_dtype),
        "layout": str(cache.kv_cache_layout),
        "groups": [_group(group) for group in groups],
        "attention": _attention(vllm_config),
        "parallel": [
            parallel.tensor_parallel_size,
            parallel.pipeline_parallel_size,
            parallel.decode_context_parallel_size,
            parallel.prefill_context_parallel_size,
        ],
        "length": _length(model),
        "hashes": _hashes(cache.prefix_caching_hash_algo),
        "vllm": _version(),
    }


def _weights(vllm_config: Any, extra: Mapping[str, Any]) -> str:
    model = vllm_config.model_config
    if extra.get(WEIGHTS):
        return f"named {extra[WEIGHTS]}"
    if vllm_config.load_config.load_format == "dummy":
        raise RelationalError(
            f"contexts of dummy weights cannot be told from those of others: name the weights ({WEIGHTS} in the "
            "connector's settings), or load a model"
        )
    more = {"quantization": str(model.quantization), "overrides": repr(model.hf_overrides)}
    return fingerprint_of_folder(folder_of(model.model, model.revision), str(model.dtype), **more)


def folder_of(model: str, revision: str | None) -> Path:
    """Where the files of a loaded model are. Raises ``RelationalError`` where they are in no folder here."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception as error:  # the hub raises errors of many kinds
        raise RelationalError(f"contexts need the files of {model} in a folder: give its path ({error})") from error


def _group(group: Any) -> dict[str, Any]:
    spec = group.kv_cache_spec
    return {
        "kind": type(spec).__name__,
        "tokens": spec.block_size,
        "page_bytes": spec.page_size_bytes,
        "layers": list(group.layer_names),
    }


def _attention(vllm_config: Any) -> list[str]:
    """The backend, and of ours the settings: its pages hold an index, and its answers go into later pages."""
    backend = vllm_config.attention_config.backend
    name = str(getattr(backend, "name", backend))
    if name != OUR_BACKEND:
        return [name]
    given = vllm_config.additional_config
    ours = given.get("relational", {}) if isinstance(given, Mapping) else {}
    return [name, str(read_dipr(ours.get("dipr", {})))]


def _length(model: Any) -> int | None:
    """The longest context that the engine allows, where keys depend on it."""
    settings = (getattr(model.hf_text_config, name, None) for name in ("rope_parameters", "rope_scaling"))
    depends = not set(LENGTH_DEPENDENT_ROPE).isdisjoint(rope_kinds(*settings))  # as vLLM makes them
    return int(model.max_model_len) if depends else None


def _hashes(algorithm: str) -> list[str | None]:
    """How blocks get their names, and the seed. Raises ``RelationalError`` where each process has its own."""
    seed = os.environ.get("PYTHONHASHSEED")
    if algorithm not in STABLE_HASHES and seed is None:
        raise RelationalError(
            f"blocks named by {algorithm} have other names in every process: use prefix_caching_hash_algo='sha256' "
            "(vLLM's default), or set PYTHONHASHSEED to the same number for all engines"
        )
    return [algorithm, seed]


def _version() -> str:
    from vllm import __version__

    return str(__version__)

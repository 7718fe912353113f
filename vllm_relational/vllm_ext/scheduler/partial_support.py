"""Where token-exact reuse may work: one group of plain full attention, and runners that copy blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode

OUR_CONNECTORS = ("ContextConnector", "ContextOffloadingConnector")
"""Of stored contexts. vLLM offers a connector whole blocks: where it loads more than a part of a block saves, vLLM
drops that part, else it loads nothing."""


def unsupported(scheduler: Any) -> str | None:
    """Why this scheduler keeps whole-block reuse, in words for the log; ``None`` when it need not."""
    return next(_reasons(scheduler), None)


def _reasons(scheduler: Any) -> Iterator[str]:
    yield from _reasons_of_platform()
    yield from _reasons_of_model(scheduler)
    yield from _reasons_of_configuration(scheduler)
    yield from _reasons_of_cache(scheduler)


def _reasons_of_platform() -> Iterator[str]:
    # Other platforms bring runners of their own, which may not copy blocks.
    if not (current_platform.is_cuda_alike() or current_platform.is_cpu()):
        yield f"the platform {current_platform.device_name} may not copy blocks"


def _reasons_of_model(scheduler: Any) -> Iterator[str]:
    model = scheduler.vllm_config.model_config
    if model.runner_type != "generate":
        yield f"the model is run for {model.runner_type}, not to generate"
    if scheduler.is_encoder_decoder:
        yield "the model is an encoder and a decoder"
    if model.is_diffusion:
        yield "the model is a diffusion model"


def _reasons_of_configuration(scheduler: Any) -> Iterator[str]:
    parallel = scheduler.vllm_config.parallel_config
    if not scheduler.cache_config.enable_prefix_caching:
        yield "prefix caching is switched off"
    if scheduler.connector is not None and type(scheduler.connector).__name__ not in OUR_CONNECTORS:
        yield f"the KV connector {type(scheduler.connector).__name__} is at work, and it was tried with our own only"
    if scheduler.vllm_config.speculative_config is not None or scheduler.num_lookahead_tokens:
        yield "speculative decoding is at work"
    if parallel.pipeline_parallel_size > 1:
        yield "pipeline parallelism is at work"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism is at work"


def _reasons_of_cache(scheduler: Any) -> Iterator[str]:
    coordinator = scheduler.kv_cache_manager.coordinator
    if type(coordinator) is not UnitaryKVCacheCoordinator:
        yield "the model has several kinds of attention, or its cache is not one of whole blocks"
        return
    manager = coordinator.single_type_managers[0]
    spec = manager.kv_cache_spec
    if type(manager) is not FullAttentionManager or type(spec) is not FullAttentionSpec:
        yield f"the model's attention is {type(spec).__name__}, not full attention"
        return
    if spec.non_causal:
        yield "a layer attends to later tokens"
    if spec.tokens_per_state != 1 or scheduler.hash_block_size != manager.block_size:
        yield "blocks are hashed or stored in other units than tokens"
    if spec.page_size_padded is not None:
        yield "blocks have a padded tail, which vLLM does not copy"
    if spec.kv_quant_mode not in (KVQuantMode.NONE, KVQuantMode.FP8_PER_TENSOR):
        yield f"it was not tried with {spec.kv_quant_mode.name} keys and values"

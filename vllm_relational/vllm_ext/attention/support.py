"""Where DIPR attention may work: models whose layers are all plain full attention over unquantised keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm.v1.attention.backend import AttentionType

from vllm_relational.sparse.pages import GROUPS, PageLayout

MAX_HEADS = 16
"""Query heads of a KV head: as many columns as the kernels' tiles of scores have."""
PLAIN_CACHES = ("auto", "float16", "bfloat16", "float32")


def unsupported_model(vllm_config: Any) -> str | None:
    """Why all layers of this model keep vLLM's own attention, in words for the log; ``None`` when they need not."""
    return next(_reasons_of_model(vllm_config), None)


def unsupported_layer(impl: Any) -> str | None:
    """Why this layer of a supported model is attended to densely; ``None`` when it need not."""
    return next(_reasons_of_layer(impl), None)


def no_index(head_size: int, block_size: int = GROUPS[-1]) -> str | None:
    """Why there is no index for pages of this shape; ``None`` where there is."""
    try:
        PageLayout(block_size, head_size)
    except ValueError as error:
        return str(error)
    return None


def _reasons_of_model(vllm_config: Any) -> Iterator[str]:
    yield from _reasons_of_kind(vllm_config.model_config)
    yield from _reasons_of_shape(vllm_config)
    yield from _reasons_of_windows(vllm_config.model_config.hf_text_config)
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism is at work"
    if parallel.use_ubatching:
        yield "batches are cut in two (dual batch overlap)"


def _reasons_of_kind(model: Any) -> Iterator[str]:
    if model.runner_type != "generate":
        yield f"the model is run for {model.runner_type}, not to generate"
    if model.is_encoder_decoder:
        yield "the model is an encoder and a decoder"
    if model.is_hybrid or model.is_attention_free:
        yield "the model has layers that are not attention"
    if model.use_mla:
        yield "the model has latent attention (MLA)"
    if model.is_diffusion or model.is_mm_prefix_lm:
        yield "the model attends to later tokens"


def _reasons_of_shape(vllm_config: Any) -> Iterator[str]:
    cache, head_size = vllm_config.cache_config, vllm_config.model_config.get_head_size()
    if cache.cache_dtype not in PLAIN_CACHES:
        yield f"keys and values are stored as {cache.cache_dtype}"
    reason = no_index(head_size, cache.block_size or GROUPS[-1])
    if reason is not None:
        yield reason


def _reasons_of_windows(text_config: Any) -> Iterator[str]:
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if getattr(text_config, "sliding_window", None) or kinds - {"full_attention"}:
        yield "some layers attend to a sliding window or a chunk only"
    if getattr(text_config, "attention_chunk_size", None):
        yield "some layers attend to a chunk only"
    if getattr(text_config, "attn_logit_softcapping", None):
        yield "the model caps its scores (soft cap)"


def _reasons_of_layer(impl: Any) -> Iterator[str]:
    if impl.attn_type != AttentionType.DECODER:
        yield f"it is {impl.attn_type}, not decoder attention"
    if impl.num_heads > MAX_HEADS * impl.num_kv_heads:
        yield f"it has more than {MAX_HEADS} query heads per KV head"
    if impl.alibi_slopes is not None:
        yield "it adds a bias by distance (ALiBi)"
    if impl.sliding_window not in (-1, (-1, -1)):
        yield "it attends to a sliding window"
    if impl.logits_soft_cap:
        yield "it caps its scores (soft cap)"
    if impl.sinks is not None:
        yield "it has attention sinks of its own"
    if impl.kv_sharing_target_layer_name is not None:
        yield "it reads the keys of another layer"

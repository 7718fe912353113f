"""DIPR attention over one of vLLM's own backends: what is the same for FlashAttention, Triton and the CPU.

``DiprBackend``, ``DiprBuilder`` and ``DiprImpl`` are mixed in before the parts of a vLLM 0.32.0 backend. The KV cache
holds the index beside the keys and values of every block and KV head (``sparse/pages.py``), accounted in vLLM's block
count; a view of it without the index is what the backend below reads and writes.
"""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from vllm.config import get_current_vllm_config, get_current_vllm_config_or_none
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode
from vllm.v1.kv_cache_layout import KVCacheLayout

from vllm_relational.sparse.decoder import DecodeShape, SparseDecoder
from vllm_relational.sparse.optimizer import Costs, costs_on
from vllm_relational.sparse.pages import GROUPS, PageLayout, Pages
from vllm_relational.sparse.settings import DiprSettings
from vllm_relational.vllm_ext.attention.batch_rows import HostBatch, Kind, Recompute, Rows, RowSplitter, may_decode
from vllm_relational.vllm_ext.attention.prompt_lengths import prompt_lengths
from vllm_relational.vllm_ext.attention.support import no_index, unsupported_layer
from vllm_relational.vllm_ext.settings import read_attention

logger = init_logger("vllm.relational.attention")  # below vLLM's logger: its level and format
UNKNOWN_DEVICE = (
    "DIPR attention was not measured on %s: it is chosen by the costs on %s. The dipr settings dense_below and method "
    "overrule that"
)


class DiprBackend:
    """Asks vLLM for pages with room for the index, each one contiguous chunk."""

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """``spec`` of a layer with the index in it; others as they are."""
        plain = type(spec) is FullAttentionSpec and spec.kv_quant_mode == KVQuantMode.NONE
        if not plain or spec.state_content_bytes is not None or spec.sliding_window or spec.attention_chunk_size:
            return spec
        if spec.head_size != spec.head_size_v or no_index(spec.head_size, spec.block_size):
            return spec
        layout = PageLayout(spec.block_size, spec.head_size, spec.dtype)
        return replace(spec, state_content_bytes=layout.token_bytes)

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """Where nobody names a size: the one that suits the engine's settings."""
        preferred: int = super().get_preferred_block_size(default_block_size)  # type: ignore[misc]
        vllm_config = get_current_vllm_config_or_none()
        settings = read_attention(vllm_config.additional_config if vllm_config is not None else None)
        return max(settings.block_size, preferred)


class DiprBuilder:
    """Adds ``dipr``, the ``Rows`` of the batch, to vLLM's metadata."""

    # Another group's metadata would come with the lengths of another builder, which its captured graphs do not read.
    supports_update_block_table = False

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)  # type: ignore[call-arg]
        settings = read_attention(vllm_config.additional_config)
        self.splitter = RowSplitter(
            _pays_from(vllm_config, settings, kv_cache_spec, device), largest_batch(vllm_config), device
        )
        self._engine = vllm_config
        # Drafts are verified several at a time, densely, and look like an answer that is computed again.
        self._may_recompute = vllm_config.speculative_config is None
        # For ``cuda_graphs.py``: of the last batch, None unless known for certain, forgotten with its step,
        self.kind: Kind | None = None
        # of batches that graphs are captured for, and whether nobody reads the rows of dense ones.
        self.capture_as: Kind | None = None
        self.dense_has_no_rows = False
        self.has_rows = True

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """As vLLM, and the rows."""
        self.kind = None
        metadata: Any = super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        common, dense_below = common_attn_metadata, self.splitter.dense_below(common_attn_metadata.num_reqs)
        if common.max_seq_len < dense_below:
            self.has_rows = not self.dense_has_no_rows
            metadata.dipr = self._rows(metadata, some=False) if self.has_rows else None
            self.kind = Kind.DENSE
            return metadata
        batch, some = _host_batch(self._engine, common), may_decode(common.query_start_loc_cpu, common.max_query_len)
        rows = metadata.dipr = self._rows(metadata, some, batch.single_token_prompts)
        if self._may_recompute and common.max_query_len > 1:
            rows.recompute = batch.recompute(dense_below, metadata.seq_lens.device)
        elif self._may_recompute:  # without drafts, the host knows all lengths
            rows.every = batch.is_sparse(dense_below)
        self.kind = rows.kind
        return metadata

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        """As vLLM; every later batch may have sparse requests, unless no context can be long enough
        or another graph is there for these."""
        metadata: Any = super().build_for_cudagraph_capture(common_attn_metadata)  # type: ignore[misc]
        some = self.capture_as != Kind.DENSE and self.ever_sparse(common_attn_metadata.num_reqs)
        metadata.dipr, self.kind = self._rows(metadata, some), None
        metadata.dipr.every = some and self.capture_as == Kind.SPARSE
        return metadata

    def ever_sparse(self, num_reqs: int) -> bool:
        """Whether contexts can be long enough, beside so many requests."""
        longest: int = self._engine.model_config.max_model_len
        return longest >= self.splitter.dense_below(num_reqs)

    def update_draft_decode_metadata(self, metadata: Any) -> None:
        """As vLLM, and the same for the metadata of dense requests. Writes only where metadata points already."""
        super().update_draft_decode_metadata(metadata)  # type: ignore[misc]
        if getattr(metadata, "dipr", None) is not None:
            metadata.dipr = self._rows(metadata, metadata.dipr.some)

    def _rows(self, metadata: Any, some: bool, prompts: torch.Tensor | None = None) -> Rows:
        self.has_rows = True
        dense_lens, sparse_lens = self.splitter.split(metadata.query_start_loc, metadata.seq_lens, prompts)
        dense = copy.copy(metadata)
        dense.seq_lens = dense_lens
        self.reschedule(dense)
        return Rows(dense, sparse_lens, some)

    def reschedule(self, metadata: Any) -> None:
        """Bring what a backend derived from the lengths in line with those of dense requests."""


class DiprImpl:
    """Attention of a layer: dense by the backend below, sparse decode by ``SparseDecoder``."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vllm_config = get_current_vllm_config()
        self.settings = read_attention(vllm_config.additional_config)
        reason = unsupported_layer(self)
        if reason is not None:
            logger.warning_once("DIPR attention leaves a layer dense: %s", reason)
        shape = DecodeShape(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            scale=self.scale,
            max_reqs=largest_batch(vllm_config),
            max_seq_len=vllm_config.model_config.max_model_len,
            group=_expected_group(vllm_config.cache_config, self.settings),
        )
        self._make_decoder = partial(_shared_decoder, vllm_config, self.settings)
        self.decoder = None if reason is not None else self._make_decoder(shape)
        self._pages: Pages | None = None
        self._is_sparse: bool | None = None

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As vLLM; where the cache has an index, single query tokens of long contexts are attended to sparsely."""
        scales = (output_scale, output_block_scale)
        if attn_metadata is None or not self._has_index(kv_cache):
            return self.below(layer, query, key, value, kv_cache, attn_metadata, output, *scales)
        pages, rows = self.pages(kv_cache), getattr(attn_metadata, "dipr", None)
        if rows is None or rows.kind == Kind.DENSE or not self._is_sparse_layer(layer):
            return self.dense(layer, query, key, value, pages, attn_metadata, output, *scales)
        if not rows.every:
            self.dense(layer, query, key, value, pages, rows.dense, output, *scales)
        assert self.decoder is not None
        block_table, starts = attn_metadata.block_table, attn_metadata.query_start_loc
        if rows.some:
            self.decoder.decode(query, pages, block_table, rows.sparse_lens, starts, output)
        if rows.recompute is not None:
            self._recompute(query, pages, block_table, rows.recompute, output)
        return output

    def _recompute(
        self, query: torch.Tensor, pages: Pages, block_table: torch.Tensor, recompute: Recompute, output: Any
    ) -> None:
        assert self.decoder is not None
        for requests, lens, places in recompute.pieces(self.decoder.max_requests(recompute.longest)):
            self.decoder.decode(query, pages, block_table[requests], lens, places, output)

    def dense(self, layer: Any, query: Any, key: Any, value: Any, pages: Pages, *others: Any) -> torch.Tensor:
        """Attention to all tokens; others: of ``forward``, from the metadata on."""
        return self.below(layer, query, key, value, pages.key_value, *others)

    def below(self, *arguments: Any) -> torch.Tensor:
        """``forward`` of the backend below."""
        result: torch.Tensor = super().forward(*arguments)  # type: ignore[misc]
        return result

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """As vLLM, which calls it before ``forward``: ``forward_includes_kv_cache_update`` is False. Where the cache
        has an index, groups whose last token was written are quantised."""
        if self._has_index(kv_cache):
            self.write(self.pages(kv_cache), key, value, slot_mapping)
        else:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)  # type: ignore[misc]

    def write(self, pages: Pages, key: torch.Tensor, value: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        """``codec.write`` by its Triton kernel."""
        from vllm_relational.sparse.kernels.write import write

        write(pages, key, value, slot_mapping)

    def pages(self, kv_cache: torch.Tensor) -> Pages:
        """The parts of the cache of this layer; made anew when vLLM binds another."""
        if self._pages is None or self._pages.cache is not kv_cache:
            layout = PageLayout(kv_cache.shape[2], self.head_size, kv_cache.dtype)
            self._pages = layout.views(kv_cache)
            if self.decoder is not None and self.decoder.shape.group != layout.group:
                logger.warning_once("DIPR attention: blocks of %d tokens were not expected", layout.block_size)
                self.decoder = self._make_decoder(replace(self.decoder.shape, group=layout.group))
        return self._pages

    def _has_index(self, kv_cache: torch.Tensor) -> bool:
        """False for a layer whose spec has no index, and while vLLM measures memory without a cache."""
        return kv_cache.ndim == 4 and kv_cache.shape[3] != 2 * self.head_size

    def _is_sparse_layer(self, layer: Any) -> bool:
        if self._is_sparse is None:
            deep = layer_index(layer.layer_name) >= self.settings.dense_layers
            self._is_sparse = deep and self.decoder is not None
        return self._is_sparse

    # vLLM's fusions of rotary embedding and cache update write no index.
    def fused_qk_norm_rope_kvcache_supported(self) -> bool:
        return False

    def fused_qk_norm_mrope_kvcache_supported(self) -> bool:
        return False

    def fused_rope_kvcache_supported(self) -> bool:
        return False

    def fused_output_quant_supported(self, quant_key: Any) -> bool:
        return False


def _host_batch(vllm_config: Any, common: Any) -> HostBatch:
    """Of vLLM's ``CommonAttentionMetadata``."""
    seq_lens, prompts = common.seq_lens_cpu_upper_bound, prompt_lengths(vllm_config, common)
    return HostBatch(common.query_start_loc_cpu, common.is_prefilling, seq_lens, prompts)


def _pays_from(vllm_config: Any, settings: Any, spec: Any, device: torch.device) -> Callable[[int], int]:
    """Requests of a batch -> the length from which on they are sparse; costs are known of a GPU only."""
    if torch.device(device).type == "cpu" or no_index(spec.head_size, spec.block_size):
        return lambda num_reqs: settings.dense_below
    layout = PageLayout(spec.block_size, spec.head_size, spec.dtype)
    return costs_of(vllm_config, settings, layout, spec.num_kv_heads, device).pays_from


def costs_of(vllm_config: Any, settings: Any, layout: PageLayout, num_kv_heads: int, device: torch.device) -> Costs:
    """What the methods cost this engine on its GPU or, where that was not measured, on the nearest one that was: the
    log then says so, once."""
    name = torch.cuda.get_device_name(device)
    table, nearest = costs_on(name)
    if nearest is not None:
        logger.warning_once(UNKNOWN_DEVICE, name, nearest)
    longest, reqs = vllm_config.model_config.max_model_len, largest_batch(vllm_config)
    return Costs(settings, layout, num_kv_heads, longest, reqs, table)


def _expected_group(cache_config: Any, settings: DiprSettings) -> int:
    """Tokens of a group of the index: vLLM chooses the size of blocks after it made the layers, and asks us for it
    (``get_preferred_block_size``)."""
    size = cache_config.block_size if cache_config.user_specified_block_size else settings.block_size
    return PageLayout(size, GROUPS[-1]).group


def largest_batch(vllm_config: Any) -> int:
    """Requests a step, rows that only pad a CUDA graph included."""
    largest_graph = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    return max(int(vllm_config.scheduler_config.max_num_seqs), largest_graph)


def layer_index(name: str) -> int:
    """``model.layers.12.self_attn.attn`` -> 12; 0 for a name without a number."""
    found = re.search(r"\.(\d+)(?:\.|$)", name)
    return int(found[1]) if found else 0


_decoders: weakref.WeakValueDictionary[Any, SparseDecoder] = weakref.WeakValueDictionary()


def decoders() -> list[SparseDecoder]:
    """Those of the engines that live in this process."""
    return list(_decoders.values())


def _shared_decoder(vllm_config: Any, settings: Any, shape: DecodeShape) -> SparseDecoder:
    """One for all layers of an engine that have the same shape: they run one after another.

    Made with the layers, so that its memory is taken before vLLM measures what is left for the KV cache.
    """
    key = (id(vllm_config), settings, shape)
    decoder = _decoders.get(key)
    if decoder is None:
        device = vllm_config.device_config.device
        decoder = _decoders[key] = SparseDecoder(_with_method(vllm_config, settings, shape, device), shape, device)
    return decoder


def _with_method(vllm_config: Any, settings: Any, shape: DecodeShape, device: torch.device) -> Any:
    """The settings with the sparse method of this engine in the place of ``auto``, where costs are known."""
    if torch.device(device).type == "cpu" or no_index(shape.head_size, shape.group):
        return settings
    layout = PageLayout(shape.group, shape.head_size, vllm_config.model_config.dtype)
    method = costs_of(vllm_config, settings, layout, shape.num_kv_heads, device).sparse
    logger.info_once("DIPR attention decodes long contexts by %s", method)
    return replace(settings, method=method)

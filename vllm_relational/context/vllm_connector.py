"""A KV connector that keeps full blocks of prompts on disk and finds them again: for vLLM on a CPU, which has no
offloading of its own.

vLLM asks the scheduler's side which blocks of a prompt are there, gives it blocks to load them into, and sends what is
to be loaded and stored along with a step to the worker's side. A request waits until its blocks are loaded; a block
that turns out to be missing or damaged is reported, and vLLM computes it and those behind it
(``kv_load_failure_policy="recompute"``). Until then no other request sees them: blocks get their place in the prefix
cache after they were loaded. What is stored is on the disk when its step ends.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec, group_kernel_blocks
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from vllm_relational.context.vllm_blocks import BlockStore
from vllm_relational.context.vllm_layout import facts_of
from vllm_relational.context.vllm_report import report_of
from vllm_relational.records import RelationalError

GROUP = bytes(4)
"""Behind the hash in a block's key: the number of its group of layers. There is one group."""
INSTRUCTIONS = ("amx_tile", "avx512f", "avx2", "asimd")
"""By which vLLM's CPU kernels choose the order of numbers in a page."""

Blocks = list[tuple[bytes, int]]
"""Key of each, and its number in the cache."""


@dataclass
class ContextStep(KVConnectorMetadata):
    """What the worker is to do in a step. load: by request, in the order of the prompt."""

    load: dict[str, Blocks] = field(default_factory=dict)
    store: Blocks = field(default_factory=list)


@dataclass
class _Known:
    """A request that vLLM asked about.

    first:     of the blocks found on disk. loading: the blocks that they are loaded into.
    stored:    how many of its blocks are on disk, as far as this request went.
    promised:  tokens that were to be loaded, ``lost`` of them could not be.
    asked:     how often blocks were promised: once, and once after each preemption.
    """

    request: Any
    first: int = 0
    loading: list[int] = field(default_factory=list)
    stored: int = 0
    promised: int = 0
    lost: int = 0
    asked: int = 0


class ContextConnector(KVConnectorBase_V1):
    """Both sides, as vLLM makes them. Settings: ``root``, the folder; ``max_bytes`` or None; ``weights``, see
    ``vllm_layout``. Raises ``RelationalError`` for models of several kinds of attention, and for several workers."""

    _cache_hit_source = CacheHitSource.DISK

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _check(vllm_config, kv_cache_config)
        extra, groups = vllm_config.kv_transfer_config.kv_connector_extra_config, kv_cache_config.kv_cache_groups
        self._spec: Any = groups[0].kv_cache_spec
        self._block_size: int = self._spec.block_size
        facts = {**facts_of(vllm_config, groups, extra), "processor": _processor()}
        self._store = BlockStore(extra["root"], facts, extra.get("max_bytes"))
        self._known: dict[str, _Known] = {}  # the scheduler's side, as the next
        self._loading: dict[str, set[bytes]] = {}
        self._step = ContextStep()
        self._pages: list[torch.Tensor] = []  # the worker's side, as the next: of each layer [num_blocks, bytes]
        self._done: set[str] = set()
        self._failed: set[int] = set()

    @property
    def requires_kv_delivery(self) -> bool:
        """What is not stored is computed again."""
        return False

    # ----------------------------------------------------------------------------------------------- the scheduler's
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens on disk behind those computed, in whole blocks, and whether any are. All of a prompt may be: vLLM then
        computes its last token again. None where another request is loading some of them: ask later, they will be in
        the prefix cache."""
        known = self._known.setdefault(request.request_id, _Known(request))
        if not may_share(request) or known.asked > request.num_preemptions:
            return 0, False
        known.first = num_computed_tokens // self._block_size
        keys = self._keys(request, known.first, request.num_tokens // self._block_size)
        found = list(itertools.takewhile(self._store.has, keys))
        if not all(loading.isdisjoint(found) for loading in self._loading.values()):
            return None, False
        return len(found) * self._block_size, bool(found)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Loads what was found into the blocks that vLLM chose. Called again, without tokens, when that is done."""
        known = self._known.setdefault(request.request_id, _Known(request))
        if num_external_tokens:
            first, last = known.first, known.first + num_external_tokens // self._block_size
            known.promised, known.lost, known.asked = num_external_tokens, 0, request.num_preemptions + 1
            known.loading = blocks.get_block_ids()[0][first:last]
            keys = self._keys(request, first, last)
            self._loading[request.request_id] = set(keys)
            self._step.load[request.request_id] = list(zip(keys, known.loading, strict=True))
        elif request.num_computed_tokens == 0:  # nothing could be loaded: it starts anew
            known.promised = known.lost = 0

    def build_connector_meta(self, scheduler_output: Any) -> ContextStep:
        """Adds the blocks of prompts that this step fills."""
        for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
            known = self._known.get(request_id)
            if known is not None and may_share(known.request):
                self._step.store += self._filled(known, num_tokens)
        step, self._step = self._step, ContextStep()
        return step

    def _filled(self, known: _Known, num_tokens: int) -> Iterator[tuple[bytes, int]]:
        """Blocks of the prompt that are full after so many tokens more, and not on disk."""
        request, first = known.request, known.stored
        end = min(request.num_computed_tokens + num_tokens, request.num_prompt_tokens) // self._block_size
        known.stored = max(first, end)
        if end > first:
            assert self._kv_cache_manager is not None
            numbers = self._kv_cache_manager.get_block_ids(request.request_id)[0][first:end]
            for key, number in zip(self._keys(request, first, end), numbers, strict=True):
                if not self._store.has(key):
                    yield key, number

    def update_connector_output(self, connector_output: Any) -> None:
        """Hears what was loaded, and which blocks could not be."""
        for request_id in connector_output.finished_recving or ():
            self._loading.pop(request_id, None)
        for known in self._known.values() if connector_output.invalid_block_ids else ():
            for place, number in enumerate(known.loading):
                if number in connector_output.invalid_block_ids:
                    known.lost = known.promised - place * self._block_size
                    known.stored = min(known.stored, known.first + place)
                    break

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Says how many tokens were loaded."""
        known = self._known.pop(request.request_id, None)
        self._loading.pop(request.request_id, None)
        return False, report_of(known.promised, known.lost) if known is not None else None

    def _keys(self, request: Any, first: int, last: int) -> list[bytes]:
        return [block_hash + GROUP for block_hash in request.block_hashes[first:last]]

    # -------------------------------------------------------------------------------------------------- the worker's
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Takes the pages of every layer as bytes, whole: with whatever the attention keeps behind the keys."""
        num_blocks, size = self._kv_cache_config.num_blocks, self._spec.page_size_bytes
        caches = [group_kernel_blocks(kv_caches[name], num_blocks) for name in sorted(kv_caches)]
        self._pages = [_pages_of(cache, num_blocks, size) for cache in caches]

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads, a request after the other; of each up to the first block that is not as it was stored. Those behind it
        are looked at too, so that what is damaged among them is stored again when it was computed."""
        step = self._get_connector_metadata()
        assert isinstance(step, ContextStep)
        read = torch.empty((len(self._pages), self._spec.page_size_bytes), dtype=torch.uint8)
        buffer = _bytes_of(read)
        for request_id, blocks in step.load.items():
            whole = True
            for key, number in blocks:
                if not self._store.read(key, buffer):
                    self._failed |= {number} if whole else set()
                    whole = False
                elif whole:
                    self._fill(number, read)
            self._store.touch(key for key, _ in blocks)
            self._done.add(request_id)

    def _fill(self, number: int, read: torch.Tensor) -> None:
        for pages, page in zip(self._pages, read, strict=True):
            pages[number].copy_(page)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: requests wait until all layers are there."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: blocks are stored when all layers are there."""

    def wait_for_save(self) -> None:
        """Stores the blocks that the step has filled."""
        step = self._get_connector_metadata()
        assert isinstance(step, ContextStep)
        self._store.write((key, self._block(number)) for key, number in step.store)

    def _block(self, number: int) -> memoryview:
        return _bytes_of(torch.cat([pages[number] for pages in self._pages]))

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose blocks were loaded, or were found not to be there."""
        done, self._done = self._done, set()
        return None, done

    def get_block_ids_with_load_errors(self) -> set[int]:
        """The first block of each request that could not be loaded."""
        failed, self._failed = self._failed, set()
        return failed


def may_share(request: Any) -> bool:
    """Text only: keys and values that depend on nothing but tokens and salt, which the names of blocks hold."""
    return not (
        request.mm_features
        or request.prompt_embeds is not None
        or request.prompt_token_ids is None
        or request.lora_request is not None
        or request.resumable
    )


def _check(vllm_config: Any, kv_cache_config: Any) -> None:
    if vllm_config.parallel_config.world_size > 1:
        raise RelationalError("contexts on a CPU are for one worker: leave parallelism out")
    kinds = [type(group.kv_cache_spec) for group in kv_cache_config.kv_cache_groups]
    if kinds != [FullAttentionSpec]:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise RelationalError(f"contexts on a CPU are for models of full attention; this one has {names}")


def _processor() -> list[str]:
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        known = []
    return [platform.machine(), *(each for each in INSTRUCTIONS if each in set(known))]


def _pages_of(cache: torch.Tensor, num_blocks: int, size: int) -> torch.Tensor:
    """``[num_blocks, size]`` bytes, a view: what a cache's own shape leaves out of a page too."""
    start, stride = cache.storage_offset() * cache.element_size(), cache.stride(0) * cache.element_size()
    everything = torch.tensor([], dtype=torch.uint8, device=cache.device)
    return everything.set_(cache.untyped_storage(), start, (num_blocks, size), (stride, 1))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    numbers: Any = tensor.numpy()
    return memoryview(numbers).cast("B")

"""Contexts on disk for vLLM on a GPU: a tier below the CPU memory of vLLM's own OffloadingConnector.

vLLM moves blocks between the GPU and its buffer in CPU memory; this tier moves them between there and the disk, on
threads of its own. vLLM's filesystem tier is told apart from others by the model's name; this one by all that pages
depend on (``vllm_layout``). It checks every block that it read, reads the blocks of a request on all threads, has a
limit, and what it has stored survives the machine.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager
from vllm.v1.kv_offload.tiering.fs.thread_pool import DualQueueThreadPool

from vllm_relational.context.vllm_blocks import BlockStore
from vllm_relational.context.vllm_layout import facts_of
from vllm_relational.context.vllm_report import report_of

THREADS = 16  # for reading, and as many for writing
FILE_TOKENS = 64  # of a file: fewer cost more calls, more leave more tokens behind the last whole file
MADV_POPULATE_WRITE = 23  # Linux 5.14
TASKS = 2 * THREADS  # that the blocks of one request are read in: threads that are done early take another


class ContextOffloadingConnector(OffloadingConnector):
    """vLLM's, which tells the tier what pages depend on, and a finished request how many tokens were loaded."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        if role == KVConnectorRole.SCHEDULER:  # the tier is on this side
            facts = facts_of(vllm_config, kv_cache_config.kv_cache_groups, extra)
            extra["secondary_tiers"] = [{**tier, "facts": facts} for tier in extra["secondary_tiers"]]
        if "block_size" not in extra:  # tokens of a file, in vLLM's words
            block = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
            extra.setdefault("blocks_per_chunk", max(1, FILE_TOKENS // block))
        super().__init__(vllm_config, role, kv_cache_config)
        self._tier: Any = None
        if role == KVConnectorRole.SCHEDULER:
            manager: Any = self.scheduler.manager
            (self._tier,) = (tier for tier in manager.secondary_tiers if isinstance(tier, ContextTier))
        self._promised: dict[str, int] = {}

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """As vLLM; but while blocks of this request come from the disk, the answer is to ask later, at once: vLLM's own
        looks all of them up again in every step, and the threads that read them would wait for Python's lock."""
        if self._tier.is_loading(request.request_id):
            return None, False
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """As vLLM, and remembers the tokens."""
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if num_external_tokens:
            self._promised[request.request_id] = num_external_tokens

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """As vLLM, and says how many tokens were loaded."""
        return self._reported(request, super().request_finished(request, block_ids))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """As vLLM, and says how many tokens were loaded."""
        return self._reported(request, super().request_finished_all_groups(request, block_ids))

    def _reported(self, request: Any, said: tuple[bool, dict[str, Any] | None]) -> tuple[bool, dict[str, Any] | None]:
        ours = report_of(self._promised.pop(request.request_id, 0), 0)
        return said[0], {**(said[1] or {}), **ours} if ours else said[1]


class ContextTier(SecondaryTierManager):
    """Blocks of one layout in a folder, see ``BlockStore``.

    root, max_bytes: of the store. facts: of the layout, from the connector.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        root: str,
        facts: dict[str, Any],
        max_bytes: int | None = None,
        backpressure_detector: Any = None,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        pages = {"page_bytes": self.block_size_bytes, "blocks": offloading_spec.blocks_per_chunk}
        self._store = BlockStore(root, {**facts, **pages}, max_bytes)
        self._memory = primary_kv_view.cast("B")
        self._pool = DualQueueThreadPool(THREADS, THREADS, thread_name_prefix="vllm_relational_contexts")
        self._names = _Names(self._store, tier_type)
        self._loads: dict[int, _Load] = {}  # by number of the job, until it is reported
        self._loading: Counter[str] = Counter()  # by request: jobs that were not reported
        self._asked: dict[str, _Asked] = {}  # by request
        self._num_rows = len(primary_kv_view)
        self._bytes: dict[int, int] = {}
        self._touching = threading.Thread(target=_touch_pages, args=(self._memory,), daemon=True)
        self._touching.start()

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        """Every block that is computed is kept."""
        return RequestOffloadingContext()

    def lookup(self, key: Any, req_context: Any) -> LookupResult:
        """As far as names say; found out on another thread, so that the first answer is to come again."""
        found = self._names.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found and self._fits(key, req_context.req_id) else LookupResult.MISS

    def _fits(self, key: Any, request_id: str) -> bool:
        """Whether CPU memory had room for the block so far, and for as many of the request.

        Without this a context larger than that memory would be loaded for ever: its last blocks take the place of its
        first ones, which then are looked for again.
        """
        asked = self._asked.setdefault(request_id, _Asked())
        if key in asked.refused or asked.hits >= self._num_rows:
            return False
        asked.hits += 1
        asked.now.add(key)
        return True

    def submit_store(self, job_metadata: Any) -> None:
        """On one thread, so that the blocks of a job are written in their order."""
        job, blocks = job_metadata.job_id, self._blocks(job_metadata)
        self._bytes[job] = sum(page.nbytes for _, page in blocks)
        self._pool.enqueue_store(job, 1, [functools.partial(self._store.write, blocks)])

    def submit_load(self, job_metadata: Any) -> None:
        """On all threads."""
        job, blocks = job_metadata.job_id, self._blocks(job_metadata)
        self._bytes[job] = sum(page.nbytes for _, page in blocks)
        load = self._loads[job] = _Load(self._store, job_metadata.req_context.req_id)
        self._loading[load.request_id] += 1
        self._asked.setdefault(load.request_id, _Asked()).now.difference_update(job_metadata.keys)
        parts = [blocks[place::TASKS] for place in range(min(TASKS, len(blocks)))]
        self._pool.enqueue_load(job, len(parts), [functools.partial(load.read, part) for part in parts])

    def _blocks(self, job_metadata: Any) -> list[tuple[Any, memoryview]]:
        size = self.block_size_bytes
        places = (int(chunk) * size for chunk in job_metadata.chunk_ids)
        return [(key, self._memory[start : start + size]) for key, start in zip(job_metadata.keys, places, strict=True)]

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """Of loads, which blocks are as they were stored; the others are not there from now on."""
        for job, success, seconds in self._pool.get_finished():
            load, size = self._loads.pop(job, None), self._bytes.pop(job, None)
            missing = self._finish(load) if load is not None else []
            yield JobResult(
                job_id=job,
                success=success and not missing,
                successful_keys=tuple(load.found) if load is not None and missing else None,
                transfer_time=seconds,
                transfer_bytes=size,
            )

    def _finish(self, load: _Load) -> list[Any]:
        """Keys that are not there."""
        self._loading[load.request_id] -= 1
        if not self._loading[load.request_id]:
            del self._loading[load.request_id]
        self._names.mark_miss(load.missing)
        return load.missing

    def is_loading(self, request_id: str) -> bool:
        """Whether blocks of a request are on their way from the disk."""
        return request_id in self._loading

    def drain_jobs(self) -> None:
        """Waits for all that was begun."""
        self._pool.wait_idle()

    def on_request_finished(self, req_context: Any) -> None:
        """Forgets what the request asked."""
        self._names.cleanup(req_context.req_id)
        self._asked.pop(req_context.req_id, None)

    def on_schedule_end(self, context: Any) -> None:
        """Asks what the step wanted to know, and learns which blocks found no room."""
        self._names.flush()
        for asked in self._asked.values():
            if asked.now:
                asked.refused |= asked.now
                asked.now = set()

    def shutdown(self) -> None:
        """What was handed over is stored first."""
        self._pool.wait_idle()
        self._names.shutdown()
        self._pool.shutdown(wait=True)
        self._touching.join()
        self._memory.release()


def _touch_pages(memory: memoryview) -> None:
    """Have the kernel map all of it, so that the first blocks that are read need not wait for it: the memory is shared,
    and was mapped by the worker's process only. Where a kernel cannot, they wait."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(memory.nbytes), MADV_POPULATE_WRITE)


@dataclass
class _Asked:
    """What a request heard. hits: how often a block was there. now: which were, in this step, and are not loaded yet.
    refused: blocks that are there, but found no room in CPU memory."""

    hits: int = 0
    now: set[Any] = field(default_factory=set)
    refused: set[Any] = field(default_factory=set)


class _Names(AsyncLookupManager):
    """Looks for files, on a thread of its own."""

    def __init__(self, store: BlockStore, tier_type: str) -> None:
        self._store = store
        super().__init__(tier_type=tier_type)

    def batch_lookup(self, keys: list[Any], req_context: Any) -> Iterable[bool]:
        """One answer a key."""
        return [self._store.has(key) for key in keys]


class _Load:
    """The blocks of a request, read by several threads. found, missing: their keys."""

    def __init__(self, store: BlockStore, request_id: str) -> None:
        self.request_id = request_id
        self._store, self._lock = store, threading.Lock()
        self.found: list[Any] = []
        self.missing: list[Any] = []

    def read(self, blocks: Collection[tuple[Any, memoryview]]) -> None:
        """Never raises: what cannot be read is missing."""
        found: list[Any] = []
        missing: list[Any] = []
        for key, page in blocks:
            (found if self._store.read(key, page) else missing).append(key)
        self._store.touch(found)
        with self._lock:
            self.found += found
            self.missing += missing

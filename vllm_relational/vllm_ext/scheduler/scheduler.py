"""vLLM's scheduler with a queue and a block pool that know the batch.

    vllm serve MODEL --scheduler-cls vllm_relational.vllm_ext.scheduler.RelationalScheduler
        --additional-config '{"relational": {"order": "prefix-tree", "eviction": "batch"}}'

Everything that vLLM does stays as it is: after its own ``__init__``, parts are put in the place of vLLM's, each behind
vLLM's own interface. A part that the settings do not ask for, or that the model does not allow, is not installed, and
stock vLLM's stays. What of vLLM they touch is in ``vllm_ext/contract``; under another version that
``VLLM_RELATIONAL_ALLOW_VLLM`` allows nothing is installed at all.
"""

from __future__ import annotations

from typing import Any

import vllm
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.metrics.stats import SchedulerStats

from vllm_relational import native
from vllm_relational.kv.future_use import FutureUse
from vllm_relational.kv.policy import sort_key
from vllm_relational.records import RelationalError
from vllm_relational.vllm_ext.attention.statistics import StatisticsReader
from vllm_relational.vllm_ext.contract.check import check_contract
from vllm_relational.vllm_ext.scheduler import metrics, partial_reuse
from vllm_relational.vllm_ext.scheduler.free_queue import NativeFreeQueue, PolicyFreeQueue, make_free_queue
from vllm_relational.vllm_ext.scheduler.waiting_queue import RelationalQueue
from vllm_relational.vllm_ext.settings import SchedulerSettings, read_settings
from vllm_relational.vllm_ext.version import check_version, is_supported

logger = init_logger("vllm.relational.scheduler")  # below vLLM's logger: its level and format


class SyncRelationalScheduler(Scheduler):
    """``RelationalScheduler`` for engines without asynchronous scheduling."""

    settings: SchedulerSettings
    free_queue: NativeFreeQueue | PolicyFreeQueue | None = None
    queue: RelationalQueue | None = None
    partial_reuse: partial_reuse.PartialReuse | None = None
    _future: FutureUse | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counts = metrics.Counts()
        self._attention = StatisticsReader()
        check_version(vllm.__version__)
        check_contract("scheduler", vllm.__version__)
        self.settings = read_settings(self.vllm_config.additional_config)
        if is_supported(vllm.__version__):
            self.install()
        else:
            logger.warning("vLLM %s is not known to vllm-relational: its stock scheduler runs", vllm.__version__)

    def install(self) -> None:
        """Put our parts in the place of vLLM's. The one place for it: further parts get a line here."""
        self._install_eviction()
        self._install_queue()
        if self.settings.token_exact:
            self.partial_reuse = partial_reuse.install(self)
        logger.info("%s: %s", type(self).__name__, self.settings)

    def _install_eviction(self) -> None:
        eviction = self.settings.eviction
        reads_queue = sort_key(eviction).reads_queue
        if reads_queue and self.policy is not SchedulingPolicy.FCFS:
            raise RelationalError(
                f"eviction {eviction} reads the order of the queue: leave vLLM's scheduling policy at fcfs"
            )
        if eviction == "lru" or not self.cache_config.enable_prefix_caching:
            return
        if not self._is_single_full_attention:
            logger.warning("eviction is lru: %s is for models whose layers are all full attention", eviction)
            return
        pool = self.kv_cache_manager.block_pool
        self._future = native.future_use() if reads_queue else None
        pool.free_block_queue = self.free_queue = make_free_queue(pool, eviction, self._future)

    @property
    def _is_single_full_attention(self) -> bool:
        """What a hash says of a prefix holds where a request needs all blocks of it, or none."""
        managers = self.kv_cache_manager.coordinator.single_type_managers
        return len(managers) == 1 and isinstance(managers[0], FullAttentionManager)

    def _install_queue(self) -> None:
        tree = self.settings.order == "prefix-tree"
        if tree and self.policy is not SchedulingPolicy.FCFS:
            logger.warning("order is arrival: with vLLM's scheduling policy %s the queue is vLLM's", self.policy.value)
            tree = False
        if not tree and self._future is None:
            return
        withdrawn = self.free_queue.refresh if self.free_queue is not None else None
        cached = self._is_cached if self._is_single_full_attention else None
        deep_queue = self.settings.deep_queue if tree else None
        self.queue = RelationalQueue(deep_queue, self.settings.max_age_s, self._future, withdrawn, cached)
        self.waiting = self.queue

    def _is_cached(self, block_hash: Any) -> bool:
        blocks = self.kv_cache_manager.block_pool.cached_block_hash_to_block
        return blocks.get_one_block(make_block_hash_with_group_id(block_hash, 0)) is not None

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """As vLLM. Then the queue hears who started, and blocks that a started request needed are looked at again."""
        output = super().schedule(*args, **kwargs)
        if self.queue is not None:
            started = output.scheduled_new_reqs
            self.queue.step_ends(self.requests[started[-1].req_id] if started else None)
        if self._future is not None and self.free_queue is not None and self.free_queue.needs_refresh:
            self._refresh(output)
        return output

    def _refresh(self, output: SchedulerOutput) -> None:
        """Blocks that a started request needed but computed anew may be worth less now."""
        assert self.free_queue is not None
        for started in output.scheduled_new_reqs:
            first = started.num_computed_tokens // self.hash_block_size
            self.free_queue.refresh(self.requests[started.req_id].block_hashes[first:])
        for request_id in output.scheduled_cached_reqs.resumed_req_ids:
            self.free_queue.refresh(self.requests[request_id].block_hashes)

    def counts(self) -> dict[str, int]:
        """Totals so far: blocks handed out by reason (not under ``lru``, which is vLLM's own), requests reordered, and
        what sparse attention counted in this process."""
        evictions = self.free_queue.evictions if self.free_queue is not None else {}
        reordered = self.queue.num_reordered if self.queue is not None else 0
        saved = self.partial_reuse.counters.tokens_saved if self.partial_reuse is not None else 0
        return {**evictions, metrics.REORDERED: reordered, metrics.TOKENS_SAVED: saved, **self._attention.totals()}

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """As vLLM, and what was counted since."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self.lora_config is None:
            metrics.pack(stats, self._counts.new(self.counts()))
        return stats

    def shutdown(self) -> None:
        """As vLLM; leaves the totals in the log, for engines without metrics."""
        logger.info("%s: %s", type(self).__name__, self.counts())
        super().shutdown()


class RelationalScheduler(SyncRelationalScheduler, AsyncScheduler):
    """For ``--scheduler-cls``. Becomes ``SyncRelationalScheduler`` where vLLM would take its synchronous scheduler.

    Raises ``RelationalError`` for settings that there are not (``vllm_ext/settings.py``) and for a vLLM that is not
    supported.
    """

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is RelationalScheduler and not vllm_config.scheduler_config.async_scheduling:
            return SyncRelationalScheduler(vllm_config, *args, **kwargs)
        return super().__new__(cls)

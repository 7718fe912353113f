"""What our scheduler counts, in the server's ``/metrics``.

The scheduler lives in the engine process, the metrics in the API server's. Between them goes vLLM's ``SchedulerStats``,
whose fields are fixed. Our counts ride in ``waiting_lora_adapters``, a dictionary of name and number that vLLM 0.32.0
reads only when LoRA is on; then they stay at home. vLLM loads ``RelationalStatLogger`` from the entry point group
``vllm.stat_logger_plugins``. Drop the ride when ``SchedulerStats`` has a field for others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from vllm_relational.vllm_ext.attention.statistics import COUNTS, ESTIMATED

PREFIX = "relational:"
EVICTED, REORDERED = "evicted", "reordered"
TOKENS_SAVED = "tokens saved"
MASS = "dipr estimated mass"


class Counts:
    """Totals that only grow -> what was added since they were read last."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}

    def new(self, totals: Mapping[str, int]) -> dict[str, int]:
        """Name -> growth, without what did not grow."""
        growth = {name: total - self._sent.get(name, 0) for name, total in totals.items()}
        self._sent = dict(totals)
        return {name: number for name, number in growth.items() if number}


def pack(stats: SchedulerStats, counts: Mapping[str, int]) -> None:
    """Give counts a ride to the API server."""
    stats.waiting_lora_adapters.update({PREFIX + name: number for name, number in counts.items()})


def unpack(stats: SchedulerStats) -> dict[str, int]:
    """Take the counts out again."""
    packed = [name for name in stats.waiting_lora_adapters if name.startswith(PREFIX)]
    return {name.removeprefix(PREFIX): stats.waiting_lora_adapters.pop(name) for name in packed}


class RelationalStatLogger(StatLoggerBase):
    """Prometheus counters of one engine; they appear with the first count, so never without our scheduler.

    vllm:relational_evicted_blocks_total{reason}: blocks handed out: ``unhashed`` (nothing lost), ``no_future_use``,
    ``future_use`` (a waiting request would have used it); under fifo ``cached`` for both.
    vllm:relational_reordered_requests_total: requests started before an older one.
    vllm:relational_partial_block_tokens_total: prompt tokens not computed because a prefix was reused inside a block.
    vllm:relational_dipr_body_tokens_total, _candidate_tokens_total, _dense_splits_total: of sparse attention, see
    ``sparse/statistics.py``; candidates over body is the share of tokens read.
    vllm:relational_dipr_estimated_mass_total{at_most}: with the setting ``certificate``, how often at most this share
    of a head's attention weight, and more than half of it, was only estimated.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._labels = {"model_name": vllm_config.model_config.served_model_name, "engine": str(engine_index)}
        self._counters: Mapping[str, Any] | None = None

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add what a step brought."""
        counts = unpack(scheduler_stats) if scheduler_stats is not None else {}
        if counts and self._counters is None:
            self._counters = _counters(tuple(self._labels))
        for name, number in counts.items():
            assert self._counters is not None
            if name in self._counters:
                self._counters[name].labels(**self._labels).inc(number)
            elif name in ESTIMATED:
                at_most = str(0.5 ** ESTIMATED.index(name))
                self._counters[MASS].labels(**self._labels, at_most=at_most).inc(number)
            else:
                self._counters[EVICTED].labels(**self._labels, reason=name).inc(number)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


class _Together:
    """Counters that Prometheus reads through this one.

    vLLM 0.32.0 unregisters whatever has a ``_name`` beginning with ``vllm:`` whenever an engine starts; the counters
    of an engine that runs already would be gone. This one has no name.
    """

    def __init__(self, counters: Mapping[str, Any]) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Any]:
        for counter in self._counters.values():
            yield from counter.collect()

    def describe(self) -> Iterator[Any]:
        for counter in self._counters.values():
            yield from counter.describe()


_made: dict[tuple[str, ...], Mapping[str, Any]] = {}


def _counters(labels: tuple[str, ...]) -> Mapping[str, Any]:
    """One set a process: Prometheus refuses a second counter of the same name."""
    if labels not in _made:
        from prometheus_client import REGISTRY, Counter

        evicted = "Blocks of the KV cache handed out, by what was lost."
        reordered = "Requests started before an older one."
        saved = "Prompt tokens not computed because a prefix was reused inside a block."
        _made[labels] = {
            EVICTED: Counter("vllm:relational_evicted_blocks", evicted, [*labels, "reason"], registry=None),
            REORDERED: Counter("vllm:relational_reordered_requests", reordered, labels, registry=None),
            TOKENS_SAVED: Counter("vllm:relational_partial_block_tokens", saved, labels, registry=None),
            **_attention_counters(labels),
        }
        REGISTRY.register(_Together(_made[labels]))
    return _made[labels]


def _attention_counters(labels: tuple[str, ...]) -> Mapping[str, Any]:
    from prometheus_client import Counter

    words = (
        "Tokens that sparse attention may leave out, over requests, layers and KV heads.",
        "Of these, tokens that it read.",
        "Parts of a context that it attended to densely for want of room.",
    )
    counters = {
        name: Counter(f"vllm:relational_{name.replace(' ', '_')}", text, labels, registry=None)
        for name, text in zip(COUNTS, words, strict=True)
    }
    mass = "Heads of requests by the share of their attention weight that was only estimated."
    return {**counters, MASS: Counter("vllm:relational_dipr_estimated_mass", mass, [*labels, "at_most"], registry=None)}

"""Counts on their way from the engine process to Prometheus."""

from types import SimpleNamespace

from prometheus_client import REGISTRY, generate_latest
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm_objects import Run, make_request, make_scheduler

from vllm_relational.vllm_ext.scheduler import metrics
from vllm_relational.vllm_ext.scheduler.metrics import RelationalStatLogger
from vllm_relational.vllm_ext.scheduler.scheduler import RelationalScheduler


def value(name, **labels):
    labels = {"model_name": "m", "engine": "0", **labels}
    return REGISTRY.get_sample_value(f"vllm:relational_{name}_total", labels) or 0


def stat_logger():
    return RelationalStatLogger(SimpleNamespace(model_config=SimpleNamespace(served_model_name="m")))


def test_counts_travel_with_vllms_own_stats():
    before = value("reordered_requests")
    scheduler = make_scheduler(RelationalScheduler, 12, {"eviction": "batch", "deep_queue": 2}, max_num_seqs=1)
    run = Run(scheduler, [make_request(str(i), [i % 4 + 1] * 6 + [50 + i, 9, 9]) for i in range(20)])
    logger = stat_logger()
    logger.record(None, None)
    for stats in run.stats:
        received = MsgpackDecoder(SchedulerStats).decode(MsgpackEncoder().encode(stats))
        logger.record(received, None)
        assert not received.waiting_lora_adapters
    totals = scheduler.counts()
    assert totals["reordered"] > 0 and totals["no_future_use"] > 0
    assert value("reordered_requests") - before == totals["reordered"]
    assert value("evicted_blocks", reason="no_future_use") >= totals["no_future_use"]


def stats_with(**counts):
    stats = SchedulerStats()
    metrics.pack(stats, counts)
    return stats


def test_a_second_engine_in_the_process_takes_no_counters_away():
    before = value("reordered_requests")
    first = stat_logger()
    first.record(stats_with(reordered=3), None)
    unregister_vllm_metrics()  # what vLLM does whenever an engine starts
    second = stat_logger()
    assert value("reordered_requests") == before + 3
    first.record(stats_with(reordered=1), None)
    second.record(stats_with(reordered=1), None)
    assert value("reordered_requests") == before + 5
    assert "vllm:relational_reordered_requests_total{" in generate_latest().decode()

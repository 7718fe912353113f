"""Counts on their way from the engine process to Prometheus."""

from types import SimpleNamespace

from prometheus_client import REGISTRY
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm_objects import Run, make_request, make_scheduler

from vllm_relational.vllm_ext.metrics import RelationalStatLogger
from vllm_relational.vllm_ext.scheduler import RelationalScheduler


def value(name, **labels):
    return REGISTRY.get_sample_value(f"vllm:relational_{name}_total", {"model_name": "m", "engine": "0", **labels})


def test_counts_travel_with_vllms_own_stats():
    scheduler = make_scheduler(RelationalScheduler, 12, {"eviction": "batch", "deep_queue": 2}, max_num_seqs=1)
    run = Run(scheduler, [make_request(str(i), [i % 4 + 1] * 6 + [50 + i, 9, 9]) for i in range(20)])
    logger = RelationalStatLogger(SimpleNamespace(model_config=SimpleNamespace(served_model_name="m")))
    logger.record(None, None)
    for stats in run.stats:
        received = MsgpackDecoder(SchedulerStats).decode(MsgpackEncoder().encode(stats))
        logger.record(received, None)
        assert not received.waiting_lora_adapters
    totals = scheduler.counts()
    assert totals["reordered"] > 0 and totals["no_future_use"] > 0
    assert value("reordered_requests") == totals.pop("reordered")
    assert all(value("evicted_blocks", reason=name) == total for name, total in totals.items() if total)

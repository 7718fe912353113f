"""Counts of sparse attention on their way from the device to Prometheus."""

import gc
from types import SimpleNamespace

import pytest
import torch
from attention_objects import HEAD_SIZE, HEADS, KV_HEADS, make_config
from prometheus_client import REGISTRY
from vllm.config import set_current_vllm_config
from vllm.v1.metrics.stats import SchedulerStats
from vllm_objects import make_scheduler

from vllm_relational.sparse.decoder import SparseDecoder
from vllm_relational.vllm_ext.attention import backend as dipr_layers
from vllm_relational.vllm_ext.attention import statistics as dipr_statistics
from vllm_relational.vllm_ext.attention.cpu import DiprCpuImpl
from vllm_relational.vllm_ext.attention.statistics import NAMES, StatisticsReader
from vllm_relational.vllm_ext.scheduler import metrics
from vllm_relational.vllm_ext.scheduler.scheduler import RelationalScheduler

pytestmark = pytest.mark.slow  # each case computes a model's attention


def make_layer(monkeypatch, **counts):
    """A layer, which keeps its decoder, with counts."""
    with set_current_vllm_config(make_config()):
        layer = DiprCpuImpl(HEADS, HEAD_SIZE, 0.2, KV_HEADS, None, None, "auto")
    found = torch.tensor([counts.get(name.replace(" ", "_"), 0) for name in NAMES])
    monkeypatch.setattr(SparseDecoder, "statistics", found, raising=False)
    return layer


def value(name, **labels):
    labels = {"model_name": "m", "engine": "0", **labels}
    return REGISTRY.get_sample_value(f"vllm:relational_dipr_{name}_total", labels) or 0


def test_totals_are_one_reading_old_and_read_once_an_interval(monkeypatch):
    now = [100.0]
    reader = StatisticsReader(lambda: now[0])
    layer = make_layer(monkeypatch, dipr_body_tokens=10)
    gc.collect()
    assert reader.totals() == {}  # the first reading is under way
    assert reader.totals()["dipr body tokens"] == 10
    layer.decoder.statistics[0] += 5
    assert reader.totals()["dipr body tokens"] == 10
    now[0] += 2
    assert reader.totals()["dipr body tokens"] == 10
    assert reader.totals()["dipr body tokens"] == 15


@pytest.mark.parametrize(
    ("tokens", "read", "warns"), [(2e9, 1.2e9, True), (2e9, 0.9e9, False), (1e8, 1e8, False), (0, 0, False)]
)
def test_an_index_that_rules_out_too_little_is_reported(monkeypatch, tokens, read, warns):
    found = []
    monkeypatch.setattr(dipr_statistics.logger, "warning", lambda text, *given: found.append(text % given))
    layer = make_layer(monkeypatch, dipr_body_tokens=int(tokens), dipr_candidate_tokens=int(read))
    gc.collect()
    reader = StatisticsReader(lambda: 0.0)
    for _ in range(3):
        reader.totals()
    assert layer.decoder is not None and len(found) == warns
    assert not warns or "reads 60% of the tokens" in found[0]


def test_without_sparse_layers_there_is_nothing():
    gc.collect()
    reader = StatisticsReader(lambda: 0.0)
    assert reader.totals() == {} and reader.totals() == {}


def test_counts_reach_prometheus(monkeypatch):
    logger = metrics.RelationalStatLogger(SimpleNamespace(model_config=SimpleNamespace(served_model_name="m")))
    scheduler = make_scheduler(RelationalScheduler, 12, {"order": "arrival"})
    before = value("body_tokens"), value("candidate_tokens"), value("estimated_mass", at_most="0.125")
    layer = make_layer(monkeypatch, dipr_body_tokens=1000, dipr_candidate_tokens=20, dipr_estimated_mass_3=7)
    scheduler.counts()
    for _ in range(2):  # the second step has nothing new
        stats = SchedulerStats()
        metrics.pack(stats, scheduler._counts.new(scheduler.counts()))
        logger.record(stats, None)
    after = value("body_tokens"), value("candidate_tokens"), value("estimated_mass", at_most="0.125")
    assert [new - old for new, old in zip(after, before, strict=True)] == [1000, 20, 7]
    assert layer.decoder in dipr_layers.decoders()

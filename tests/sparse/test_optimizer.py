"""The choice between dense and sparse attention: a break-even of costs that a reader can recompute."""

from __future__ import annotations

import pytest

from vllm_relational.sparse.optimizer import Costs, CostTable
from vllm_relational.sparse.settings import DiprSettings

LLAMA = {"kv_bytes": 8 * 512, "index_bytes": 8 * 104}


def test_a_scan_pays_where_it_is_cheaper_and_not_below():
    costs = Costs(DiprSettings(), **LLAMA)
    for num_reqs in (1, 2, 4, 16, 256):
        first = costs.pays_from(num_reqs)
        assert costs.scan(first, num_reqs) < costs.dense(first, num_reqs)
        assert costs.scan(first - 100, num_reqs) > costs.dense(first - 100, num_reqs)


def test_it_pays_earlier_in_larger_batches():
    found = [Costs(DiprSettings(), **LLAMA).pays_from(num_reqs) for num_reqs in (1, 2, 4, 16, 256)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1] > 8192


@pytest.mark.parametrize(
    ("length", "num_reqs", "dense", "scan"), [(131072, 1, 192, 107), (131072, 4, 719, 351), (32768, 16, 713, 503)]
)
def test_the_table_is_near_what_was_measured(length, num_reqs, dense, scan):
    """Microseconds of scripts/bench/dipr.csv at alpha 0.004; the table says 2,000 listed tokens for all."""
    costs = Costs(DiprSettings(), **LLAMA)
    assert costs.dense(length, num_reqs) == pytest.approx(dense, rel=0.05)
    assert costs.scan(length, num_reqs) == pytest.approx(scan, rel=0.25)


def test_settings_overrule_the_table():
    assert Costs(DiprSettings(dense_below=10**6), **LLAMA).pays_from(4) == 10**6
    assert Costs(DiprSettings(method="scan", dense_below=100), **LLAMA).pays_from(1) == 100
    assert Costs(DiprSettings(method="v_skip"), **LLAMA).pays_from(1) == 8192
    assert Costs(DiprSettings(alpha=0.0, dense_below=0), **LLAMA).pays_from(1) == 0


def test_an_index_that_is_slower_to_read_than_the_keys_never_pays():
    slow = CostTable(scan_rate=1.0)
    assert Costs(DiprSettings(), **LLAMA, table=slow).pays_from(64) == 2**31 - 1

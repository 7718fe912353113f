"""Which attention a request gets, by what each would cost (AlayaDB's optimizer, arXiv 2504.10326, section 6).

A step reads, per request, KV head and layer: densely all keys and values; sparsely the index or a part of it, the
window and the tokens that are listed. On a given card launches take a fixed time and so many bytes per microsecond, as
``scripts/bench/dipr_kernels.py`` measures. Sparse attention launches five kernels where dense attention has two: it
pays from a length on that falls as the batch grows.

An engine has one sparse method, chosen when it starts: what is best at its greatest length and batch
(``Costs.sparse``). A step chooses between that and dense attention by length (``Costs.pays_from``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

from vllm_relational.sparse.pages import PageLayout
from vllm_relational.sparse.settings import DiprSettings

NEVER = 2**31 - 1
HOLD_THE_DIPR_SET = ("scan", "v_skip")
"""Sparse methods that attend to every token of the DIPR set."""


@dataclass(frozen=True)
class CostTable:
    """What a layer's decode attention takes on a card.

    dense_launch, v_skip_launch, scan_launch, pages_launch: microseconds that do not depend on the context.
    dense_rate, v_skip_rate: bytes per microsecond, of the keys and values of the context.
    scan_rate:    bytes per microsecond of the index, scan_rate_16 in groups of 16, which take more work per byte.
    listed_rate:  bytes per microsecond of keys and values of listed tokens, which lie apart.
    listed:       tokens that a KV head lists at the default alpha, whatever the length.
    outline_rate: bytes per microsecond of zero points and scales, where they are read without the codes.
    mean_rate:    bytes per microsecond of groups' mean values.
    gather_rate:  ``listed_rate`` where whole groups are listed.
    """

    dense_launch: float = 9.8
    v_skip_launch: float = 17.0
    scan_launch: float = 17.0
    pages_launch: float = 33.0
    dense_rate: float = 3.0e6
    v_skip_rate: float = 2.89e6
    scan_rate: float = 2.2e6
    scan_rate_16: float = 1.75e6
    listed_rate: float = 2.6e6
    listed: float = 2000.0
    outline_rate: float = 2.07e6
    mean_rate: float = 0.9e6
    gather_rate: float = 1.8e6


H100 = CostTable()
"""One H100 80GB, fitted to contexts with the scores of Qwen2.5-Coder-0.5B (``scripts/bench/dipr.csv``): 1 x 32K, 1 x
128K, 4 x 128K and 16 x 32K tokens, in blocks of 64 and 16: a scan and dense attention within 6% (in blocks of 32
within 10%), ``topk_pages`` in blocks of 16, which it asks for, within 14%; in larger ones it takes up to a third less.
``mean_rate`` is an estimate."""


def with_rates(table: CostTable, factor: float) -> CostTable:
    """``table`` with as many times the bytes per microsecond; launches stay."""
    rates = [field.name for field in fields(table) if field.name.endswith(("_rate", "_rate_16"))]
    return replace(table, **{name: factor * getattr(table, name) for name in rates})


H200 = replace(with_rates(H100, 1.48), scan_rate=2.95e6, scan_rate_16=2.15e6)
"""The same processors with faster memory: dense attention reads 1.48 times the bytes per microsecond. Fitted to
contexts of random numbers of which a scan lists 1 to 37% (``scripts/bench/dipr_h200.csv``; 1 x 32K, 1 x 128K, 4 x
128K, 16 x 32K and 16 x 8K tokens in blocks of 64 and 16): dense attention within 5%; with the tokens listed as
counted, a scan within 14%, for 16 x 8K 19% too little. Whole engines (``dipr_engine.csv``, 32 layers) give 1.52."""

MEASURED: Mapping[str, CostTable] = {"NVIDIA H100 80GB HBM3": H100, "NVIDIA H200": H200}
"""Name of a device, as CUDA gives it -> its costs."""
_MEMORY_AS_OF_THE_H200 = re.compile(r"\b(H200|GH200|G?B[23]00)\b")  # 4 TB/s and more; others are nearer to an H100


def costs_on(device: str) -> tuple[CostTable, str | None]:
    """The costs on the device of that name; where none were measured, those of the nearest, and its name."""
    if device in MEASURED:
        return MEASURED[device], None
    nearest = "NVIDIA H200" if _MEMORY_AS_OF_THE_H200.search(device) else "NVIDIA H100 80GB HBM3"
    return MEASURED[nearest], nearest


@dataclass(frozen=True)
class Line:
    """Microseconds of a layer: of the launches, and what a request and a token of its context add."""

    launch: float
    a_request: float
    a_token: float

    def us(self, seq_len: int, num_reqs: int) -> float:
        """For ``num_reqs`` requests of ``seq_len`` tokens."""
        return self.launch + num_reqs * (self.a_request + self.a_token * seq_len)


@dataclass(frozen=True)
class Costs:
    """What each method costs an engine. layout, num_kv_heads: of a layer on this GPU; max_seq_len, max_reqs: its
    greatest context and batch."""

    settings: DiprSettings
    layout: PageLayout
    num_kv_heads: int
    max_seq_len: int
    max_reqs: int
    table: CostTable = H100

    @cached_property
    def lines(self) -> dict[str, Line]:
        """Method -> its cost."""
        table, layout, heads = self.table, self.layout, self.num_kv_heads
        kv = heads * (layout.token_bytes - layout.index_bytes)
        window = kv * (self.settings.sinks + self.settings.recent) / table.dense_rate
        listed, chosen = kv * table.listed / table.listed_rate, kv * self.settings.top_tokens / table.gather_rate
        means = layout.mean_bytes / table.mean_rate if self.settings.pages_tail else 0.0
        rate = table.scan_rate_16 if layout.group == 16 else table.scan_rate
        outline = heads * (layout.outline_bytes / table.outline_rate + means)
        return {
            "dense": Line(table.dense_launch, 0.0, kv / table.dense_rate),
            "v_skip": Line(table.v_skip_launch, 0.0, kv / table.v_skip_rate),
            "scan": Line(table.scan_launch, window + listed, heads * layout.index_bytes / rate),
            "topk_pages": Line(table.pages_launch, window + chosen, outline),
        }

    @cached_property
    def sparse(self) -> str:
        """The engine's sparse method: the cheapest of those that are allowed and can be faster than dense attention."""
        if self.settings.attends_to_all:
            return "v_skip"
        if self.settings.method != "auto":
            return self.settings.method
        allowed = (*HOLD_THE_DIPR_SET, "topk_pages") if self.settings.approximate else HOLD_THE_DIPR_SET
        dense = self.lines["dense"].a_token
        able = [method for method in allowed if self.lines[method].a_token < dense] or ["scan"]
        return min(able, key=lambda method: self.lines[method].us(self.max_seq_len, self.max_reqs))

    def pays_from(self, num_reqs: int) -> int:
        """The length from which on ``sparse`` takes less than dense attention in a batch of ``num_reqs``; with a method
        other than ``auto`` and where all is attended to, the settings' ``dense_below``."""
        if self.settings.method != "auto" or self.settings.attends_to_all:
            return self.settings.dense_below
        dense, sparse = self.lines["dense"], self.lines[self.sparse]
        saved = dense.a_token - sparse.a_token
        if saved <= 0:
            return NEVER
        extra = (sparse.launch - dense.launch) / max(num_reqs, 1) + sparse.a_request - dense.a_request
        return max(self.settings.dense_below, int(extra / saved) + 1)

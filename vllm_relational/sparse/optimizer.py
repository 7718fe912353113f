"""Which attention a request gets, by what each would cost (AlayaDB's optimizer, arXiv 2504.10326, section 6).

A step reads, a request, KV head and layer: densely all keys and values; sparsely the index, the window and the tokens
that are listed. On a given card a launch takes a fixed time and so many bytes a microsecond, which
``scripts/bench/dipr_kernels.py`` measured. Sparse attention launches five kernels where dense attention has two, and
fetches listed tokens one by one: it pays from a length on that falls as the batch grows.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_relational.sparse.settings import DiprSettings


@dataclass(frozen=True)
class CostTable:
    """What a layer's decode attention takes on a card.

    dense_launch, scan_launch: microseconds that do not depend on the context.
    dense_rate, scan_rate:     bytes a microsecond, of keys and values, and of the index.
    listed_rate:               bytes a microsecond of keys and values of listed tokens, which lie apart.
    listed:                    tokens that a KV head lists at the default alpha, whatever the length.
    """

    dense_launch: float = 9.8
    scan_launch: float = 26.0
    dense_rate: float = 3.0e6
    scan_rate: float = 1.5e6
    listed_rate: float = 0.8e6
    listed: float = 2000.0


H100 = CostTable()
"""One H100 80GB, measured on contexts with the scores of Qwen2.5-Coder-0.5B (``scripts/bench/dipr.csv``)."""


@dataclass(frozen=True)
class Costs:
    """Microseconds of a layer for a batch of requests of one length.

    kv_bytes: of a token's key and value in all KV heads of this GPU; index_bytes: of its share of the index.
    """

    settings: DiprSettings
    kv_bytes: int
    index_bytes: int
    table: CostTable = H100

    def dense(self, seq_len: int, num_reqs: int) -> float:
        """All keys and values."""
        return self.table.dense_launch + num_reqs * seq_len * self.kv_bytes / self.table.dense_rate

    def scan(self, seq_len: int, num_reqs: int) -> float:
        """Index, window, listed tokens."""
        return self.table.scan_launch + num_reqs * (self._listed + self._a_token() * seq_len)

    def pays_from(self, num_reqs: int) -> int:
        """The length from which on a scan takes less than dense attention, in a batch of ``num_reqs``.

        The settings' ``dense_below`` is the least; a method other than ``auto`` leaves it at that.
        """
        if self.settings.method != "auto" or self.settings.attends_to_all:
            return self.settings.dense_below
        saved = self.kv_bytes / self.table.dense_rate - self._a_token()
        if saved <= 0:
            return 2**31 - 1
        extra = (self.table.scan_launch - self.table.dense_launch) / max(num_reqs, 1) + self._listed
        return max(self.settings.dense_below, int(extra / saved) + 1)

    def _a_token(self) -> float:
        return self.index_bytes / self.table.scan_rate

    @property
    def _listed(self) -> float:
        window = (self.settings.sinks + self.settings.recent) / self.table.dense_rate
        return self.kv_bytes * (window + self.table.listed / self.table.listed_rate)

"""What sparse attention counted on the device, for the scheduler that reports it.

The counts live in ``SparseDecoder.statistics``, in the process of the worker. With one GPU that is the process of the
scheduler too, and there they are read; elsewhere there is nothing to read, and nothing is reported.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger

from vllm_relational.sparse.statistics import BODY_TOKENS, LISTED_TOKENS, NUM_BINS

logger = init_logger("vllm.relational.attention")

COUNTS = ("dipr body tokens", "dipr candidate tokens", "dipr dense splits")
ESTIMATED = tuple(f"dipr estimated mass {number}" for number in range(NUM_BINS))
NAMES = (*COUNTS, *ESTIMATED)
"""Of the counters of ``sparse/statistics.py``, in their order."""
INTERVAL_S = 1.0
MAX_READ = 0.5
ENOUGH_TOKENS = 10**9
"""So many tokens between the window's ends (a step over 128K tokens of Llama-8B's shape has 31 million) tell whether
the index is of use."""
_LAYERS = "vllm_relational.vllm_ext.attention.backend"


class StatisticsReader:
    """Totals of all decoders of this process. Never waits for the device: what it returns is one reading old."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._is_judged = False
        self._copies: dict[int, Any] = {}

    def totals(self) -> dict[str, int]:
        """Name -> count; empty where no decoder counts. At most one reading an ``INTERVAL_S``."""
        found = sum(self._copies.values()) if self._copies else None
        if found is not None:
            self._judge(int(found[BODY_TOKENS]), int(found[LISTED_TOKENS]))
        if self._clock() >= self._next:
            self._next = self._clock() + INTERVAL_S
            self._read()
        return {} if found is None else dict(zip(NAMES, found.tolist(), strict=True))

    def _judge(self, tokens: int, read: int) -> None:
        """Says once, when enough was counted, if the index is of no use."""
        if self._is_judged or tokens < ENOUGH_TOKENS:
            return
        self._is_judged = True
        if read > MAX_READ * tokens:
            logger.warning(
                "DIPR attention reads %d%% of the tokens that it might leave out: its index rules out too little of "
                "these contexts to be faster than dense attention. Try a higher alpha, or go without it.",
                100 * read // tokens,
            )

    def _read(self) -> None:
        # Where no layer was made, the module is not loaded, and need not be.
        layers = sys.modules.get(_LAYERS)
        for decoder in layers.decoders() if layers is not None else ():
            statistics = getattr(decoder, "statistics", None)
            if statistics is not None:
                self._copy(id(decoder), statistics)

    def _copy(self, key: int, statistics: Any) -> None:
        if key not in self._copies:
            self._copies[key] = statistics.new_zeros(statistics.shape, device="cpu", pin_memory=statistics.is_cuda)
        self._copies[key].copy_(statistics, non_blocking=True)

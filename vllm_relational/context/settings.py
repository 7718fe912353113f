"""How a session attends to its context."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_relational.context.errors import ContextError

METHODS = ("full", "dipr", "topk", "auto")
INDEXES = ("flat", "int4", "clusters", "graph")


@dataclass(frozen=True)
class SessionSettings:
    """``ContextError`` for values that there are not.

    first, last:   the window: so many tokens at the start and at the end of the stored tokens are attended to exactly,
                   as are all new ones, and stay on the model's device (arXiv 2504.10326, section 7.1). What is stored
                   between them is the body.
    device_tokens: of a model that is not on the CPU: so many tokens of the stored ones may be on its device, at least
                   the window; the others stay in host memory and are attended to there. None: all of them.
    contiguous:    stored and new keys are shown as one stretch of memory where the system can do that, so that a model
                   on the CPU computes what it computes with its own cache, bit by bit wherever its kernel does.
    method:        ``full`` attends to the whole body; for a single new token of a text ``dipr`` attends to those tokens
                   of it that have at least ``alpha`` times the greatest attention weight, ``topk`` to ``top_tokens``,
                   both for each query head. ``auto`` attends as ``full`` or ``dipr`` do, with the index that costs
                   least on this machine for the length and the layer (``search.optimizer``), which is measured once.
    index:         what finds them, but for ``auto``: ``flat`` looks at every key, ``int4`` at codes of a fourth of
                   their size, both find all; ``clusters`` and ``graph`` look at few and find most. It is built when it
                   is first needed, and kept with the context.
    dense_below:   texts of fewer tokens, and the first ``dense_layers`` layers, are attended to in full.
    """

    first: int = 128
    last: int = 512
    device_tokens: int | None = None
    contiguous: bool = True
    method: str = "full"
    alpha: float = 4e-3
    top_tokens: int = 2000
    index: str = "flat"
    dense_below: int = 8192
    dense_layers: int = 2

    def __post_init__(self) -> None:
        for name in ("first", "last", "device_tokens", "top_tokens", "dense_below", "dense_layers"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise ContextError(f"session setting {name} is {value!r}: it must be a whole number, 0 or more")
        for name, known in (("method", METHODS), ("index", INDEXES)):
            if getattr(self, name) not in known:
                raise ContextError(f"session setting {name} is {getattr(self, name)!r}: there are {', '.join(known)}")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha <= 1:
            raise ContextError(f"session setting alpha is {self.alpha!r}: it must be a share above 0, up to 1")

    def far(self, num_stored: int, on_cpu: bool) -> tuple[int, int]:
        """Of the stored tokens: the first that stays where it is stored and the one behind the last."""
        if on_cpu:
            return 0, num_stored
        kept = num_stored if self.device_tokens is None else max(self.device_tokens, self.first + self.last)
        return min(self.first, num_stored), max(min(self.first, num_stored), num_stored - kept + self.first)

    def body(self, num_stored: int, on_cpu: bool) -> tuple[int, int]:
        """The first token that is searched and the one behind the last: of another device only those not on it."""
        if not on_cpu:
            return self.far(num_stored, on_cpu)
        start = min(self.first, num_stored)
        return start, max(start, num_stored - self.last)

    def beta(self, scale: float) -> float:
        """How far below the greatest score ``q . k`` a token of at least ``alpha`` may be."""
        return -math.log(self.alpha) / scale

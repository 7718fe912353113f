"""How a session attends to its context."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_relational.context.errors import ContextError


@dataclass(frozen=True)
class SessionSettings:
    """``ContextError`` for values that there are not.

    first, last:   the window: so many tokens at the start and at the end of the stored tokens are attended to exactly,
                   as are all new ones, and stay on the model's device (arXiv 2504.10326, section 7.1).
    device_tokens: of a model that is not on the CPU: so many tokens of the stored ones may be on its device, at least
                   the window; the others stay in host memory and are attended to there. None: all of them.
    contiguous:    stored and new keys are shown as one stretch of memory where the system can do that, so that a model
                   on the CPU computes what it computes with its own cache, bit by bit wherever its kernel does.
    """

    first: int = 128
    last: int = 512
    device_tokens: int | None = None
    contiguous: bool = True

    def __post_init__(self) -> None:
        for name in ("first", "last", "device_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise ContextError(f"session setting {name} is {value!r}: it must be a whole number, 0 or more")

    def far(self, num_stored: int, on_cpu: bool) -> tuple[int, int]:
        """Of the stored tokens: the first that stays where it is stored and the one behind the last."""
        if on_cpu:
            return 0, num_stored
        kept = num_stored if self.device_tokens is None else max(self.device_tokens, self.first + self.last)
        return min(self.first, num_stored), max(min(self.first, num_stored), num_stored - kept + self.first)

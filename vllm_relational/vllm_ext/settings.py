"""What our scheduler may be told, through vLLM's ``additional_config``: ``{"relational": {...}}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vllm_relational.records import RelationalError

KEY = "relational"
SCHEDULER = "vllm_relational.vllm_ext.scheduler.RelationalScheduler"
EVICTIONS = ("lru", "fifo", "batch")
ORDERS = ("arrival", "prefix-tree")


@dataclass(frozen=True)
class SchedulerSettings:
    """Settings of ``RelationalScheduler``. ``RelationalError`` for values that there are not.

    eviction:   which cached block goes when the cache is full: ``lru`` as stock vLLM, ``fifo``, or ``batch``: what no
                waiting request needs first, then what is needed last.
    order:      ``arrival`` as stock vLLM; ``prefix-tree``: while many requests wait, depth-first by common prefixes.
    deep_queue: how many waiting requests are many.
    max_age_s:  seconds: a request is overtaken only by requests that arrived at most so long after it.
    token_exact: reuse prefixes to the token, not to the block (``vllm_ext/partial_reuse.py``).
    """

    eviction: str = "lru"
    order: str = "prefix-tree"
    deep_queue: int = 64
    max_age_s: float = 30.0
    token_exact: bool = False

    def __post_init__(self) -> None:
        _check_choice("eviction", self.eviction, EVICTIONS)
        _check_choice("order", self.order, ORDERS)
        if type(self.deep_queue) is not int or self.deep_queue < 1:
            raise _wrong("deep_queue", self.deep_queue, "a whole number of requests, 1 or more")
        if type(self.max_age_s) not in (int, float) or not self.max_age_s >= 0:
            raise _wrong("max_age_s", self.max_age_s, "a number of seconds, 0 or more")
        if type(self.token_exact) is not bool:
            raise _wrong("token_exact", self.token_exact, "true or false")


def read_settings(additional_config: Any) -> SchedulerSettings:
    """The settings in vLLM's ``additional_config``; defaults where it has none. ``RelationalError`` for others."""
    given = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(given, Mapping):
        raise RelationalError(f"additional_config[{KEY!r}] is {given!r}: it must be an object of settings")
    known = [field.name for field in fields(SchedulerSettings)]
    unknown = [name for name in given if name not in known]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise RelationalError(f"additional_config[{KEY!r}] has no setting {names}: there are {', '.join(known)}")
    return SchedulerSettings(**given)


def engine_arguments(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``vllm.LLM`` that put our scheduler with these settings into an engine.

    given: the other arguments; a ``scheduler_cls`` among them, or settings that there are not, raise
    ``RelationalError``.
    """
    if "scheduler_cls" in given:
        raise RelationalError("scheduler and scheduler_cls exclude each other: give one")
    config = {**(given.get("additional_config") or {})}
    config[KEY] = {**config.get(KEY, {}), **settings}
    read_settings(config)
    return {"scheduler_cls": SCHEDULER, "additional_config": config}


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _wrong(name, value, f"one of {', '.join(choices)}")


def _wrong(name: str, value: object, right: str) -> RelationalError:
    return RelationalError(f"{KEY} setting {name} is {value!r}: it must be {right}")

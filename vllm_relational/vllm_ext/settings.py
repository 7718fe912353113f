"""What our scheduler and our attention may be told, through vLLM's ``additional_config``: ``{"relational": {...}}``.

The settings of DIPR attention are an object among those of the scheduler: ``{"relational": {"dipr": {...}}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vllm_relational.kv.policy import POLICIES
from vllm_relational.records import RelationalError
from vllm_relational.sparse.settings import DiprSettings, read_dipr

KEY = "relational"
DIPR = "dipr"
ATTENTION_BACKEND = "CUSTOM"
"""What vLLM calls the backend that a plugin brings."""
SCHEDULER = "vllm_relational.vllm_ext.scheduler.RelationalScheduler"
WORKER = "vllm_relational.vllm_ext.worker.Worker"
"""For the attention: it tells prompts from answers that are computed again."""
EVICTIONS = tuple(name for name, policy in POLICIES.items() if policy.serves)
ORDERS = ("arrival", "prefix-tree")


@dataclass(frozen=True)
class SchedulerSettings:
    """Settings of ``RelationalScheduler``. ``RelationalError`` for values that there are not.

    eviction:   which cached block goes when the cache is full, a policy of ``kv/policy.py``: ``lru`` as stock vLLM,
                ``fifo``, or ``batch``: what no waiting request needs first, then what is needed last.
    order:      ``arrival`` as stock vLLM; ``prefix-tree``: while many requests wait, depth-first by common prefixes.
    deep_queue: how many waiting requests are many.
    max_age_s:  seconds: a request is overtaken only by requests that arrived at most so long after it.
    token_exact: reuse prefixes to the token, not to the block (``vllm_ext/scheduler/partial_reuse.py``).
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
    """The scheduler's settings in vLLM's ``additional_config``; defaults where it has none.

    ``RelationalError`` for settings that there are not, also of the attention.
    """
    given = _ours(additional_config)
    known = [field.name for field in fields(SchedulerSettings)]
    unknown = [name for name in given if name not in (*known, DIPR)]
    if unknown:
        names = ", ".join(map(repr, unknown))
        there_are = ", ".join([*known, DIPR])
        raise RelationalError(f"additional_config[{KEY!r}] has no setting {names}: there are {there_are}")
    read_attention(additional_config)
    return SchedulerSettings(**{name: value for name, value in given.items() if name != DIPR})


def read_attention(additional_config: Any) -> DiprSettings:
    """The settings of DIPR attention in vLLM's ``additional_config``; defaults where it has none."""
    return read_dipr(_ours(additional_config).get(DIPR, {}))


def _ours(additional_config: Any) -> Mapping[str, Any]:
    given = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(given, Mapping):
        raise RelationalError(f"additional_config[{KEY!r}] is {given!r}: it must be an object of settings")
    return given


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


def attention_arguments(
    attention: str | None, dipr: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of ``vllm.LLM`` for an attention and its settings; none where both are None.

    given: the other arguments; a ``worker_cls`` among them stays. ``RelationalError`` for an attention or settings that
    there are not, and for an ``attention_backend`` or ``attention_config`` among the others.
    """
    check_attention(attention, dipr)
    if attention is None:
        return {}
    for name in ("attention_backend", "attention_config"):
        if name in given:
            raise RelationalError(f"attention and {name} exclude each other: give one")
    config = {**(given.get("additional_config") or {})}
    ours = _ours(config)
    config[KEY] = {**ours, DIPR: {**ours.get(DIPR, {}), **(dipr or {})}}
    read_settings(config)
    worker = {} if "worker_cls" in given else {"worker_cls": WORKER}
    return {"attention_backend": ATTENTION_BACKEND, "additional_config": config, **worker}


def expected_block_size(arguments: Mapping[str, Any]) -> int | None:
    """The size of blocks that our attention takes on a GPU where these arguments of ``vllm.LLM`` name none; None where
    they have another attention, or all is dense."""
    if arguments.get("attention_backend") != ATTENTION_BACKEND:
        return None
    settings = read_attention(arguments.get("additional_config"))
    return settings.block_size if settings.method != "dense" else None


def check_attention(attention: str | None, dipr: Mapping[str, Any] | None) -> None:
    """``RelationalError`` for another attention than ``dipr``, and for settings without it."""
    if attention not in (None, DIPR):
        raise RelationalError(f"attention is {attention!r}: it must be {DIPR}, or left out for vLLM's own")
    if attention is None and dipr:
        raise RelationalError(f"settings of {DIPR} need the attention {DIPR}")
    if dipr:
        read_dipr(dipr)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _wrong(name, value, f"one of {', '.join(choices)}")


def _wrong(name: str, value: object, right: str) -> RelationalError:
    return RelationalError(f"{KEY} setting {name} is {value!r}: it must be {right}")

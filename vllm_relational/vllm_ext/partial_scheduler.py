"""vLLM's own scheduler with token-exact reuse and nothing else: to measure that part alone.

``LLM(model, scheduler_cls="vllm_relational.vllm_ext.partial_scheduler.PartialReuseScheduler")``
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from vllm_relational.vllm_ext.partial_reuse import PartialReuseSettings, install


class PartialReuseScheduler(AsyncScheduler):
    """``partial_reuse`` is the handle with the counters, or ``None`` where the model does not allow it.

    Settings: ``additional_config={"relational": {"partial_reuse": {"min_tokens": 4}}}``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        additional: Any = self.vllm_config.additional_config or {}
        ours = additional.get("relational", {})
        self.partial_reuse = install(self, PartialReuseSettings(**ours.get("partial_reuse", {})))

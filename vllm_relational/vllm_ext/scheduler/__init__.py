"""vLLM's scheduler with a queue and a block pool that know the batch.

``vllm serve --scheduler-cls vllm_relational.vllm_ext.scheduler.RelationalScheduler`` finds the class here; it is loaded
when asked for, so that the parts can be imported without vLLM's scheduler.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("RelationalScheduler", "SyncRelationalScheduler"):
        from vllm_relational.vllm_ext.scheduler import scheduler

        return getattr(scheduler, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")

"""The path for ``--worker-cls``: ``vllm_relational.vllm_ext.worker.Worker``. See ``attention.worker``."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Worker":
        from vllm_relational.vllm_ext.attention.worker import worker_class

        return worker_class()
    raise AttributeError(f"module {__name__} has no attribute {name}")

"""vLLM's worker of this platform, which also tells ``prompt_lengths`` and ``cuda_graphs`` its model runner.

``Worker`` is a name for ``--worker-cls``: which class it is, is decided where the worker is made.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from vllm_relational.vllm_ext.attention import cuda_graphs, prompt_lengths


def __getattr__(name: str) -> Any:
    if name == "Worker":
        return worker_class()
    raise AttributeError(f"module {__name__} has no attribute {name}")


@cache
def worker_class() -> type:
    """A subclass of the worker that vLLM would take here."""
    base = platform_worker()

    class RelationalWorker(base):  # type: ignore[misc, valid-type]
        def init_device(self) -> None:
            super().init_device()
            prompt_lengths.follow(self.vllm_config, self.model_runner)
            cuda_graphs.follow(self.model_runner)

    return RelationalWorker


def platform_worker() -> type:
    """What vLLM makes of ``auto``."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        return CPUWorker
    if current_platform.is_xpu():
        from vllm.v1.worker.xpu_worker import XPUWorker

        return XPUWorker
    from vllm.v1.worker.gpu_worker import Worker

    return Worker

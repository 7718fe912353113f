"""What ``dipr_engine.py`` asks of vLLM's worker, through ``worker_extension_cls``."""

from __future__ import annotations

import re
from typing import Any

from dipr_random_model import draw_weights


class Extension:
    """Methods that a worker gets."""

    model_runner: Any
    vllm_config: Any
    watching: Any = None

    def attention(self) -> list[str]:
        """The classes of the attention layers."""
        layers = self.vllm_config.compilation_config.static_forward_context.values()
        return sorted({type(layer.impl).__name__ for layer in layers if hasattr(layer, "impl")})

    def draw(self, logit_std: float, topics: int) -> int:
        """Draw all weights anew; the number of attention layers."""
        runner = self.model_runner
        return draw_weights(runner.model, runner.model_config.hf_config, logit_std, topics)

    def listed(self) -> list[int]:
        """Tokens between the window's ends, and those that scans listed, since the engine started."""
        from vllm_relational.vllm_ext.attention.backend import decoders

        counted = [each.statistics[:2].tolist() for each in decoders() if each.statistics is not None]
        return [sum(column) for column in zip((0, 0), *counted, strict=True)]

    def watch(self) -> None:
        """Kernels are timed from now on."""
        import torch

        torch.cuda.synchronize()
        self.watching = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.watching.start()

    def watched(self) -> dict[str, tuple[int, float]]:
        """Launches and microseconds of every kernel since."""
        import torch

        torch.cuda.synchronize()
        watching = self.watching
        self.stop_watching()
        found: dict[str, tuple[int, float]] = {}
        for event in watching.key_averages():
            if event.device_type == torch.autograd.DeviceType.CUDA:  # type: ignore[attr-defined]
                launches, time_us = found.get(short_name(event.key), (0, 0.0))
                found[short_name(event.key)] = (launches + event.count, time_us + event.self_device_time_total)
        return found

    def stop_watching(self) -> None:
        watching, self.watching = self.watching, None
        if watching is not None:
            watching.stop()


def short_name(kernel: str) -> str:
    """Without its types: ``void at::native::elementwise_kernel<...>(...)`` -> ``elementwise_kernel``."""
    name = re.split(r"[<(]", kernel.removeprefix("void "))[0].split("::")[-1]
    return (name or kernel)[:60]

"""The DIPR attention backend, as vLLM finds it: ``--attention-backend CUSTOM``.

vLLM's registry maps a name to a path, and gets the class by the last part of the path. ``for_gpu`` and ``for_cpu`` are
such last parts: which class they give is decided when a layer is made, by the engine's own configuration. So the two
names are registered in every vLLM process (``plugin.py``), and an engine that did not ask gets vLLM's own class. On the
CPU, where vLLM knows no other choice, ``CPU_ATTN`` is the name.
"""

from __future__ import annotations

from typing import Any

import vllm
from vllm.config import get_current_vllm_config_or_none
from vllm.logger import init_logger
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_relational.vllm_ext.attention.support import unsupported_model
from vllm_relational.vllm_ext.contract.check import check_contract
from vllm_relational.vllm_ext.settings import read_attention
from vllm_relational.vllm_ext.version import check_version, is_supported

logger = init_logger("vllm.relational.attention")  # below vLLM's logger: its level and format


def __getattr__(name: str) -> Any:
    if name == "for_gpu":
        return backend_for_gpu(get_current_vllm_config_or_none())
    if name == "for_cpu":
        return backend_for_cpu(get_current_vllm_config_or_none())
    raise AttributeError(f"module {__name__} has no attribute {name}")


def backend_for_gpu(vllm_config: Any) -> Any:
    """The class behind ``CUSTOM``: over FlashAttention, or over Triton where that is absent; the dense one below for
    models that DIPR does not fit."""
    from vllm_relational.vllm_ext.attention import gpu

    over_flash = vllm_config is None or gpu.flash_attention_runs(vllm_config.model_config.dtype)
    ours = gpu.DiprFlashBackend if over_flash else gpu.DiprTritonBackend
    return ours if vllm_config is None or is_wanted(vllm_config) else ours.below


def backend_for_cpu(vllm_config: Any) -> Any:
    """The class behind ``CPU_ATTN``: vLLM's own, unless the engine asked for ``CUSTOM`` and its model fits."""
    from vllm_relational.vllm_ext.attention import cpu

    asked = vllm_config is not None and vllm_config.attention_config.backend is AttentionBackendEnum.CUSTOM
    wanted = asked and is_wanted(vllm_config)
    return cpu.DiprCpuBackend if wanted else cpu.DiprCpuBackend.below


def is_wanted(vllm_config: Any) -> bool:
    """Whether an engine that asked for DIPR gets it; says so in the log. ``RelationalError`` for wrong settings."""
    settings = read_attention(vllm_config.additional_config)
    check_version(vllm.__version__)
    check_contract("attention", vllm.__version__)
    reason = "its method is dense" if settings.method == "dense" else unsupported_model(vllm_config)
    if not is_supported(vllm.__version__):
        reason = f"vLLM {vllm.__version__} is not known to vllm-relational"
    if reason is not None:
        logger.warning_once("DIPR attention is off, all layers are dense: %s", reason)
        return False
    logger.info_once("DIPR attention: %s", settings)
    return True

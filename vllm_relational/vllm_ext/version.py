"""Which vLLM this package was written against and tried with."""

from __future__ import annotations

import os

from vllm_relational.records import RelationalError

SUPPORTED = "0.32.0"
ALLOW_VARIABLE = "VLLM_RELATIONAL_ALLOW_VLLM"


def is_supported(found: str) -> bool:
    """Whether vLLM's internals are those that this package was tried with."""
    return found.split("+")[0] == SUPPORTED


def check_version(found: str) -> None:
    """Raise ``RelationalError`` naming both versions unless ``found`` is supported or explicitly allowed.

    Local suffixes such as ``0.32.0+cpu`` are the same release.
    """
    if is_supported(found) or os.environ.get(ALLOW_VARIABLE) == found:
        return
    raise RelationalError(
        f"vllm-relational supports vLLM {SUPPORTED}, and vLLM {found} is installed: install vllm=={SUPPORTED}, "
        f"or try at your own risk with {ALLOW_VARIABLE}={found}"
    )

"""The context database: keys and values of a context, computed once, kept on disk, used again by any process.

``DB`` is loaded when it is first used; neither it nor this package loads torch, transformers or vLLM.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_relational.context.errors import ContextError
    from vllm_relational.context.settings import SessionSettings
    from vllm_relational.context.store import DB

_HOMES = {
    "DB": "vllm_relational.context.store",
    "ContextError": "vllm_relational.context.errors",
    "SessionSettings": "vllm_relational.context.settings",
}

__all__ = ["DB", "ContextError", "SessionSettings"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

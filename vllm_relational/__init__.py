"""vllm-relational: LLM questions over tables, as fast as the hardware allows.

``import vllm_relational`` loads next to nothing: each name below is loaded when it is first used, and an engine
is started by the first question. ``df.llm`` is there as soon as ``RelationalLLM`` is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vllm_relational.terminal import follow_log_level

if TYPE_CHECKING:
    from vllm_relational.accessor import LLMAccessor
    from vllm_relational.llm import RelationalLLM
    from vllm_relational.records import (
        Choice,
        EngineDiedError,
        FreeText,
        IntegerRange,
        JsonSchema,
        QueryResult,
        RelationalError,
        RowFailedError,
        RunReport,
    )

follow_log_level()

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "EngineDiedError",
    "FreeText",
    "IntegerRange",
    "JsonSchema",
    "LLMAccessor",
    "QueryResult",
    "RelationalError",
    "RelationalLLM",
    "RowFailedError",
    "RunReport",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    if name in ("LLMAccessor", "RelationalLLM"):
        home = import_module("vllm_relational.accessor")  # registers df.llm
    else:
        home = import_module("vllm_relational.records")
    globals()[name] = value = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""vllm-relational: LLM questions over tables, as fast as the hardware allows.

``import vllm_relational`` imports neither torch nor vllm; an engine is started by the first question.
"""

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
from vllm_relational.terminal import follow_log_level

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

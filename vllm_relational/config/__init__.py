"""Every option that a user may give, typed once: its kind, default, limits and meaning (``option.py`` says how).

query.py: ``QueryOptions``, of a question over a table; sql.py: of ``sql.connect``; llm.py: of the object that answers
and of servers; kinds.py: how values are read.
"""

from __future__ import annotations

from vllm_relational.config.names import (
    DEFAULT_EMBEDDER,
    DEFAULT_ORDER,
    DEFAULT_SIMILARITY,
    DEFAULT_SYSTEM_PROMPT,
    KEEP_NULLS,
    QUESTION_FIRST,
    ROW_FIRST,
    DedupMode,
    Layout,
    check_layout,
    current_order,
)
from vllm_relational.config.query import MergingOptions, QueryConfig, QueryOptions

__all__ = [
    "DEFAULT_EMBEDDER",
    "DEFAULT_ORDER",
    "DEFAULT_SIMILARITY",
    "DEFAULT_SYSTEM_PROMPT",
    "KEEP_NULLS",
    "QUESTION_FIRST",
    "ROW_FIRST",
    "DedupMode",
    "Layout",
    "MergingOptions",
    "QueryConfig",
    "QueryOptions",
    "check_layout",
    "current_order",
]

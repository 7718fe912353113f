"""The values that pass between the packages: frozen, plain, importing no package.

A query moves one way: table -> dedup -> plan -> prompts -> engine -> results. Each record is written by one package and
read by later ones. Numbers of rows and columns are written ``num_rows``, ``num_columns``; a *code* is the number of a
distinct value inside its column. Import them from here: ``from vllm_relational.records import Plan``.
"""

from vllm_relational.records.engine import (
    AnswerFormat,
    Choice,
    Completion,
    EngineInfo,
    FreeText,
    IntegerRange,
    JsonSchema,
    Prompt,
)
from vllm_relational.records.errors import EngineDiedError, RelationalError, RowFailedError
from vllm_relational.records.plan import Plan, PlanInput, PromptBatch, PromptSegments, TokenSegments, ValueOverlaps
from vllm_relational.records.results import (
    Agreement,
    AuditReport,
    CacheForecast,
    JobRecord,
    PlannedQuery,
    QueryResult,
    RunReport,
)
from vllm_relational.records.table import NULL_CODE, DedupReport, Distinct, EncodedTable, Grouping, MergeExample, Origin

__all__ = [
    "NULL_CODE",
    "Agreement",
    "AnswerFormat",
    "AuditReport",
    "CacheForecast",
    "Choice",
    "Completion",
    "DedupReport",
    "Distinct",
    "EncodedTable",
    "EngineDiedError",
    "EngineInfo",
    "FreeText",
    "Grouping",
    "IntegerRange",
    "JobRecord",
    "JsonSchema",
    "MergeExample",
    "Origin",
    "Plan",
    "PlanInput",
    "PlannedQuery",
    "Prompt",
    "PromptBatch",
    "PromptSegments",
    "QueryResult",
    "RelationalError",
    "RowFailedError",
    "RunReport",
    "TokenSegments",
    "ValueOverlaps",
]

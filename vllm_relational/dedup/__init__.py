"""Rows -> distinct rows and the way back."""

from vllm_relational.dedup.exact import distinct_rows, scatter
from vllm_relational.dedup.groups import first_of, most_frequent, origins, regrouped, row_counts, source_rows
from vllm_relational.dedup.normalize import column_rules, normal_codes
from vllm_relational.dedup.rules import normalizer
from vllm_relational.dedup.semantic import row_texts, similar_rows, text_columns

__all__ = [
    "column_rules",
    "distinct_rows",
    "first_of",
    "most_frequent",
    "normal_codes",
    "normalizer",
    "origins",
    "regrouped",
    "row_counts",
    "row_texts",
    "scatter",
    "similar_rows",
    "source_rows",
    "text_columns",
]

"""Rows -> distinct rows and the way back."""

from vllm_relational.dedup.exact import distinct_rows, scatter
from vllm_relational.dedup.groups import most_frequent, origins, part_of, regrouped, row_counts, source_rows
from vllm_relational.dedup.normalize import column_rules, normal_codes
from vllm_relational.dedup.rules import normalizer
from vllm_relational.dedup.semantic import row_texts, similar_rows, text_columns

__all__ = [
    "column_rules",
    "distinct_rows",
    "most_frequent",
    "normal_codes",
    "normalizer",
    "origins",
    "part_of",
    "regrouped",
    "row_counts",
    "row_texts",
    "scatter",
    "similar_rows",
    "source_rows",
    "text_columns",
]

"""Rows -> distinct rows and the way back."""

from vllm_relational.dedup.exact import distinct_rows, scatter

__all__ = ["distinct_rows", "scatter"]

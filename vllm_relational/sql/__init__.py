"""SQL with LLM functions on DuckDB: ``con = vllm_relational.sql.connect("shop.duckdb", llm=llm)``."""

from vllm_relational.sql.connect import Connection, Result, connect
from vllm_relational.sql.operator import Settings
from vllm_relational.sql.parse import SQLError

__all__ = ["Connection", "Result", "SQLError", "Settings", "connect"]

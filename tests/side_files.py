"""Statements over three rows whose answers a side file keeps."""

from __future__ import annotations

from pathlib import Path

import duckdb
from fake_engine import FakeEngine

from vllm_relational import RelationalLLM
from vllm_relational.sql import connect

QUERY = "SELECT LLM('Sum up {text}', text) AS s FROM (VALUES ('a'), ('b'), ('c')) t(text) ORDER BY text"
ANSWERS = [("A",), ("B",), ("C",)]


def upper() -> FakeEngine:
    """A model that gives ``ANSWERS``."""
    return FakeEngine(lambda row: row["text"].upper())


def ask(side: Path, engine: FakeEngine, query: str = QUERY) -> list[tuple]:
    """The rows of a statement, in a session of its own."""
    with connect(llm=RelationalLLM(engine=engine), side=side) as connection:
        return connection.sql(query).fetchall()


def change(side: Path, *statements: str) -> None:
    """Run statements in the side file, which no session has open."""
    with duckdb.connect(str(side)) as plain:
        for statement in statements:
            plain.execute(statement)

"""A small shop behind a connection whose model is deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
from oracle_engine import OracleEngine

import vllm_relational.sql
from vllm_relational import RelationalLLM
from vllm_relational.sql import Connection

SHOP = """
CREATE TABLE product AS SELECT i AS id, 'product ' || (i % 4) AS name,
  i % 3 AS kind, i * 2.5 AS price FROM range(8) t(i);
CREATE TABLE review AS SELECT i AS id, i % 9 AS product_id,
  CASE WHEN i % 11 = 5 THEN NULL ELSE 'text ' || (i % 13) END AS text,
  DATE '2023-01-01' + i::INT AS ts, CASE WHEN i % 7 = 3 THEN NULL ELSE i % 5 END AS stars FROM range(40) t(i);
"""


@pytest.fixture
def engine() -> OracleEngine:
    return OracleEngine()


@pytest.fixture
def connect(engine: OracleEngine) -> Iterator[Callable[..., Connection]]:
    """``connect(**settings)`` opens the shop; a keyword ``engine`` takes another model."""
    opened: list[Connection] = []

    def make(engine: OracleEngine = engine, **options) -> Connection:
        connection = vllm_relational.sql.connect(llm=RelationalLLM(engine=engine), **options)
        connection.sql(SHOP)
        opened.append(connection)
        return connection

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture
def con(connect) -> Connection:
    return connect()


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A side file to be made, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "side.db"


@pytest.fixture
def shop() -> Iterator[duckdb.DuckDBPyConnection]:
    """The same tables without LLM functions."""
    with duckdb.connect() as plain:
        plain.execute(SHOP)
        yield plain

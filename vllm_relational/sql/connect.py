"""SQL with LLM functions over DuckDB: the connection that a user holds."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from vllm_relational.records import RelationalError
from vllm_relational.sql.execute import Execution, execute
from vllm_relational.sql.interrupts import interruptible, interrupts
from vllm_relational.sql.job import Job
from vllm_relational.sql.merging import Merging
from vllm_relational.sql.operator import Settings
from vllm_relational.sql.parse import Statement, holds_call, names_in, parse, statements
from vllm_relational.sql.store import Store
from vllm_relational.sql.trail import Model, Trail

if TYPE_CHECKING:
    from vllm_relational.sql.forecast import Plan

_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(?!ANALYZE\b)", re.IGNORECASE)


def connect(
    database: str | Path = ":memory:", *, llm: Model, side: str | Path | None = None, **options: Any
) -> Connection:
    """Open a DuckDB database, or make one in memory, for SQL with LLM functions.

    llm:     a ``RelationalLLM``.
    side:    a file for the operators' inputs and answers, from which a later session goes on; None keeps them in
             memory. They never go into ``database``.
    options: the fields of ``Settings`` but for ``merging``, whose own are options too: dedup, normalize, similarity,
             similar_columns, embedder, cache, audit, seed. ``read_only=True`` opens the database so.
    Raises ``RelationalError`` when a file cannot be opened.
    """
    read_only = bool(options.pop("read_only", False))
    merging = {each.name: options.pop(each.name) for each in dataclasses.fields(Merging) if each.name in options}
    settings = Settings(merging=Merging(**merging), **options)
    try:
        opened = duckdb.connect(str(database), read_only=read_only)
    except duckdb.Error as error:
        raise RelationalError(f"cannot open the database {database}: {str(error).splitlines()[0]}") from error
    try:
        return Connection(opened, llm, Path(side) if side is not None else None, settings)
    except BaseException:
        opened.close()
        raise


class Result:
    """The rows of a query, computed; ``df()``, ``arrow()``, ``fetchall()`` and what else a DuckDB relation has."""

    def __init__(self, relation: duckdb.DuckDBPyRelation, connection: duckdb.DuckDBPyConnection) -> None:
        self.relation, self._connection = relation, connection

    def arrow(self) -> pa.Table:
        """The rows as an Arrow table."""
        with interruptible(self._connection):
            return self.relation.to_arrow_table()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.relation, name)

    def __repr__(self) -> str:
        return repr(self.relation)


class Connection:
    """A DuckDB connection that knows LLM, LLM_FILTER, LLM_CLASSIFY, LLM_SCORE, LLM_EXTRACT, LLM_AGG and retrieve.

    duckdb:   the connection below, for everything else.
    last_run: what the last statement with LLM functions asked; None before the first.
    """

    def __init__(self, opened: duckdb.DuckDBPyConnection, llm: Model, side: Path | None, settings: Settings) -> None:
        self.duckdb, self.settings = opened, _with_retriever(settings)
        self._llm = llm
        self._store = Store(opened, side)
        self._frames: set[str] = set()
        self.last_run: Execution | None = None
        self._publish_errors()

    def sql(self, query: str) -> Result | None:
        """Run the statements of a text; the result of the last one, None where it has no rows.

        Raises ``SQLError`` at the place for SQL that is wrong, before anything is asked; DuckDB's own errors for
        statements without LLM functions, which go to DuckDB as they are.
        """
        frame = sys._getframe(1)
        result = None
        for statement in statements(query):
            self._register_frames(statement.text, frame)
            with interrupts():
                result = self._ask(statement) if statement.asks else self._pass_on(statement)
        return result

    execute = sql

    def _pass_on(self, statement: Statement) -> Result | None:
        with interruptible(self.duckdb):
            relation = self.duckdb.sql(statement.text)
        return Result(relation, self.duckdb) if relation is not None else None

    def _ask(self, statement: Statement) -> Result | None:
        text = statement.text
        if match := _EXPLAIN.match(text):
            plan = self._explained(text[match.end() :])
            return self._result(pa.table({"explain_key": ["llm_plan"], "explain_value": [plan]}))
        if not holds_call(parse(text)):  # a table or macro of the user's has the name
            return self._pass_on(statement)
        self.last_run = execute(self._job(text))
        rows = self.last_run.rows
        return self._result(rows) if rows is not None else None

    def _result(self, rows: pa.Table) -> Result:
        return Result(self.duckdb.from_arrow(rows), self.duckdb)

    def forecast(self, query: str) -> Plan:
        """The plan of a statement as numbers; nothing is sent to a model."""
        from vllm_relational.sql.explain import forecast

        self._register_frames(query, sys._getframe(1))
        with interrupts():
            return forecast(self._job(query))

    def explain(self, query: str) -> str:
        """The plan of a statement as a text; nothing is sent to a model."""
        self._register_frames(query, sys._getframe(1))
        return self._explained(query)

    def _job(self, text: str) -> Job:
        return Job(self.duckdb, self._store, Trail(self._llm), self.settings, text)

    def _explained(self, query: str) -> str:
        from vllm_relational.sql.explain import explain

        with interrupts():
            return explain(self._job(query))

    def report(self) -> str:
        """What the last statement with LLM functions asked, predicted against measured; '' before the first."""
        from vllm_relational.sql.explain_text import render_run

        return render_run(self.last_run, self.settings) if self.last_run is not None else ""

    def errors(self) -> Any:
        """The rows that failed, as a DataFrame: operator, inputs, reason. In SQL: the table ``llm_errors``."""
        return self._store.errors().to_pandas()

    def close(self) -> None:
        """Close the database. The LLM object stays open."""
        self._store.close()
        self.duckdb.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------- names
    def _publish_errors(self) -> None:
        """``llm_errors`` without the database's name, unless the user has a table of that name."""
        known = "SELECT 1 FROM duckdb_tables() WHERE table_name = 'llm_errors' AND database_name <> ?"
        if not self.duckdb.execute(known, [self._store.database]).fetchall():
            self.duckdb.execute(
                f"CREATE OR REPLACE TEMP VIEW llm_errors AS SELECT * FROM {self._store.schema}.llm_errors"
            )

    def _register_frames(self, text: str, frame: FrameType) -> None:
        """Make the caller's DataFrames tables, where the statement names them and the database has no such table."""
        stored = self._stored()
        for name in names_in(text):
            found = frame.f_locals.get(name, frame.f_globals.get(name))
            if name.casefold() in stored:
                if name.casefold() in self._frames:
                    self.duckdb.unregister(name)
                    self._frames.discard(name.casefold())
            elif _is_frame(found):
                self.duckdb.register(name, found)
                self._frames.add(name.casefold())

    def _stored(self) -> set[str]:
        """The tables and views of the database, without the frames that stand for one."""
        tables = self.duckdb.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        views = self.duckdb.execute("SELECT view_name FROM duckdb_views()").fetchall()
        return {name.casefold() for (name,) in tables} | ({name.casefold() for (name,) in views} - self._frames)


def _with_retriever(settings: Settings) -> Settings:
    if settings.retriever is not None:
        return settings
    from vllm_relational.retrieving import Retriever

    return dataclasses.replace(settings, retriever=Retriever())


def _is_frame(found: Any) -> bool:
    module = type(found).__module__.partition(".")[0]
    return (module == "pandas" and type(found).__name__ == "DataFrame") or (
        module in ("polars", "pyarrow", "duckdb", "_duckdb") and type(found).__name__ in FRAMES
    )


FRAMES = ("DataFrame", "LazyFrame", "Table", "RecordBatch", "RecordBatchReader", "DuckDBPyRelation")

"""SQL with LLM functions over DuckDB: the connection that a user holds."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import RLock
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import duckdb
import pyarrow as pa
from sqlglot import exp

from vllm_relational.config.arguments import SqlArguments
from vllm_relational.config.signature import takes
from vllm_relational.config.sql import Places, SqlOptions
from vllm_relational.files.named import NamedFile, check_distinct
from vllm_relational.records import RelationalError
from vllm_relational.sql.answers_database import AnswersDatabase
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.execute import Execution, execute
from vllm_relational.sql.interrupts import interruptible, interrupts
from vllm_relational.sql.operator import Settings
from vllm_relational.sql.parameters import Parameters, numbered, values_of
from vllm_relational.sql.parse import SQLError, check_text, holds_call, names_in, parse, statements
from vllm_relational.sql.session import Session, dense, reread, variables_of
from vllm_relational.sql.statement_model import Model, StatementModel

if TYPE_CHECKING:
    from vllm_relational.sql.forecast import StatementPlan

_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(?!ANALYZE\b)", re.IGNORECASE)


@takes(SqlOptions, explained=True)
def connect(
    database: str | Path = ":memory:",
    *,
    llm: Model,
    side: str | Path | None = None,
    **options: Unpack[SqlArguments],
) -> Connection:
    """Open a DuckDB database, or make one in memory, for SQL with LLM functions.

    llm:     a ``RelationalLLM``.
    side:    a file for the operators' inputs and answers, from which a later session goes on; None keeps them in
             memory. They never go into ``database``.
    Raises ``RelationalError`` when an option is wrong or a file cannot be opened.
    """
    settings = Settings.read(options)
    place = Places.read({"database": database, "side": side, "llm": llm})
    check_distinct(_named_files(database, side, settings.cache))
    try:
        opened = duckdb.connect(str(place.database), read_only=settings.read_only)
    except duckdb.Error as error:
        raise RelationalError(f"cannot open the database {database}: {str(error).splitlines()[0]}") from error
    try:
        return Connection(opened, llm, place.side, settings)
    except BaseException:
        opened.close()
        raise


def _named_files(database: str | Path, side: str | Path | None, cache: str | Path | None) -> Iterator[NamedFile]:
    names = {"the database": None if str(database).startswith(":memory:") else database, "side": side, "cache": cache}
    return (NamedFile(role, Path(name), True) for role, name in names.items() if name is not None)


class Result:
    """The rows of a query, computed; ``df()``, ``arrow()``, ``fetchall()`` and what else a DuckDB relation has."""

    def __init__(self, relation: duckdb.DuckDBPyRelation, connection: duckdb.DuckDBPyConnection, lock: RLock) -> None:
        self.relation, self._connection, self._lock = relation, connection, lock

    def arrow(self) -> pa.Table:
        """The rows as an Arrow table."""
        with self._lock, interruptible(self._connection):
            found: pa.Table = _session_of(self._connection, sys._getframe(1)).called(self.relation.to_arrow_table)
            return found

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.relation, name)
        return self._alone(found) if callable(found) else found

    def _alone(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, which waits for other threads' statements, and may read variables as a view over one does."""

        @functools.wraps(method)
        def call(*given: Any, **named: Any) -> Any:
            with self._lock:
                return _session_of(self._connection, sys._getframe(1)).called(method, *given, **named)

        return call

    def __repr__(self) -> str:
        with self._lock:
            return repr(self.relation)


class Connection:
    """A DuckDB connection that knows LLM, LLM_FILTER, LLM_CLASSIFY, LLM_SCORE, LLM_EXTRACT, LLM_AGG and retrieve.

    Several threads may use it: their statements run one after the other.

    duckdb:   the connection below, for everything else.
    last_run: what the last statement with LLM functions asked; None before the first.
    """

    def __init__(self, opened: duckdb.DuckDBPyConnection, llm: Model, side: Path | None, settings: Settings) -> None:
        self.duckdb, self.settings = opened, _with_retriever(settings)
        self._llm = llm
        self._database = AnswersDatabase(opened, side)
        self._lock = RLock()
        self.last_run: Execution | None = None
        self._publish_errors()

    def sql(self, query: str, params: Parameters = None) -> Result | None:
        """Run the statements of a text; the result of the last one, None where it has no rows.

        params: values of the parameters of the last statement: a list for ``?`` and ``$1``, a dict for ``$name``.
        A table that the database does not have is looked for among the caller's variables, as DuckDB does.
        Raises ``SQLError`` at the place for SQL that is wrong, before anything is asked; DuckDB's own errors for
        statements without LLM functions, which go to DuckDB as they are.
        """
        return self.run(query, params, sys._getframe(1))

    def execute(self, query: str, parameters: Parameters = None) -> Result | None:
        """``sql`` by the name that it has in other connections."""
        return self.run(query, parameters, sys._getframe(1))

    def run(self, query: str, params: Parameters = None, frame: FrameType | None = None) -> Result | None:
        """``sql`` with the variables of a frame; None for no variables."""
        check_text(query)
        result, parts = None, statements(query)
        with self._lock, interrupts():
            for place, part in enumerate(parts, 1):
                given = params if place == len(parts) else None
                result = self._ask(part.text, given, frame) if part.asks else self._pass_on(part.text, given, frame)
        return result

    def _pass_on(self, text: str, params: Parameters, frame: FrameType | None) -> Result | None:
        with interruptible(self.duckdb):
            relation = self._session(text, frame).verbatim(text, params)
        return self._result(relation) if relation is not None else None

    def _ask(self, text: str, params: Parameters, frame: FrameType | None) -> Result | None:
        if match := _EXPLAIN.match(text):
            plan = self._explained(self._context(_read(text[match.end() :]), params, frame))
            return self._result(
                self.duckdb.from_arrow(pa.table({"explain_key": ["llm_plan"], "explain_value": [plan]}))
            )
        read = _read(text)
        if not holds_call(read.tree):  # a table or macro of the user's has the name
            return self._pass_on(text, params, frame)
        self.last_run = execute(self._context(read, params, frame))
        rows = self.last_run.rows
        return self._result(rows) if rows is not None else None

    def _result(self, relation: duckdb.DuckDBPyRelation) -> Result:
        return Result(relation, self.duckdb, self._lock)

    def forecast(self, query: str, params: Parameters = None) -> StatementPlan:
        """The plan of one statement as numbers; nothing is sent to a model."""
        from vllm_relational.sql.explain import forecast

        with self._lock, interrupts():
            return forecast(self._context(_read_one(query, "forecast"), params, sys._getframe(1)))

    def explain(self, query: str, params: Parameters = None) -> str:
        """The plan of one statement as a text; nothing is sent to a model."""
        with self._lock, interrupts():
            return self._explained(self._context(_read_one(query, "explain"), params, sys._getframe(1)))

    def _context(self, read: _Read, params: Parameters, frame: FrameType | None) -> StatementContext:
        text = read.sql
        session = self._session(text, frame)
        session = dataclasses.replace(
            session,
            variables=reread(session.variables, session.around, names_in(text)),
            values=values_of(text, params),
        )
        return StatementContext(session, self._database, StatementModel(self._llm), self.settings, text, read.tree)

    def _session(self, text: str, frame: FrameType | None) -> Session:
        return _session_of(self.duckdb, frame, names_in(text))

    def _explained(self, context: StatementContext) -> str:
        from vllm_relational.sql.explain import explain

        return explain(context)

    def report(self) -> str:
        """What the last statement with LLM functions asked, predicted against measured; '' before the first."""
        from vllm_relational.sql.explain_text import render_run

        return render_run(self.last_run, self.settings) if self.last_run is not None else ""

    def errors(self) -> Any:
        """The rows that failed, as a DataFrame: operator, inputs, reason. In SQL: the table ``llm_errors``."""
        with self._lock:
            return self._database.errors().to_pandas()

    def close(self) -> None:
        """Close the database. The LLM object stays open."""
        with self._lock:
            self._database.close()
            self.duckdb.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _publish_errors(self) -> None:
        """``llm_errors`` without the database's name, unless the user has a table of that name."""
        known = "SELECT 1 FROM duckdb_tables() WHERE table_name = 'llm_errors' AND database_name <> ?"
        if not self.duckdb.execute(known, [self._database.name]).fetchall():
            self.duckdb.execute(
                f"CREATE OR REPLACE TEMP VIEW llm_errors AS SELECT * FROM {self._database.schema}.llm_errors"
            )


class _Read(NamedTuple):
    """A statement, read once: its text with its parameters numbered, and its tree."""

    sql: str
    tree: exp.Expr


def _read(text: str) -> _Read:
    check_text(text)
    sql = numbered(text)
    return _Read(sql, parse(sql))


def _read_one(text: str, method: str) -> _Read:
    """The statement of a text that has one, also where it stands behind EXPLAIN."""
    found = statements(text)
    if len(found) != 1:
        fix = "run those before it with sql(...), then give it alone" if found else "write it as for sql(...)"
        raise SQLError(f"{method} takes one statement, and this text has {len(found) or 'none'}: {fix}")
    behind = _EXPLAIN.match(found[0].text)
    return _read(found[0].text[behind.end() :] if behind else found[0].text)


def _session_of(connection: duckdb.DuckDBPyConnection, frame: FrameType | None, names: Iterable[str] = ()) -> Session:
    """A session for the variables of a frame; of results that a statement names, it reads the rows."""
    if frame is None:
        return Session(connection)
    return Session(connection, variables_of(frame, names, _relation_of), frame.f_globals)


def _relation_of(value: Any) -> Any:
    """What DuckDB can read of a variable."""
    return value.relation if isinstance(value, Result) else dense(value)


def _with_retriever(settings: Settings) -> Settings:
    if settings.retriever is not None:
        return settings
    from vllm_relational.query import embedders
    from vllm_relational.retrieval.retriever import Retriever

    return settings.model_copy(update={"retriever": Retriever(opens=embedders.open_embedder)})

"""The files that DuckDB itself says it opens for a statement, whatever way their names came about.

A view of the database, a macro or ``read_csv('a' || '.csv')`` name files that the statement's text does not show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from vllm_relational.files.named import NamedFile, check_distinct

_OPENED = """SELECT DISTINCT message FROM duckdb_logs WHERE type = 'FileSystem' AND contains(message, '"op":"OPEN"')"""


class OpenedFiles:
    """Of a connection, which is not used otherwise meanwhile.

    written: what the command writes at its end; no other file is looked for.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, written: NamedFile) -> None:
        self._connection, self._written = connection, written
        connection.execute("CALL enable_logging('FileSystem', storage = 'memory')").fetchall()

    def check(self) -> None:
        """Raise ``RelationalError`` where a file that DuckDB has opened so far is the one to be written."""
        for (message,) in self._connection.execute(_OPENED).fetchall():
            path = Path(json.loads(message)["path"])
            check_distinct([NamedFile("a file that the SQL opens", path, False), self._written])

    def close(self) -> None:
        """Note no more files."""
        self._connection.execute("CALL disable_logging()").fetchall()


class CheckedModel:
    """``RelationalLLM`` that is started and asked only after a check. llm: with all that it has otherwise."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.opened: OpenedFiles | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def start(self) -> Any:
        """Start the engine."""
        self.check()
        return self._llm.start()

    def run(self, *given: Any, **named: Any) -> Any:
        """Ask."""
        self.check()
        return self._llm.run(*given, **named)

    def check(self) -> None:
        """Raise ``RelationalError`` where what is read would be written."""
        if self.opened is not None:
            self.opened.check()


@contextmanager
def checking(model: CheckedModel, connection: duckdb.DuckDBPyConnection, output: Path | None) -> Iterator[None]:
    """Within the block the model refuses to be asked where DuckDB has opened the output to read it.

    Only an output that is there can be read.
    """
    if output is None or not output.exists():
        yield
        return
    model.opened = OpenedFiles(connection, NamedFile("--output", output, True))
    try:
        yield
    finally:
        model.opened.close()
        model.opened = None

"""The user's DuckDB connection as one call uses it: with the names of the caller's frame and the values of parameters.

DuckDB looks for a table that it does not have among the variables of the Python frame that calls it. So it is called
from a frame with the names of the user's own: the rules are DuckDB's, and nothing is remembered between calls.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import duckdb
import pyarrow as pa

from vllm_relational.sql.macros import Macros, read_macros
from vllm_relational.sql.markers import markers

_CALL = compile("__llm_call(*__llm_given, **__llm_named)", "<sql>", "eval")


@dataclass(frozen=True)
class Session:
    """A connection with what a statement may name.

    variables, around: the variables of the caller's frame and of its module.
    values:            of parameters, by name; the n-th without a name is called n.
    """

    connection: duckdb.DuckDBPyConnection
    variables: Mapping[str, Any] = field(default_factory=dict)
    around: dict[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def execute(self, text: str) -> duckdb.DuckDBPyConnection:
        """Run a query; its rows are fetched from what this returns."""
        values = self._values(text)
        given = {"parameters": values} if values else {}
        found: duckdb.DuckDBPyConnection = self.called(self.connection.execute, text, **given)
        return found

    def sql(self, text: str) -> duckdb.DuckDBPyRelation | None:
        """A query as a relation; None for a statement without rows."""
        values = self._values(text)
        found = self.called(self.connection.sql, text, **({"params": values} if values else {}))
        return found if found is None or isinstance(found, duckdb.DuckDBPyRelation) else None

    def relation(self, query: str) -> duckdb.DuckDBPyRelation:
        """A query that has rows."""
        found = self.sql(query)
        assert found is not None
        return found

    def verbatim(self, text: str, given: Any) -> duckdb.DuckDBPyRelation | None:
        """A statement of the user's with the parameters as he gave them."""
        found: duckdb.DuckDBPyRelation | None = self.called(
            self.connection.sql, text, **({"params": given} if given is not None else {})
        )
        return found

    @functools.cached_property
    def macros(self) -> Macros:
        """What DuckDB's functions and macros and the user's do with rows, which stays the same for a statement."""
        query = "SELECT function_name, function_type, macro_definition FROM duckdb_functions() WHERE function_type = "
        found = self.connection.execute(f"{query}'aggregate' OR function_type = 'macro'").fetchall()
        aggregates = {name for name, kind, _ in found if kind == "aggregate"}
        return read_macros(((name, body) for name, kind, body in found if kind == "macro"), aggregates)

    def interrupt(self) -> None:
        """End the query that is running."""
        self.connection.interrupt()

    def _values(self, text: str) -> dict[str, Any]:
        named = {marker.name for marker in markers(text)} if self.values else set()
        return {name: value for name, value in self.values.items() if name in named}

    def called(self, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call a method of DuckDB's from a frame with the caller's names."""
        names = {**self.variables, "__llm_call": method, "__llm_given": given, "__llm_named": named}
        return eval(_CALL, self.around, names)


def variables_of(frame: FrameType, names: Iterable[str], held: Callable[[Any], Any]) -> dict[str, Any]:
    """The variables of a frame. Those that a statement names as what DuckDB can read: held: result -> relation."""
    found = dict(frame.f_locals)
    for name in names:
        value = found.get(name, frame.f_globals.get(name))
        readable = held(value)
        if readable is not value:
            found[name] = readable
    return found


def dense(value: Any) -> Any:
    """A frame of pandas with its sparse columns as whole ones, which is what DuckDB reads; another value as it is."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(value, pandas.DataFrame):
        return value
    sparse = {name: kind.subtype for name, kind in value.dtypes.items() if isinstance(kind, pandas.SparseDtype)}
    return value.astype(sparse) if sparse else value


def reread(variables: Mapping[str, Any], around: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """The variables with tables in place of streams, which can be read once only; a plan reads them several times."""
    named = {name: variables.get(name, around.get(name)) for name in names}
    streams = {name: value for name, value in named.items() if isinstance(value, pa.RecordBatchReader)}
    return {**variables, **{name: stream.read_all() for name, stream in streams.items()}}

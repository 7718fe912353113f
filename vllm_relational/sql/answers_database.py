"""Inputs and answers of LLM operators, as tables that a user can look at and a later query goes on from.

The tables live in an attached database of their own, called ``llm``: in memory, or in a file that the user names. The
user's database never holds a half-answered table, may be read-only, and DuckDB writes only one database in a
transaction anyway. Writing goes through a connection of its own, so a rollback of the user's forgets no answer.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from vllm_relational.config import Layout
from vllm_relational.records import RelationalError
from vllm_relational.sql.blocks import LOOKUP
from vllm_relational.sql.checkpoints import NOT_KEPT, Checkpoints, Kept
from vllm_relational.sql.operator_table import ANSWERED, BLOCKED, CUT, FAILED, OperatorTable, StoredAnswers

# What the database of answers is called: the first name that the user has no database or schema of.
NAMES = ("llm", "llm_answers", "vllm_relational_answers")
# Connections to one database see each other's functions: every lookup of the process has a number of its own.
_LOOKUPS = itertools.count()
TAKEN_NAMES = "SELECT database_name FROM duckdb_databases() UNION SELECT schema_name FROM duckdb_schemas()"
OPERATOR_NAME = re.compile(r"op_[1-9][0-9]{0,8}", re.ASCII)
# Columns of an operator's table that files of earlier versions lack.
ADDED_COLUMNS = ("origin", "source", "merging")


class AnswersDatabase:
    """All operator tables behind one connection.

    side:     the database file for them; None keeps them in memory, for as long as the connection lives.
    name:     what it is called in SQL, ``llm`` unless the user has a database or schema of that name.
    volatile: whether lookups are volatile functions now. DuckDB evaluates those for no more rows than the calls that
              they stand for, were they volatile; but it takes them in fewer places.
    Raises ``RelationalError`` when the file cannot be opened.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, side: Path | None = None) -> None:
        self._user, self._side = connection, side
        self._cursor = connection.cursor()
        self.name = self.schema = ""
        self._checkpoints: Checkpoints | None = None
        self._attach(side)
        self._tables: dict[str, OperatorTable] = {}
        self._published: list[str] = []
        self._unknown = OperatorTable("unknown", "", "VARCHAR", pa.string())
        self._rows = self._dropped = 0
        self.volatile = False
        self._closed = False

    def _attach(self, side: Path | None) -> None:
        place = str(side).replace("'", "''") if side is not None else ":memory:"
        new = side is not None and not (side.exists() and side.stat().st_size)
        try:
            self._attach_as_free_name(place)
            self._cursor.execute(
                f"CREATE TABLE IF NOT EXISTS {self.schema}.operators"
                "(name VARCHAR, question VARCHAR, function VARCHAR, prompt VARCHAR, answer_type VARCHAR)"
            )
            self._cursor.execute(
                f"CREATE TABLE IF NOT EXISTS {self.schema}.llm_errors(operator VARCHAR, inputs VARCHAR, reason VARCHAR)"
            )
            if side is not None:
                self._checkpoints = Checkpoints(self._cursor, self.schema, side)
            if side is not None and new:
                side.chmod(0o600)  # answers are for its owner only
            self._keep_private()
            self._check_operators()
            if self._checkpoints is not None:
                self._checkpoints.sweep()
        except duckdb.Error as error:
            self._cursor.close()
            raise RelationalError(_cannot_open(str(side or place), error)) from error
        except BaseException:
            self._cursor.close()
            raise

    def _keep_private(self) -> None:
        """The log beside the side file holds answers too: it has the mode of the file."""
        if self._side is not None:
            with contextlib.suppress(FileNotFoundError):
                self._side.with_name(f"{self._side.name}.wal").chmod(stat.S_IMODE(self._side.stat().st_mode))

    def _check_operators(self) -> None:
        """A side file is data. Its names of tables are put into SQL: any but our own, and any twice, are refused."""
        rows = self._cursor.execute(f"SELECT name FROM {self.schema}.operators").fetchall()
        names = [name for (name,) in rows]
        bad = [name for name in names if not _is_operator(name) or names.count(name) > 1]
        if bad:
            raise RelationalError(
                f"{self._side} is damaged or no side file: its table operators has the name {bad[0]!r}, where op_1, "
                "op_2 and so on stand once each; name another with --side (side=...)"
            )

    def _attach_as_free_name(self, place: str) -> None:
        """Under the first name that is free; another thread may take it just before."""
        numbered = (f"{NAMES[0]}_{number}" for number in itertools.count(2))
        for name in itertools.chain(NAMES, numbered):
            if name in {row[0] for row in self._cursor.execute(TAKEN_NAMES).fetchall()}:
                continue
            try:
                self._cursor.execute(f"ATTACH '{place}' AS {name} (READ_WRITE)")
            except duckdb.BinderException as error:
                if f'database with name "{name}" already exists' in str(error):
                    continue
                raise
            self.name, self.schema = name, f"{name}.main"
            return

    # ---------------------------------------------------------------------------------------------------- tables
    def table(self, identity: str, function: str, prompt: str, sql_type: str) -> OperatorTable:
        """The table of a question, with what it answered before; made where there is none."""
        if identity not in self._tables:
            name = self._known(identity, sql_type) or self._new(identity, function, prompt, sql_type)
            table = OperatorTable(name, f"{self.name}.{name}", sql_type, self._arrow_type(sql_type))
            self._load(table)
            self._tables[identity] = table
        self._publish(self._tables[identity])
        return self._tables[identity]

    @property
    def unknown(self) -> OperatorTable:
        """No operator's: its lookup knows nothing, and stands for calls that were not asked yet."""
        self._publish(self._unknown)
        return self._unknown

    def _known(self, identity: str, sql_type: str) -> str | None:
        # Not by the user's collation, which may take two questions for one. Earlier versions may have had another type.
        query = f"SELECT name FROM {self.schema}.operators WHERE question COLLATE C = ? AND answer_type = ?"
        rows = self._cursor.execute(query, [identity, sql_type]).fetchall()
        return rows[0][0] if rows else None

    def _new(self, identity: str, function: str, prompt: str, sql_type: str) -> str:
        rows = self._cursor.execute(f"SELECT name FROM {self.schema}.operators").fetchall()
        name = f"op_{1 + max((int(known.removeprefix('op_')) for (known,) in rows), default=0)}"
        values = [name, identity, function, prompt, sql_type]
        self._cursor.execute(f"INSERT INTO {self.schema}.operators VALUES (?, ?, ?, ?, ?)", values)
        return name

    def _arrow_type(self, sql_type: str) -> pa.DataType:
        return self._cursor.sql(f"SELECT NULL::{sql_type} AS x").to_arrow_table().schema.field(0).type

    def _load(self, table: OperatorTable) -> None:
        if not self._exists(table.name):
            return
        self._check_types(table)
        # Another session may have had no candidates to go by.
        self._cursor.execute(f"DELETE FROM {self.schema}.{table.name} WHERE status = '{BLOCKED}'")
        for column in ADDED_COLUMNS:  # a file of an earlier version
            self._cursor.execute(f"ALTER TABLE {self.schema}.{table.name} ADD COLUMN IF NOT EXISTS {column} VARCHAR")
        query = f"SELECT key, answer, merging FROM {self.schema}.{table.name} WHERE status IN ('{ANSWERED}', '{CUT}')"
        kept = self._cursor.sql(query).to_arrow_table()
        keys, answers, merging = (kept[name].to_pylist() for name in ("key", "answer", "merging"))
        table.answers.update(zip(keys, answers, strict=True))
        table.inherited.update((key, made) for key, made in zip(keys, merging, strict=True) if made is not None)

    def _check_types(self, table: OperatorTable) -> None:
        query = f"SELECT key, answer, status FROM {self.schema}.{table.name} LIMIT 0"
        found = self._cursor.sql(query).to_arrow_table().schema.types
        if found != [pa.string(), table.arrow_type, pa.string()]:
            raise RelationalError(
                f"{self._side} is damaged or no side file: the answers in {table.name} are no {table.sql_type}; name "
                "another with --side (side=...)"
            )

    def _exists(self, name: str) -> bool:
        query = "SELECT 1 FROM duckdb_tables() WHERE database_name = ? AND table_name = ?"
        return self._cursor.execute(query, [self.name, name]).fetchall() != []

    def _publish(self, table: OperatorTable) -> None:
        """Make the table's lookups functions of SQL, unless they are; a rollback of the user's may have undone it."""
        if not table.lookups or not self._is_known(table.lookups[0]):
            table.lookups = (self._create(table, volatile=False), self._create(table, volatile=True))
        table.lookup = table.lookups[self.volatile]

    def lacks(self, table: OperatorTable, inputs: bool) -> None:
        """Whether inputs of a table's calls were left out: only then its lookup is volatile, in volatile mode."""
        table.lookup = table.lookups[self.volatile and inputs]

    def _is_known(self, lookup: str) -> bool:
        try:
            self._user.execute(f"SELECT {lookup}(NULL)").fetchall()
        except duckdb.CatalogException:
            return False
        return True

    def _create(self, table: OperatorTable, volatile: bool) -> str:
        self._published.append(f"{LOOKUP}{table.name}_{next(_LOOKUPS)}")
        self._user.create_function(
            self._published[-1],
            table.look_up,
            [duckdb.sqltype("VARCHAR")],
            duckdb.sqltype(table.sql_type),
            type=PythonUDFType.ARROW,
            null_handling=FunctionNullHandling.SPECIAL,
            side_effects=volatile,
        )
        return self._published[-1]

    def new_rows(self) -> str:
        """A name for a temporary table of rows."""
        self._rows += 1
        return f"__llm_rows_{self._rows}"

    def drop_rows(self) -> None:
        """Drop the temporary tables of the statement before."""
        for number in range(self._dropped + 1, self._rows + 1):
            self._user.execute(f"DROP TABLE IF EXISTS temp.__llm_rows_{number}").fetchall()
        self._dropped = self._rows

    # ---------------------------------------------------------------------------------------------------- answers
    @contextlib.contextmanager
    def checkpoint(self, table: OperatorTable, keys: Sequence[str], layout: Layout) -> Iterator[Kept]:
        """Options of ``RelationalLLM.run`` that keep answers as they come, beside the side file.

        A run over the same keys goes on from them after a crash, in the layout that it had then: what is left to ask
        may be too little to choose that layout again. The file goes when ``add`` has stored the run's answers.
        """
        if self._checkpoints is None:
            yield NOT_KEPT
            return
        self._checkpoints.sweep()
        yield self._checkpoints.of(table.name, keys, layout)
        self._checkpoints.sweep()

    def add(self, table: OperatorTable, settled: StoredAnswers, merging: str = "", kept: Kept = NOT_KEPT) -> None:
        """Keep what became of some inputs, in memory and in the table.

        merging: the settings that merged them; kept: the checkpoint that is not needed any more.
        """
        rows = pa.table(settled.columns(table.arrow_type, merging))
        self._append(table, rows, kept)
        statuses, made = rows["status"].to_pylist(), rows["merging"].to_pylist()
        for key, answer, reason, status, settings in zip(
            settled.keys, settled.answers, settled.reasons, statuses, made, strict=True
        ):
            table.answers[key] = answer
            if status == FAILED:
                table.failed[key] = reason
            table.inherited.pop(key, None)
            if settings is not None:
                table.inherited[key] = settings

    def _append(self, table: OperatorTable, rows: pa.Table, kept: Kept) -> None:
        place = f"{self.schema}.{table.name}"
        self._cursor.register("__rows", rows)
        try:
            self._cursor.execute("BEGIN")
            self._cursor.execute(f"CREATE TABLE IF NOT EXISTS {place} AS SELECT * FROM __rows LIMIT 0")
            self._cursor.execute(f"DELETE FROM {place} WHERE key COLLATE C IN (SELECT key FROM __rows)")
            self._cursor.execute(f"INSERT INTO {place} BY NAME SELECT * FROM __rows")
            self._cursor.execute(
                f"INSERT INTO {self.schema}.llm_errors SELECT ?, CAST(inputs AS VARCHAR), reason FROM __rows "
                f"WHERE status = '{FAILED}'",
                [table.name],
            )
            if self._checkpoints is not None and kept.name is not None:
                self._checkpoints.finish(kept.name)
            self._cursor.execute("COMMIT")
            self._keep_private()
        except BaseException:  # Ctrl-C too: a batch is stored whole or not at all
            self._cursor.execute("ROLLBACK")
            raise
        finally:
            self._cursor.unregister("__rows")

    def forget_failures(self, tables: Iterable[OperatorTable]) -> None:
        """Before a statement: what failed in an earlier one is asked again."""
        for table in tables:
            if self._exists(table.name):
                self._cursor.execute(f"DELETE FROM {self.schema}.{table.name} WHERE status = '{FAILED}'")
                self._cursor.execute(f"DELETE FROM {self.schema}.llm_errors WHERE operator = ?", [table.name])
            for key in table.failed:
                table.answers.pop(key, None)
            table.failed.clear()

    def errors(self) -> pa.Table:
        """The rows that failed and were not answered since: operator, inputs, reason."""
        return self._cursor.sql(f"SELECT * FROM {self.schema}.llm_errors").to_arrow_table()

    def close(self) -> None:
        """Detach the database of answers. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for name in self._published:
            with contextlib.suppress(duckdb.Error):  # undone by a rollback
                self._user.remove_function(name)
        self._tables.clear()
        try:
            self._cursor.execute(f"DETACH {self.name}")
        except duckdb.Error as error:  # a full disk, a damaged file
            raise RelationalError(f"cannot complete the side file {self._side}: {_first_line(error)}") from error
        finally:
            self._cursor.close()


def _is_operator(name: object) -> bool:
    return isinstance(name, str) and OPERATOR_NAME.fullmatch(name) is not None


def _first_line(error: duckdb.Error) -> str:
    return str(error).splitlines()[0]


def _cannot_open(place: str, error: duckdb.Error) -> str:
    """Why the file of answers cannot be opened, and what to do about it."""
    reason = _first_line(error)
    if "Could not set lock" in reason:
        holder = re.search(r"PID (\d+)", reason)
        who = f"another process (number {holder[1]})" if holder else "another process"
        return f"{who} has the side file {place} open: wait for it, or name another with --side (side=...)"
    if "already attached" in reason or "Unique file handle" in reason:
        return f"this process has {place} open already: close that session, or name another side file (side=...)"
    return f"cannot keep answers in {place}: {reason}"

"""The commands ``sql`` and ``explain``: option texts -> a connection, and its result -> a file or the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from vllm_relational.files.atomic import replacing
from vllm_relational.records import RelationalError
from vllm_relational.sql.connect import Connection, Result, connect
from vllm_relational.sql.cost import Prices, Rates
from vllm_relational.sql.interrupts import interruptible
from vllm_relational.sql.parse import statements
from vllm_relational.terminal import printable

SHOWN_ROWS = 50
# By suffix, what DuckDB's COPY writes.
FORMATS = {".csv": "FORMAT csv, HEADER", ".tsv": "FORMAT csv, HEADER, DELIMITER '\t'", ".parquet": "FORMAT parquet"}
FORMATS |= {".pq": "FORMAT parquet", ".jsonl": "FORMAT json", ".ndjson": "FORMAT json"}


def statement_text(sql: str | None, file: Path | None) -> str:
    """The SQL of the argument or of ``--file``; one of them must be given."""
    if (sql is None) == (file is None):
        raise RelationalError("give the SQL as an argument or with --file, one of them")
    if sql is not None:
        return sql
    assert file is not None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RelationalError(f"cannot read {file}: {error}") from error


def check_target(output: Path | None) -> None:
    """Before anything is asked: can the result be written?"""
    if output is None:
        return
    if output.suffix.lower() not in FORMATS:
        raise RelationalError(f"cannot write {output}: use a name that ends in {', '.join(sorted(FORMATS))}")


def numbers(text: str | None, option: str, count: int) -> list[float] | None:
    """``a,b``: so many numbers."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise RelationalError(f"{option} is {text!r}: write {count} numbers with commas between them")
    return values


def pricing(rates: str | None, prices: str | None) -> dict[str, Any]:
    """The options ``rates`` and ``prices`` of ``sql.connect``."""
    speed, price = numbers(rates, "--rates", 2), numbers(prices, "--prices", 3)
    return {"rates": Rates(*speed) if speed else None, "prices": Prices(*price) if price else None}


def opened(llm: Any, db: str | None, side: Path | None, **options: Any) -> Connection:
    """A connection as the options say. A database file must exist: a misspelt name would make an empty one."""
    if db is not None and db != ":memory:" and not Path(db).exists():
        raise RelationalError(f"the database {db} does not exist: check the path, or leave --db for files and queries")
    return connect(db or ":memory:", llm=llm, side=side, **options)


def run_sql(
    connection: Connection, text: str, output: Path | None, check: Callable[[], None] = lambda: None
) -> Result | None:
    """Run the statements and write or print the last one's rows. DuckDB's errors become ``RelationalError``.

    check: raises where the output must not be written after all.
    """
    try:
        result = connection.run(text)
        if result is None:
            return None
        with interruptible(connection.duckdb):
            rows = result.relation.materialize()
        if output is not None:
            check()
            _write(connection, rows, output)
        else:
            print_rows(rows, result.columns)
        return result
    except duckdb.Error as error:
        raise RelationalError(str(error).splitlines()[0]) from error


def interrupted(side: Path | None) -> str:
    """What to say after Ctrl-C."""
    if side is None:
        return "interrupted: nothing was kept; with --side FILE answers are kept, and the same command goes on"
    return f"interrupted: the answers so far are kept with {side}; the same command goes on from them"


def explained(connection: Connection, text: str) -> str:
    """The plan of the last statement that asks; the statements before it must not ask, and are run."""
    parts = statements(text)
    asking = [place for place, part in enumerate(parts) if part.asks]
    if not asking:
        raise RelationalError("the SQL calls no LLM function: there is nothing to explain")
    if len(asking) > 1:
        raise RelationalError("explain takes one statement with LLM functions: give them one by one")
    try:
        for part in parts[: asking[0]]:
            connection.run(part.text)
        plan = connection.run(f"EXPLAIN {parts[asking[0]].text}")
        assert plan is not None
        return str(plan.fetchall()[0][1])
    except duckdb.Error as error:
        raise RelationalError(str(error).splitlines()[0]) from error


def _write(connection: Connection, rows: duckdb.DuckDBPyRelation, output: Path) -> None:
    """By DuckDB, into the file that takes the output's place."""
    how = f"{FORMATS[output.suffix.lower()]}, USE_TMP_FILE false"
    try:
        with replacing(output) as file, interruptible(connection.duckdb):
            place = str(file.name).replace("'", "''")  # DuckDB finds the rows among the variables here
            connection.duckdb.execute(f"COPY rows TO '{place}' ({how})").fetchall()
    except OSError as error:
        raise RelationalError(f"cannot write {output}: {error.strerror or error}") from error
    except duckdb.IOException as error:  # of a file whose name nobody knows
        reason = re.search(r'partial[\\"]*: ([^"\\\n]+)', str(error))
        why = reason[1] if reason else "DuckDB could not write it"
        fix = "make room, or name another file; with --side the answers are kept"
        raise RelationalError(f"cannot write {output}: {why}: {fix}") from error


def print_rows(rows: duckdb.DuckDBPyRelation, names: Sequence[str]) -> None:
    """The first rows as a table on standard output, in DuckDB's words, under these names.

    Control characters in cells cannot steer the terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in names:
        table.add_column(Text(printable(name)))
    for row in rows.limit(SHOWN_ROWS).project("CAST(COLUMNS(*) AS VARCHAR)").fetchall():
        table.add_row(*(Text(printable("NULL" if value is None else value, lines=True)) for value in row))
    Console(file=sys.stdout, highlight=False, emoji=False, markup=False).print(table)
    if len(rows) > SHOWN_ROWS:
        print(f"{len(rows):,} rows, {SHOWN_ROWS} shown: write all with -o FILE")

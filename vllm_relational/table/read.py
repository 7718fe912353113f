"""Any table a user holds -> one ``pyarrow.Table``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from vllm_relational.records import RelationalError
from vllm_relational.table.content import check_text
from vllm_relational.table.csv_file import CSV_SUFFIXES, read_csv
from vllm_relational.table.json_lines import read_json_lines
from vllm_relational.table.objects import arrow_of, check_names

JSON_LINES_SUFFIXES = {".jsonl", ".ndjson"}
PARQUET_SUFFIXES = {".parquet", ".pq"}
ARROW_SUFFIXES = {".arrow", ".feather"}
READABLE = "Parquet (.parquet), CSV (.csv, .tsv), JSON lines (.jsonl, .ndjson), Arrow (.arrow, .feather)"


def read_table(source: Any) -> pa.Table:
    """Read a table from a path, or from a pandas, polars, pyarrow or DuckDB object; a table without rows is one.

    CSV cells are read as text exactly as written (``007`` stays ``007``); an empty unquoted cell is null, a quoted
    empty cell is the empty string. Cells of JSON lines and Python objects keep their own keys and types, see
    ``json_cells``. Raises ``RelationalError`` with the fix when the source cannot be read, is a file of 0 bytes that is
    not JSON lines, or has two columns of one name.
    """
    table = _read_file(Path(source)) if isinstance(source, str | Path) else _from_object(source)
    check_names(table.column_names)
    return table


def _read_file(path: Path) -> pa.Table:
    if not path.exists():
        raise RelationalError(f"{path} does not exist: check the path (current folder: {Path.cwd()})")
    if path.is_dir():
        raise RelationalError(f"{path} is a folder: name one file")
    if path.is_file() and path.stat().st_size == 0 and path.suffix.lower() not in JSON_LINES_SUFFIXES:
        raise RelationalError(f"{path} is empty (0 bytes): even a table without rows names its columns")
    if not path.is_file():
        raise RelationalError(f"{path} is not a file that can be read twice: store the table in a file first")
    reader = _reader_of(path)
    try:
        return _valid(reader(path))
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise RelationalError(f"cannot read {path}: {_first_line(error)}") from error


def _reader_of(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        return _read_parquet
    if suffix in CSV_SUFFIXES:
        return read_csv
    if suffix in JSON_LINES_SUFFIXES:
        return _read_json_lines
    if suffix in ARROW_SUFFIXES:
        return pa.feather.read_table
    unpack = " (unpack it first)" if suffix in (".gz", ".zip", ".zst", ".bz2", ".xz") else ""
    raise RelationalError(f"{path}: unknown table format {suffix or '(no suffix)'!r}{unpack}: use {READABLE}")


def _read_json_lines(path: Path) -> pa.Table:
    if path.stat().st_size:
        check_text(path)
    return read_json_lines(path)


def _read_parquet(path: Path) -> pa.Table:
    check_names(pa.parquet.read_schema(path).names)  # read_table would name the fault, but not the fix
    return pa.parquet.read_table(path)


def _from_object(source: Any) -> pa.Table:
    try:
        return _valid(arrow_of(source, READABLE))
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        reason = " ".join(str(part) for part in error.args)
        raise RelationalError(f"cannot turn the table into Arrow: {reason}") from error


def _valid(table: pa.Table) -> pa.Table:
    """The table; raises ``RelationalError`` with the column that holds times which Arrow does not have."""
    try:
        table.validate(full=True)
        return table
    except pa.ArrowInvalid:
        for place, field in enumerate(table.schema):
            if pa.types.is_temporal(field.type) and not _is_valid(table.column(place)):
                raise RelationalError(
                    f"column {field.name!r} holds values that its type {field.type} does not have, such as a time of "
                    "day of 24:00:00: give it as text (CAST(column AS VARCHAR))"
                ) from None
        raise


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

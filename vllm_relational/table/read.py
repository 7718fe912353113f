"""Any table a user holds -> one ``pyarrow.Table``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.json
import pyarrow.parquet

from vllm_relational.records import RelationalError

CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
JSON_LINES_SUFFIXES = {".jsonl", ".ndjson"}
PARQUET_SUFFIXES = {".parquet", ".pq"}
ARROW_SUFFIXES = {".arrow", ".feather"}
READABLE = "Parquet (.parquet), CSV (.csv, .tsv), JSON lines (.jsonl, .ndjson), Arrow (.arrow, .feather)"

# One line of JSON must fit into one block of the reader; a row may hold a document of many megabytes.
JSON_BLOCK_BYTES = 1 << 28


def read_table(source: Any) -> pa.Table:
    """Read a table from a path, or from a pandas, polars, pyarrow or DuckDB object.

    CSV cells are read as text exactly as written (``007`` stays ``007``); an empty unquoted cell is null, a quoted
    empty cell is the empty string. Raises ``RelationalError`` with the fix when the source cannot be read, is empty,
    or has two columns of one name.
    """
    table = _read_file(Path(source)) if isinstance(source, (str, Path)) else _from_object(source)
    _check_names(table.column_names)
    if table.num_rows == 0:
        name = str(source) if isinstance(source, (str, Path)) else "the table"
        raise RelationalError(f"{name} has no rows: nothing to ask")
    return table


def _read_file(path: Path) -> pa.Table:
    if not path.exists():
        raise RelationalError(f"{path} does not exist: check the path (current folder: {Path.cwd()})")
    if path.is_dir():
        raise RelationalError(f"{path} is a folder: name one file")
    if path.stat().st_size == 0:
        raise RelationalError(f"{path} is empty (0 bytes)")
    reader = _reader_of(path)
    try:
        table: pa.Table = reader(path)
        table.validate(full=True)  # some readers let text pass that is not UTF-8
        return table
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, OSError, UnicodeDecodeError) as error:
        raise RelationalError(f"cannot read {path}: {_first_line(error)}{_hint(path, error)}") from error


def _reader_of(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        return _read_parquet
    if suffix in CSV_SUFFIXES:
        return _read_csv
    if suffix in JSON_LINES_SUFFIXES:
        return _read_json_lines
    if suffix in ARROW_SUFFIXES:
        return pa.feather.read_table
    raise RelationalError(f"{path}: unknown table format {suffix or '(no suffix)'!r}: use {READABLE}")


def _read_parquet(path: Path) -> pa.Table:
    _check_names(pa.parquet.read_schema(path).names)  # read_table would name the fault, but not the fix
    return pa.parquet.read_table(path)


def _read_csv(path: Path) -> pa.Table:
    parse = pa.csv.ParseOptions(delimiter=CSV_SUFFIXES[path.suffix.lower()], newlines_in_values=True)
    read = pa.csv.ReadOptions(block_size=64 << 20)
    with pa.csv.open_csv(path, read_options=read, parse_options=parse) as head:
        names = head.schema.names
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return pa.csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)


def _read_json_lines(path: Path) -> pa.Table:
    read = pa.json.ReadOptions(block_size=min(max(path.stat().st_size, 1 << 20), JSON_BLOCK_BYTES))
    table = pa.json.read_json(path, read_options=read)
    as_written = pa.schema([field.with_type(_times_as_text(field.type)) for field in table.schema])
    if as_written == table.schema:
        return table
    return pa.json.read_json(path, read_options=read, parse_options=pa.json.ParseOptions(explicit_schema=as_written))


def _times_as_text(kind: pa.DataType) -> pa.DataType:
    """The type without timestamps: JSON has none, Arrow guesses them from strings such as 2020-01-01."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_times_as_text(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_times_as_text(field.type)) for field in kind])
    return kind


def _from_object(source: Any) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    try:
        return _arrow_of(source)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        reason = " ".join(str(part) for part in error.args)
        raise RelationalError(
            f"cannot turn the table into Arrow: {reason}: give the column one type, e.g. df[c] = df[c].astype(str)"
        ) from error


def _arrow_of(source: Any) -> pa.Table:
    module = type(source).__module__.split(".")[0]
    if module in {"pandas", "polars"} and type(source).__name__ == "Series":
        raise RelationalError(f"cannot read a table from a {module} {type(source).__name__}: make a DataFrame of it")
    if module == "pandas":
        return pa.Table.from_pandas(_with_text_names(_with_text_periods(source)), preserve_index=False)
    if module == "polars":
        return _from_polars(source.collect() if hasattr(source, "collect") else source)
    if hasattr(source, "__arrow_c_stream__"):
        return pa.table(source)
    if module in {"duckdb", "_duckdb"}:
        return source.to_arrow_table()
    raise RelationalError(
        f"cannot read a table from {type(source).__name__}: give a pandas or polars DataFrame, a pyarrow Table, "
        f"a DuckDB relation, or a path to {READABLE}"
    )


def _with_text_periods(frame: Any) -> Any:
    """Arrow would store a period (2020-01) as its number; its text is what the owner sees."""
    import pandas

    special = (pandas.PeriodDtype, pandas.IntervalDtype)
    names = (
        [name for name, kind in frame.dtypes.items() if isinstance(kind, special)] if hasattr(frame, "dtypes") else []
    )
    return frame.assign(**{name: frame[name].astype(str).where(frame[name].notna(), None) for name in names})


def _with_text_names(frame: Any) -> Any:
    """pandas allows any object as a column name; a prompt can only name text."""
    if not all(isinstance(name, str) for name in frame.columns):
        frame = frame.rename(columns=str)
    _check_names(frame.columns)
    return frame


def _from_polars(frame: Any) -> pa.Table:
    for name, kind in frame.schema.items():
        if str(kind) == "Object":  # Arrow would hold the addresses of the objects
            raise RelationalError(f"column {name!r} holds Python objects: turn them into text or numbers first")
    return frame.to_arrow()


def _check_names(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RelationalError(f"two columns are named {name!r}: rename one of them")
        seen.add(name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hint(path: Path, error: BaseException) -> str:
    if "UTF8" in str(error) or "utf-8" in str(error).lower():
        return f": convert it to UTF-8 first (iconv -f latin1 -t utf-8 {path.name} > utf8{path.suffix})"
    return ""

"""The answered table -> a file, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from vllm_relational.records import RelationalError
from vllm_relational.table.encode import json_text, plain_value
from vllm_relational.table.read import ARROW_SUFFIXES, CSV_SUFFIXES, JSON_LINES_SUFFIXES, PARQUET_SUFFIXES, READABLE

Writer = Callable[[pa.Table, IO[bytes]], None]


def check_output(path: Path) -> None:
    """Raise ``RelationalError`` if the answers could not be written to ``path``: before any row is asked."""
    _writer_of(path)
    folder = path.parent
    if not folder.is_dir():
        raise RelationalError(f"the folder {folder} does not exist: make it first (mkdir -p {folder})")
    if not os.access(folder, os.W_OK) or path.is_dir():
        raise RelationalError(f"cannot write {path}: choose another path with -o")


def write_table(table: pa.Table, path: Path) -> None:
    """Write ``table`` in the format of the path's suffix. A reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as out:
            _writer_of(path)(table, out)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        partial.unlink(missing_ok=True)
        raise RelationalError(f"cannot write {path}: {error}; the answers are in the checkpoint") from error


def write_json_lines(table: pa.Table, out: IO[bytes] | None = None) -> None:
    """Write one JSON object a row; to standard output when no file is given."""
    out = out or sys.stdout.buffer
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            out.write(_json_line(row).encode("utf-8", "replace") + b"\n")


def _json_line(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=plain_value, allow_nan=False)
    except ValueError:  # JSON has no NaN and no infinity: null stands for them, as in JavaScript
        return json.dumps(_finite(row), ensure_ascii=False, default=plain_value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _writer_of(path: Path) -> Writer:
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        return lambda table, out: pa.parquet.write_table(table, out, compression="zstd")
    if suffix in CSV_SUFFIXES:
        return _csv_writer(CSV_SUFFIXES[suffix])
    if suffix in JSON_LINES_SUFFIXES:
        return write_json_lines
    if suffix in ARROW_SUFFIXES:
        return lambda table, out: pa.feather.write_feather(table, out)
    raise RelationalError(f"{path}: unknown output format {suffix or '(no suffix)'!r}: use {READABLE}")


def _csv_writer(delimiter: str) -> Writer:
    options = pa.csv.WriteOptions(delimiter=delimiter, quoting_style="needed")
    return lambda table, out: pa.csv.write_csv(_flat(table), out, options)


def _flat(table: pa.Table) -> pa.Table:
    """CSV knows no lists, structs or bytes: JSON and base64 stand for them."""
    for position, column in enumerate(table.schema):
        if pa.types.is_nested(column.type):
            table = table.set_column(position, column.name, _texts(table.column(position), json_text))
        elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            table = table.set_column(position, column.name, _texts(table.column(position), plain_value))
    return table


def _texts(column: pa.ChunkedArray, render: Callable[[Any], str]) -> pa.Array:
    return pa.array([None if value is None else render(value) for value in column.to_pylist()], pa.large_string())

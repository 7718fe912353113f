"""Tables in the formats of files: what a format has no type for becomes text, and nothing is lost on the way."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from vllm_relational.records import RelationalError
from vllm_relational.table.cell_text import is_json, json_text, json_texts, plain_value, python_values
from vllm_relational.table.csv_file import CSV_SUFFIXES
from vllm_relational.table.read import ARROW_SUFFIXES, JSON_LINES_SUFFIXES, PARQUET_SUFFIXES, READABLE

Writer = Callable[[pa.Table, IO[bytes]], None]
BATCH_ROWS = 1024
MAX_PLAIN_DECIMALS = 6  # with more, Arrow writes small numbers with an exponent
JSON_TYPES = (dict, list, tuple, bool, int, float)


def writer_of(path: Path) -> Writer:
    """What writes a table in the format of the path's suffix; ``RelationalError`` for a suffix that is none."""
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        return lambda table, out: pa.parquet.write_table(for_parquet(table), out, compression="zstd")
    if suffix in CSV_SUFFIXES:
        return _csv_writer(CSV_SUFFIXES[suffix])
    if suffix in JSON_LINES_SUFFIXES:
        return write_json_lines
    if suffix in ARROW_SUFFIXES:
        return lambda table, out: pa.feather.write_feather(table, out)
    raise RelationalError(f"{path}: unknown output format {suffix or '(no suffix)'!r}: use {READABLE}")


def write_json_lines(table: pa.Table, out: IO[bytes] | None = None) -> None:
    """Write one JSON object a row; to standard output when no file is given. JSON cells stand as they are."""
    out = out or sys.stdout.buffer
    names = [json.dumps(name, ensure_ascii=False) for name in table.column_names]
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        columns = [[text or "null" for text in json_texts(column)] for column in batch.columns]
        for cells in zip(*columns, strict=True) if columns else [()] * batch.num_rows:
            line = ", ".join(f"{name}: {cell}" for name, cell in zip(names, cells, strict=True))
            out.write(b"{" + line.encode("utf-8", "replace") + b"}\n")


# ------------------------------------------------------------------------------------------------------------- CSV
def _csv_writer(delimiter: str) -> Writer:
    options = pa.csv.WriteOptions(delimiter=delimiter, quoting_style="needed")
    return lambda table, out: pa.csv.write_csv(for_csv(table), out, options)


def for_csv(table: pa.Table) -> pa.Table:
    """CSV knows no lists, structs, bytes or spans of time: JSON, base64 and their texts stand for them."""
    for place, field in enumerate(table.schema):
        if pa.types.is_float32(field.type) or pa.types.is_float64(
            field.type
        ):  # NaN would be read again as the text nan
            column = table.column(place)
            missing = pa.scalar(None, field.type)
            table = table.set_column(place, field.name, pc.if_else(pc.is_nan(column), missing, column))
    return _with_texts(table, _fits_csv, as_json=False)


def _fits_csv(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _fits_csv(kind.value_type)
    if pa.types.is_decimal128(kind):
        return bool(0 <= kind.scale <= MAX_PLAIN_DECIMALS)
    known = [pa.types.is_integer, pa.types.is_boolean, pa.types.is_float32, pa.types.is_float64]
    known += [pa.types.is_string, pa.types.is_large_string, pa.types.is_date, pa.types.is_timestamp, pa.types.is_null]
    return any(is_kind(kind) for is_kind in known)


# --------------------------------------------------------------------------------------------------------- Parquet
def for_parquet(table: pa.Table) -> pa.Table:
    """Parquet as Arrow writes it has no intervals of months and days, no unions, no structs without fields and no views
    in lists."""
    table = _with_texts(table, _fits_parquet, as_json=True)
    for place, field in enumerate(table.schema):
        plain = _without_views(field.type)
        if pa.types.is_nested(field.type) and plain != field.type:
            table = table.set_column(place, field.name, table.column(place).cast(plain))
    return table


def _without_views(kind: pa.DataType) -> pa.DataType:
    if kind in (pa.string_view(), pa.binary_view()):
        return pa.large_string() if kind == pa.string_view() else pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_without_views(kind.key_type), _without_views(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_without_views(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_without_views(kind.value_type))
    return pa.large_list(_without_views(kind.value_type)) if pa.types.is_large_list(kind) else kind


def _fits_parquet(kind: pa.DataType) -> bool:
    if pa.types.is_interval(kind) or pa.types.is_union(kind) or pa.types.is_run_end_encoded(kind):
        return False
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return False
    return all(_fits_parquet(child) for child in _children(kind))


def _children(kind: pa.DataType) -> Iterator[pa.DataType]:
    return (kind.field(place).type for place in range(kind.num_fields))


# ----------------------------------------------------------------------------------------------------------- texts
def _with_texts(table: pa.Table, fits: Callable[[pa.DataType], bool], as_json: bool) -> pa.Table:
    """The table with texts in place of the columns of types that do not fit; as_json: nested ones are JSON columns."""
    for place, field in enumerate(table.schema):
        if not fits(field.type):
            table = table.set_column(place, field.name, _text_column(table.column(place), as_json))
    return table


def _text_column(column: pa.ChunkedArray, as_json: bool) -> pa.Array:
    if is_json(column.type):
        return pa.array(json_texts(column), pa.large_string())
    if as_json and pa.types.is_nested(column.type) and not pa.types.is_run_end_encoded(column.type):
        return pa.array(json_texts(column), pa.json_())
    return pa.array([_text(value) for value in python_values(column)], pa.large_string())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if math.isinf(value) else None
    return json_text(value) if isinstance(value, JSON_TYPES) else str(plain_value(value))

"""Dictionary encoding: a cell becomes the number of its distinct value, a value its JSON text.

Everything after this room works on integers; a value is turned into text once, however often it occurs.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_relational.records import NULL_CODE, EncodedTable, RelationalError


def encode_columns(table: pa.Table, names: Sequence[str]) -> EncodedTable:
    """Encode the named columns of ``table``.

    NaN counts as null. Codes number distinct values in order of first appearance. Nested and binary values are
    compared by their JSON text. Memory: 4 bytes a cell and the distinct texts.
    """
    codes = np.empty((len(names), table.num_rows), dtype=np.int32)
    values, is_text = [], []
    for position, name in enumerate(names):
        try:
            codes[position], texts = _encode(table.column(name))
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise RelationalError(
                f"cannot read the values of column {name!r} ({table.column(name).type}): {error}"
            ) from error
        values.append(texts)
        is_text.append(pa.types.is_large_string(_plain(table.column(name).slice(0, 0)).type))
    return EncodedTable(tuple(names), codes, tuple(values), tuple(is_text))


def nulls_as_values(table: EncodedTable) -> EncodedTable:
    """Give the null of each column a code of its own, with the JSON text null."""
    codes, values = table.codes.copy(), list(table.values)
    for column, row in enumerate(codes):
        if (row == NULL_CODE).any():
            row[row == NULL_CODE] = len(values[column])
            values[column] = [*values[column], "null"]
    return EncodedTable(table.names, codes, tuple(values), table.is_text)


def fingerprint(table: EncodedTable) -> str:
    """Digest of names, values and their places: equal for equal tables."""
    digest = hashlib.blake2b(digest_size=16)
    for name, codes, values in zip(table.names, table.codes, table.values, strict=True):
        digest.update(repr((name, len(values))).encode())
        digest.update(np.ascontiguousarray(codes).tobytes())
        for value in values:
            digest.update(value.encode("utf-8", "replace") + b"\n")
    return digest.hexdigest()


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    column = _plain(column)
    render: Callable[[Any], str] = json_text
    try:
        encoded = column.dictionary_encode()
    except pa.ArrowNotImplementedError:  # lists, structs and other nested values
        encoded = _json_column(column).dictionary_encode()
        render = str
    encoded = encoded.unify_dictionaries()
    if encoded.num_chunks == 0:
        return np.empty(0, np.int32), []
    codes = [chunk.indices.fill_null(NULL_CODE).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    texts = [render(value) for value in _python_values(encoded.chunk(0).dictionary)]
    return np.concatenate(codes).astype(np.int32, copy=False), texts


def _python_values(values: pa.Array) -> list[Any]:
    """As ``to_pylist``, with dates and times beyond Python's years as text."""
    try:
        return list(values.to_pylist())
    except (OverflowError, ValueError):
        if not (pa.types.is_date(values.type) or pa.types.is_timestamp(values.type)):
            raise
        return [_near_or_far(value) for value in values]


def _near_or_far(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        most = 2**31 - 1 if pa.types.is_date32(value.type) else 2**63 - 1
        if abs(value.value) >= most:  # what DuckDB stores for its infinite dates
            return "infinity" if value.value > 0 else "-infinity"
        unit = "D" if pa.types.is_date32(value.type) else getattr(value.type, "unit", "ms")
        return str(np.datetime_as_string(np.array(value.value, f"datetime64[{unit}]")))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Drop encodings that only concern storage, and make NaN null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return column.cast(pa.large_string())
    if pa.types.is_floating(kind):
        return _nan_to_null(column)
    return column


def _nan_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type != pa.float64():
        # By way of text: 0.1 in single precision is 0.1 to its owner, not 0.10000000149011612.
        column = column.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)


def _json_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = [None if value is None else json_text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def json_text(value: Any) -> str:
    """JSON of one cell on one line: non-ASCII characters kept, dates in ISO 8601, bytes in base64."""
    return json.dumps(value, ensure_ascii=False, default=plain_value)


def plain_value(value: Any) -> Any:
    """``default`` of ``json.dumps`` for what a table may hold and JSON has no type for."""
    if isinstance(value, (datetime.date, datetime.time, datetime.datetime)):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)

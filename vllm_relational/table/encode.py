"""Dictionary encoding: a cell becomes the number of its distinct value, a value its JSON text.

Everything after this package works on integers; a value is turned into text once, however often it occurs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_relational.records import NULL_CODE, EncodedTable, RelationalError
from vllm_relational.table.cell_text import (
    CELLS,
    JSON_CELLS,
    holds_bytes,
    is_json,
    json_text,
    json_texts,
    python_values,
)

LOOK_ROWS = 1024  # whose cells are looked at together


def encode_columns(table: pa.Table, names: Sequence[str]) -> EncodedTable:
    """Encode the named columns of ``table``.

    NaN counts as null. Codes number distinct values in order of first appearance. Nested values are compared by their
    JSON text. Memory: 4 bytes a cell and the distinct texts. Raises ``RelationalError`` naming the column for bytes,
    which no model reads, and for values that have no text.
    """
    codes = np.empty((len(names), table.num_rows), dtype=np.int32)
    values, is_text = [], []
    for position, name in enumerate(names):
        column = table.column(name)
        cells = (table.field(name).metadata or {}).get(CELLS)
        _refuse_bytes(name, column)
        try:
            codes[position], texts = _encode(column.cast(pa.json_()) if cells == JSON_CELLS else column)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise RelationalError(f"cannot read the values of column {name!r} ({column.type}): {error}") from error
        values.append(texts)
        is_text.append(cells is None and pa.types.is_large_string(_plain(column.slice(0, 0)).type))
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


def _refuse_bytes(name: str, column: pa.ChunkedArray) -> None:
    if not holds_bytes(column.type):
        return
    cells = (
        cell for start in range(0, len(column), LOOK_ROWS) for cell in python_values(column.slice(start, LOOK_ROWS))
    )
    first = next((row for row, cell in enumerate(cells) if _with_bytes(cell)), None)
    place = "" if first is None else f", row {first} (counted from 0)"
    raise RelationalError(
        f"column {name!r}{place} holds bytes ({column.type}), which a model cannot read: name only other columns in "
        "the prompt (instead of {*}), or store it as text first, e.g. decoded or described"
    )


def _with_bytes(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(_with_bytes(part) for part in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, bytes)


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    column = _plain(column)
    render: Callable[[Any], str] = json_text
    try:
        encoded = column.dictionary_encode()
    except pa.ArrowNotImplementedError:  # lists, structs and other nested values
        encoded = pa.chunked_array([pa.array(json_texts(column), pa.large_string())]).dictionary_encode()
        render = str
    encoded = encoded.unify_dictionaries()
    if encoded.num_chunks == 0:
        return np.empty(0, np.int32), []
    codes = [chunk.indices.fill_null(NULL_CODE).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    texts = [render(value) for value in python_values(encoded.chunk(0).dictionary)]
    return np.concatenate(codes).astype(np.int32, copy=False), texts


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Drop encodings that only concern storage, and make NaN null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return _plain(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], kind.value_type))
    if isinstance(kind, pa.BaseExtensionType) and not is_json(kind) and not isinstance(kind, pa.UuidType):
        return _plain(column.cast(kind.storage_type))
    if pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return column.cast(pa.large_string())
    if pa.types.is_floating(kind):
        return _nan_to_null(column)
    return column


def _nan_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # By way of text: 0.1 in single precision is 0.1 to its owner, not 0.10000000149011612.
    if column.type == pa.float16():
        cells = column.to_numpy().astype(str)  # Arrow prints it with the digits of a double
        column = pa.chunked_array([pa.array(cells, pa.string())]).cast(pa.float64())
    if column.type == pa.float32():
        column = column.cast(pa.string()).cast(pa.float64())
    return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)

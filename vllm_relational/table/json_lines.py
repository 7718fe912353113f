"""JSON lines -> an Arrow table whose cells are those of the file.

The library is msgspec: it splits a line into the raw texts of its values, so that each value can be kept exactly as
written. Arrow's own reader infers types block by block, fills in keys that a cell does not have, takes strings that
look like times for times, and refuses a key whose cells differ in kind.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from vllm_relational.records import RelationalError
from vllm_relational.table.cell_text import is_json, json_text, one_line
from vllm_relational.table.content import BYTE_ORDER_MARK, wrong_encoding
from vllm_relational.table.json_cells import column_type, json_column, nested_column

# Lines whose values are turned into Arrow together: what is held as Python objects at a time.
CHUNK_LINES = 16384
# More keys than this are values that stand in the place of keys.
MAX_KEYS = 10_000
# Of the record that ``run`` keeps beside an output, see ``cli_resume.sidecar``.
RECORD_SUFFIX = ".job.json"
MAX_EXACT = 2**53  # beyond, not every whole number is a double
TEXT, BOOL, NUMBER, NESTED = "text", "bool", "number", "nested"
KINDS = {b'"': TEXT, b"t": BOOL, b"f": BOOL, b"[": NESTED, b"{": NESTED}

_LINE = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NOT_FINITE = re.compile(r'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')


def read_json_lines(path: Path) -> pa.Table:
    """The table of a file with one JSON object a line; keys are columns, a missing key is null.

    A column has the type of its values: text, bool, int64, float64, or a nested type that gives every cell back as it
    was written. Where no such type does, it is a column of JSON texts. Of an output of ours without rows the record
    beside it names the columns, another file without rows has none. Raises ``RelationalError`` naming the line.
    """
    columns: dict[str, list[pa.Array]] = {}
    sizes: list[int] = []
    rows = _rows(path)
    while batch := list(islice(rows, CHUNK_LINES)):
        for name in dict.fromkeys(name for row in batch for name in row):
            columns.setdefault(name, [pa.nulls(size, pa.large_binary()) for size in sizes])
        if len(columns) > MAX_KEYS:
            raise RelationalError(
                f"{path} has more than {MAX_KEYS:,} keys, and each is a column: put what varies under one key"
            )
        sizes.append(len(batch))
        for name, chunks in columns.items():
            chunks.append(pa.array([_cell(row, name) for row in batch], pa.large_binary()))
    if not sizes:
        return pa.table({name: pa.nulls(0) for name in _names_in_record(path)})
    return pa.table({name: _column(chunks) for name, chunks in columns.items()})


def _names_in_record(path: Path) -> list[str]:
    """Lines have no place for the names of the columns of a table without rows."""
    try:
        names = json.loads(path.with_name(path.name + RECORD_SUFFIX).read_bytes())["outputs"][0]["columns"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return list(dict.fromkeys(map(str, names))) if isinstance(names, list) else []


def _cell(row: dict[str, bytes], name: str) -> bytes | None:
    raw = row.get(name)
    return None if raw == b"null" else raw


# ----------------------------------------------------------------------------------------------------------- lines
def _rows(path: Path) -> Iterator[dict[str, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield _row(path, number, line)


def _row(path: Path, number: int, line: bytes) -> dict[str, bytes]:
    """The raw JSON of every value of one line."""
    try:
        line.isascii() or line.decode()
        row = {name: bytes(raw) for name, raw in _split(line).items()}
    except UnicodeDecodeError as error:
        raise wrong_encoding(path, number, error) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RelationalError(f"cannot read {path}: line {number} {_fault(line, error)}") from error
    # One '":' a key tells without parsing again that no key stands twice, of which msgspec keeps the last.
    colons = len(row) + sum(raw.count(b'":') for raw in row.values())
    if line.count(b'":') != colons or b" :" in line or b"\t:" in line:
        _refuse_repeated_key(path, number, line)
    return row


def _split(line: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _LINE.decode(line)
    except msgspec.MsgspecError:
        text = line.decode()
        finite = _NOT_FINITE.sub(_finite, text)
        if finite == text:
            raise
        return _LINE.decode(finite)


def _finite(found: re.Match[str]) -> str:
    """JSON has no NaN and no infinity; some write them: as ``cell_text.json_text``."""
    if found[0].startswith('"'):
        return found[0]
    return "null" if found[0].endswith("NaN") else json_text(float(found[0]))


def _refuse_repeated_key(path: Path, number: int, line: bytes) -> None:
    try:
        keys = [key for key, _ in json.loads(line, object_pairs_hook=list)]
    except (ValueError, RecursionError):  # deeper than Python's reader goes
        return
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise RelationalError(
                f"cannot read {path}: line {number} has the key {key!r} twice: two columns are named {key!r}; rename "
                "one of them"
            )


def _fault(line: bytes, error: Exception) -> str:
    """What is wrong with a line, and what to do."""
    try:
        value = json.loads(line.strip())
    except RecursionError:
        return "is nested too deep: store the inner part as text"
    except ValueError as wrong:
        return _no_json(line.strip(), wrong)
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a text", type(None): "null"}.get(type(value), "a number or a truth value")
        return f"is {kind}, not an object with a key for each column: write one object a line"
    halves = [key for key, item in value.items() if not _encodes(key) or not _encodes(item)]
    if halves:
        return (
            f"has half a character (a lone surrogate such as \\ud800) in {halves[0]!r}, which is no valid Unicode: "
            "mend or remove it"
        )
    return f"is not JSON: {error}: mend or remove it"


def _no_json(line: bytes, error: ValueError) -> str:
    if line.startswith(b"["):
        return "begins an array: the file must hold one object a line, without brackets and commas around them"
    if line in (b"{", b"}", b"]"):
        return f"is {line.decode()!r} alone: an object must stand on one line, not over several"
    place = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return f"is not JSON: {message}{place}: mend or remove it"


def _encodes(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------- columns
def _column(chunks: Sequence[pa.Array]) -> pa.ChunkedArray:
    """One column of the file; every chunk holds raw JSON texts."""
    raw = pa.chunked_array(chunks)
    first_bytes = pc.unique(pc.binary_slice(raw, 0, 1)).to_pylist()
    kinds = {KINDS.get(first, NUMBER) for first in first_bytes if first is not None}
    if not kinds:
        return pa.chunked_array([pa.nulls(len(raw))])
    if len(kinds) == 1:
        (kind,) = kinds
        typed = _number_column(raw) if kind == NUMBER else _nested(raw) if kind == NESTED else _decoded(raw, kind)
        if typed is not None:
            return typed
    return pa.chunked_array([json_column(_texts(chunk)) for chunk in raw.chunks])


def _decoded(raw: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    python, arrow = (str, pa.string()) if kind == TEXT else (bool, pa.bool_())
    return pa.chunked_array([pa.array(_values(chunk, python), arrow) for chunk in raw.chunks])


def _number_column(raw: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """int64, or float64 where it holds every number; None else."""
    whole = not pc.any(pc.match_substring_regex(raw, "[.eE]")).as_py()
    try:
        if whole:
            return pa.chunked_array([pa.array(_values(chunk, int), pa.int64()) for chunk in raw.chunks])
        values = [_values(chunk, int | float) for chunk in raw.chunks]
    except (OverflowError, msgspec.MsgspecError):
        return None
    if not all(value is None or _is_double(value) for chunk in values for value in chunk):
        return None
    return pa.chunked_array([pa.array(chunk, pa.float64()) for chunk in values])


def _is_double(value: float) -> bool:
    return abs(value) <= MAX_EXACT if isinstance(value, int) else math.isfinite(value)


def _nested(raw: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = [_texts(chunk) for chunk in raw.chunks]
    kind = column_type([text for chunk in texts for text in chunk])
    if is_json(kind):
        return pa.chunked_array([json_column(chunk) for chunk in texts])
    return pa.chunked_array([nested_column(chunk, kind) for chunk in texts])


def _texts(chunk: pa.Array) -> list[str | None]:
    return [None if raw is None else one_line(raw.decode()) for raw in chunk.to_pylist()]


def _values(chunk: pa.Array, kind: Any) -> list[Any]:
    cells = (b"null" if raw is None else raw for raw in chunk.to_pylist())
    values: list[Any] = msgspec.json.decode(b"[" + b",".join(cells) + b"]", type=list[kind | None])
    return values

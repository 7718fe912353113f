"""The text of a cell: JSON on one line, for prompts and for output files alike.

Spans of time are written as DuckDB prints them, so that ``run`` and SQL send the same text. DuckDB's arithmetic is
``Interval`` in its source: months, days and microseconds are three numbers, shown one after the other.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

NANOSECONDS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
# Metadata of a column of texts: what its cells are, where they are no texts of the user's. JSON texts are JSON; printed
# ones are numbers or times as DuckDB prints them, which have no normal form.
CELLS = b"vllm_relational.cells"
JSON_CELLS, PRINTED_CELLS = b"json", b"printed"

MAX_DIGITS = 76  # of Arrow's widest decimal

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[,:]|[^\s,:"]+')
_NO_FRACTION = re.compile(r"\.0+$")
_YEAR_BEFORE_1 = re.compile(r"(?P<year>-\d+|0000)(?P<day>-\d\d-\d\d)(?P<time>.*)")
_SPACED = {",": ", ", ":": ": "}


# --------------------------------------------------------------------------------------------------- JSON of values
def json_text(value: Any) -> str:
    """JSON of one cell on one line: non-ASCII characters kept, dates in ISO 8601, decimals in digits, bytes in base64.

    JSON has no NaN and no infinity: at any depth NaN is null and infinity the text that DuckDB prints, ``inf``.
    """
    try:
        return _ENCODER.encode(value)
    except ValueError:
        return _ENCODER.encode(_finite(value))


def plain_value(value: Any) -> Any:
    """``default`` of ``json.dumps`` for what a table may hold and JSON has no type for."""
    if isinstance(value, datetime.date | datetime.time | datetime.datetime):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return decimal_text(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=plain_value)


def one_line(text: str) -> str:
    """JSON as ``json.dumps`` lays it out, with every key and every number as written.

    ``json.loads`` and ``json.dumps`` would drop repeated keys, and write 1e400 and long fractions otherwise.
    """
    return "".join(_SPACED.get(token) or _string(token) for token in _TOKEN.findall(text))


def _string(token: str) -> str:
    if not token.startswith('"') or "\\" not in token:
        return token
    return json.dumps(json.loads(token), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return str(value) if math.isinf(value) else None


def decimal_text(value: decimal.Decimal) -> str | None:
    """All digits without an exponent, as DuckDB prints a DECIMAL; beyond what any decimal type holds, as written.

    NaN is None and infinity ``inf``, as for floats.
    """
    if not value.is_finite():
        return None if value.is_nan() else str(float(value))
    zeros = max(abs(value.adjusted()), abs(int(value.as_tuple().exponent)))
    return f"{value:f}" if zeros <= MAX_DIGITS else str(value)


# --------------------------------------------------------------------------------------------------- Arrow columns
def is_json(kind: pa.DataType) -> bool:
    """Whether cells are JSON texts: each keeps the keys and the types that it has."""
    return bool(getattr(kind, "extension_name", "") == "arrow.json")


def json_texts(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """The JSON text of every cell, None where it is null."""
    if is_json(column.type):
        return [None if text is None else _json_cell(text) for text in _storage(column).to_pylist()]
    return [None if value is None else json_text(value) for value in python_values(column)]


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """As ``to_pylist``, with values that JSON takes; what Python cannot hold exactly is text."""
    column = _storage(column)
    if not _needs_care(column.type):
        return list(column.to_pylist())
    return [_value(cell) for cell in column]


def _storage(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    if not isinstance(column.type, pa.BaseExtensionType) or isinstance(column.type, pa.UuidType):
        return column
    return column.cast(column.type.storage_type)


def _json_cell(text: str) -> str:
    """A JSON column of another program may hold line breaks, or something that is no JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return one_line(text) if "\n" in text or "\r" in text else text


def _needs_care(kind: pa.DataType) -> bool:
    if any(_needs_care(kind.field(place).type) for place in range(kind.num_fields)):
        return True
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _needs_care(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return True
    narrow = pa.types.is_float16(kind) or pa.types.is_float32(kind)
    return bool(narrow or pa.types.is_map(kind) or pa.types.is_union(kind) or pa.types.is_temporal(kind))


def _value(cell: pa.Scalar) -> Any:
    if not cell.is_valid:
        return None
    for is_kind, value_of in _VALUES:
        if is_kind(cell.type):
            return value_of(cell)
    return cell.as_py()


def _struct(cell: pa.StructScalar) -> dict[str, Any]:
    return {name: _value(item) for name, item in cell.items()}


def _list(cell: pa.ListScalar) -> list[Any] | None:
    return [_value(item) for item in cell.values]


def _map(cell: pa.MapScalar) -> Any:
    """An object; a list of pairs where a key occurs twice."""
    pairs = [(_value(item["key"]), _value(item["value"])) for item in cell.values]
    keys = [key if isinstance(key, str) else json_text(key).strip('"') for key, _ in pairs]
    if len(set(keys)) < len(keys):
        return [list(pair) for pair in pairs]
    return {key: value for key, (_, value) in zip(keys, pairs, strict=True)}


def _narrow(cell: pa.Scalar) -> float:
    """0.1 in single precision is 0.1 to its owner, not 0.10000000149011612."""
    value = cell.as_py()
    return float(str(np.float32(value) if pa.types.is_float32(cell.type) else np.float16(value)))


def _date_or_time(cell: pa.Scalar) -> Any:
    """With dates beyond Python's years as text."""
    try:
        return cell.as_py()
    except (OverflowError, ValueError):
        most = 2**31 - 1 if pa.types.is_date32(cell.type) else 2**63 - 1
        if abs(cell.value) >= most:  # what DuckDB stores for its infinite dates
            return "infinity" if cell.value > 0 else "-infinity"
        unit = "D" if pa.types.is_date32(cell.type) else getattr(cell.type, "unit", "ms")
        moment = np.array(cell.value, f"datetime64[{unit}]")
        text = str(np.datetime_as_string(moment.astype("datetime64[D]") if pa.types.is_date(cell.type) else moment))
        return _before_christ(_NO_FRACTION.sub("", text))


def _before_christ(text: str) -> str:
    """ISO 8601 has a year 0; years before 1 are written as DuckDB prints them: ``0044-03-15 (BC)``."""
    found = _YEAR_BEFORE_1.match(text)
    if found is None:
        return text
    return f"{1 - int(found['year']):04}{found['day']} (BC){found['time'].replace('T', ' ')}"


def _time_of_day(cell: pa.Scalar) -> str:
    return clock_text(cell.value * NANOSECONDS[cell.type.unit])


def _interval(cell: pa.MonthDayNanoIntervalScalar) -> str:
    return interval_text(*cell.as_py())


def _duration(cell: pa.DurationScalar) -> str:
    return interval_text(0, 0, cell.value * NANOSECONDS[cell.type.unit])


def _is_list(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


_VALUES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], Any]], ...] = (
    (pa.types.is_struct, _struct),
    (pa.types.is_map, _map),
    (_is_list, _list),
    (pa.types.is_interval, _interval),
    (pa.types.is_duration, _duration),
    (pa.types.is_time, _time_of_day),
    (pa.types.is_temporal, _date_or_time),
    (lambda kind: pa.types.is_float16(kind) or pa.types.is_float32(kind), _narrow),
    (lambda kind: isinstance(kind, pa.UuidType), lambda cell: str(cell.as_py())),
    (lambda kind: isinstance(kind, pa.BaseExtensionType), lambda cell: _value(cell.value)),
    (lambda kind: pa.types.is_dictionary(kind) or pa.types.is_union(kind), lambda cell: _value(_inner(cell))),
)


def _inner(cell: Any) -> pa.Scalar:
    if pa.types.is_union(cell.type):
        return cell.value
    return cell.dictionary[cell.index.as_py()]


# --------------------------------------------------------------------------------------------------- spans of time
def interval_text(months: int, days: int, nanoseconds: int) -> str:
    """An INTERVAL as DuckDB prints it, and digits below the microsecond where there are any."""
    years, months = _toward_zero(months, 12)
    parts = [_counted(years, "year"), _counted(months, "month"), _counted(days, "day")]
    if nanoseconds or not any(parts):
        parts.append(clock_text(nanoseconds))
    return " ".join(filter(None, parts))


def clock_text(nanoseconds: int) -> str:
    """``[-]HH:MM:SS[.fraction]`` without zeros at its end; hours may be more than 23."""
    sign, nanoseconds = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}"


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if abs(number) == 1 else 's'}" if number else ""


def _toward_zero(number: int, divisor: int) -> tuple[int, int]:
    quotient = abs(number) // divisor * (1 if number >= 0 else -1)
    return quotient, number - quotient * divisor


# --------------------------------------------------------------------------------------------------- binary cells
def holds_bytes(kind: pa.DataType) -> bool:
    """Whether there are bytes in the cells, at any depth; a UUID has a text."""
    if isinstance(kind, pa.UuidType):
        return False
    if isinstance(kind, pa.BaseExtensionType):
        return holds_bytes(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return holds_bytes(kind.value_type)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in binary) or any(holds_bytes(child) for child in _children(kind))


def _children(kind: pa.DataType) -> Iterable[pa.DataType] | Iterator[pa.DataType]:
    return (kind.field(place).type for place in range(kind.num_fields))

"""Python objects in the cells of a frame -> values of JSON, or the reason why there are none.

Arrow never sees a container of the user's: it follows one that holds itself until the process has no stack left, and
gives all dicts of a column the same keys.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vllm_relational.table.cell_text import NANOSECONDS, decimal_text, interval_text

MAX_LEVELS = 100  # of lists and dicts in a cell
BYTES = (bytes, bytearray, memoryview)
# DuckDB's reader of pandas frames counts months of 30 days.
NANOSECONDS_A_DAY = 86_400_000_000_000
DAYS_A_MONTH = 30


class NestingError(ValueError):
    """A cell of more than ``MAX_LEVELS`` levels, or one that holds itself."""


class BytesError(TypeError):
    """A cell with bytes in it, for which JSON has no form."""


def is_container(kind: type) -> bool:
    """Whether cells of that type may hold other cells, as lists, dicts, their views and arrays do."""
    return hasattr(kind, "__iter__") and not issubclass(kind, (str, *BYTES))


def is_null(cell: Any) -> bool:
    """Whether a cell is one of the values that stand for none: None, NaN, ``pandas.NA``, ``pandas.NaT``."""
    import pandas

    return cell is None or cell is pandas.NA or cell is pandas.NaT or (isinstance(cell, float) and cell != cell)


def json_ready(value: Any, keep_bytes: bool = False, levels: int = MAX_LEVELS) -> Any:
    """A Python object as values of JSON; floats may be NaN or infinite, see ``cell_text.json_text``.

    keep_bytes: bytes stay bytes. Raises ``NestingError``, ``BytesError``, and ``TypeError`` for another type that JSON
    has no form for.
    """
    if isinstance(value, np.ndarray | np.generic):
        return json_ready(_of_numpy(value), keep_bytes, levels)
    if isinstance(value, Mapping | list | tuple):
        if levels == 0:
            raise NestingError
        if isinstance(value, Mapping):
            return _object((_key(key), json_ready(item, keep_bytes, levels - 1)) for key, item in value.items())
        return [json_ready(item, keep_bytes, levels - 1) for item in value]
    if isinstance(value, BYTES):
        if keep_bytes:
            return bytes(value)
        raise BytesError(type(value).__name__)
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if is_null(value):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return interval_text(*months_days_rest(nanoseconds(value)))
    if isinstance(value, decimal.Decimal):
        return decimal_text(value)
    name = type(value).__name__
    raise TypeError(f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name} has no text of its own")


def _of_numpy(value: np.ndarray | np.generic) -> Any:
    """An array as a list, a number or time as Python's."""
    if isinstance(value, np.datetime64):
        return _moment(value)
    if isinstance(value, np.timedelta64):
        return _span(value)
    if isinstance(value, np.generic) or value.dtype.kind not in "mM" or value.ndim == 0:
        return value.tolist()
    return list(value)  # in nanoseconds ``tolist`` gives numbers


def _moment(value: np.datetime64) -> Any:
    import pandas

    item = value.item()
    return pandas.Timestamp(value) if isinstance(item, int) else item


def _span(value: np.timedelta64) -> Any:
    import pandas

    if np.datetime_data(value.dtype)[0] in "YM":
        raise TypeError("a timedelta64 of months or years has no length")
    return pandas.Timedelta(value)


def _object(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in items:
        if key in found:
            raise TypeError(f"a dict has two keys that read {key!r}")
        found[key] = item
    return found


def _key(key: Any) -> str:
    """The text of a key, as Python's json writes it."""
    if isinstance(key, BYTES) or (isinstance(key, tuple) and any(isinstance(part, BYTES) for part in key)):
        raise BytesError("in a key of a dict")
    if key is None:
        return "null"
    return str(key).lower() if isinstance(key, bool | np.bool_) else str(key)


# ----------------------------------------------------------------------------------------------------- spans of time
def nanoseconds(span: datetime.timedelta) -> int:
    """Of a timedelta of Python or pandas, exactly."""
    below = getattr(span, "nanoseconds", 0)  # of pandas, beside the microseconds
    return (span.days * 86_400 + span.seconds) * NANOSECONDS["s"] + span.microseconds * NANOSECONDS["us"] + below


def months_days_rest(nanoseconds: int) -> tuple[int, int, int]:
    """A span as DuckDB takes it from a frame: months of 30 days, days, and the rest."""
    sign, rest = (-1, -nanoseconds) if nanoseconds < 0 else (1, nanoseconds)
    days, rest = divmod(rest, NANOSECONDS_A_DAY)
    months, days = divmod(days, DAYS_A_MONTH)
    return sign * months, sign * days, sign * rest

"""pandas, polars, pyarrow and DuckDB objects -> an Arrow table."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from vllm_relational.records import RelationalError
from vllm_relational.table.cell_text import NANOSECONDS, json_text, one_line
from vllm_relational.table.duckdb_cells import arrow_of_relation
from vllm_relational.table.json_cells import column_type, nested_column

CONTAINERS = (list, tuple, set, frozenset, Mapping)
MAX_LEVELS = 100  # of lists and dicts in a cell
OBJECT_FIX = "give the column one type, e.g. df[c] = df[c].astype(str)"
# DuckDB's reader of pandas frames counts months of 30 days.
NANOSECONDS_A_DAY = 86_400_000_000_000
DAYS_A_MONTH = 30


def arrow_of(source: Any, readable: str) -> pa.Table:
    """The Arrow table of an object. readable: the formats of files, for the error.

    Raises ``RelationalError`` naming the column where Arrow cannot hold its cells.
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    module = type(source).__module__.split(".")[0]
    if module in {"pandas", "polars"} and type(source).__name__ == "Series":
        raise RelationalError(f"cannot read a table from a {module} {type(source).__name__}: make a DataFrame of it")
    if hasattr(source, "iloc") and hasattr(source, "dtypes"):
        return _from_pandas(source)
    if module == "polars":
        return _from_polars(source.collect() if hasattr(source, "collect") else source)
    if module in {"duckdb", "_duckdb"}:
        return arrow_of_relation(source)
    if hasattr(source, "__arrow_c_stream__"):
        return pa.table(source)
    raise RelationalError(
        f"cannot read a table from {type(source).__name__}: give a pandas or polars DataFrame, a pyarrow Table, "
        f"a DuckDB relation, or a path to {readable}"
    )


# ---------------------------------------------------------------------------------------------------------- pandas
def _from_pandas(frame: Any) -> pa.Table:
    names = [str(name) for name in frame.columns]  # pandas allows any object as a name; a prompt can only name text
    check_names(names)
    return pa.table({name: _column(name, frame.iloc[:, place]) for place, name in enumerate(names)})


def _column(name: str, cells: Any) -> pa.Array | pa.ChunkedArray:
    import pandas

    kind = cells.dtype
    if isinstance(kind, pandas.SparseDtype):
        return _column(name, cells.sparse.to_dense())
    if isinstance(kind, np.dtype) and kind.kind == "m":
        return _spans(cells.to_numpy())
    special = pandas.PeriodDtype | pandas.IntervalDtype
    if isinstance(kind, special) or isinstance(getattr(getattr(kind, "categories", None), "dtype", None), special):
        cells = cells.astype(str).where(cells.notna(), None)  # Arrow would store a period (2020-01) as its number
    of_objects = kind == np.dtype(object)
    if of_objects:
        _check_nesting(name, cells)
    try:
        column = pa.Array.from_pandas(cells)
        if not of_objects or not pa.types.is_nested(column.type):
            return column
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError) as error:
        if not of_objects and not isinstance(kind, pandas.CategoricalDtype):
            raise RelationalError(f"cannot turn column {name!r} into Arrow: {error}: {OBJECT_FIX}") from error
    return _objects(name, cells)


def _check_nesting(name: str, cells: Any) -> None:
    """Refuse what holds itself, or nearly so: Arrow follows it until the process has no stack left."""
    for row, cell in enumerate(cells):
        if isinstance(cell, CONTAINERS) and not _ends_within(cell, MAX_LEVELS):
            raise RelationalError(
                f"column {name!r}, row {row} (counted from 0) is nested more than {MAX_LEVELS} levels deep, or holds "
                "itself: store the inner part as text, e.g. json.dumps(part)"
            )


def _ends_within(value: Any, levels: int) -> bool:
    if not isinstance(value, CONTAINERS):
        return True
    parts = value.values() if isinstance(value, Mapping) else value
    return levels > 0 and all(_ends_within(part, levels - 1) for part in parts)


def _spans(cells: np.ndarray) -> pa.Array:
    """Timedeltas as DuckDB takes them from a frame: months of 30 days, days, and the rest."""
    unit = NANOSECONDS[np.datetime_data(cells.dtype)[0]]
    missing = np.isnat(cells)
    spans = (number * unit for number in cells.astype(np.int64).tolist())
    return pa.array(
        [None if gone else _months_days_rest(span) for span, gone in zip(spans, missing, strict=True)],
        pa.month_day_nano_interval(),
    )


def _months_days_rest(nanoseconds: int) -> tuple[int, int, int]:
    sign, rest = (-1, -nanoseconds) if nanoseconds < 0 else (1, nanoseconds)
    days, rest = divmod(rest, NANOSECONDS_A_DAY)
    months, days = divmod(days, DAYS_A_MONTH)
    return sign * months, sign * days, sign * rest


def _objects(name: str, cells: Any) -> pa.Array:
    """Python objects of several kinds, dicts or lists: each cell keeps its own keys and type."""
    texts = []
    for row, cell in enumerate(cells):
        try:
            text = None if _is_null(cell) else one_line(json_text(json_ready(cell)))
            if text is not None:
                text.encode()
        except UnicodeEncodeError as error:
            raise RelationalError(
                f"column {name!r}, row {row} (counted from 0) holds half a character (a lone surrogate), which is no "
                "valid Unicode: mend or remove it, e.g. text.encode('utf-8', 'replace').decode()"
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise RelationalError(
                f"cannot turn column {name!r} into Arrow: row {row} (counted from 0): {error}: {OBJECT_FIX}"
            ) from error
        texts.append(text)
    return nested_column(texts, column_type(texts))


def _is_null(cell: Any) -> bool:
    import pandas

    return cell is None or cell is pandas.NA or cell is pandas.NaT or (isinstance(cell, float) and cell != cell)


def json_ready(value: Any) -> Any:
    """A Python object as values of JSON; ``TypeError`` for one that JSON has no form for."""
    if isinstance(value, Mapping):
        return {_key(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, np.ndarray):
        return [json_ready(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, datetime.timedelta):
        raise TypeError("a span of time beside values of other types")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return value.isoformat() if not isinstance(value, decimal.Decimal) else str(value)
    if _is_null(value):
        return None
    raise TypeError(f"a {type(value).__name__} has no text of its own")


def _key(key: Any) -> str:
    if isinstance(key, bytes):
        raise TypeError("a dict has bytes as a key")
    return str(key)


def check_names(names: Iterable[str]) -> None:
    """Raise ``RelationalError`` for two columns of one name, and for a name that is no valid Unicode."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RelationalError(f"two columns are named {name!r}: rename one of them")
        if not name.isascii() and name.encode("utf-8", "ignore").decode() != name:
            raise RelationalError(f"the column name {name!r} holds half a character (a lone surrogate): rename it")
        seen.add(name)


# ---------------------------------------------------------------------------------------------------------- polars
def _from_polars(frame: Any) -> pa.Table:
    for name, kind in frame.schema.items():
        if "Object" in str(kind):  # Arrow would hold the addresses of the objects
            raise RelationalError(f"column {name!r} holds Python objects: turn them into text or numbers first")
    return frame.to_arrow()

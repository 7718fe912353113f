"""pandas, polars, pyarrow and DuckDB objects -> an Arrow table."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from vllm_relational.records import RelationalError
from vllm_relational.table.cell_text import NANOSECONDS, json_text, one_line
from vllm_relational.table.duckdb_cells import arrow_of_relation
from vllm_relational.table.json_cells import column_type, nested_column
from vllm_relational.table.python_cells import (
    MAX_LEVELS,
    BytesError,
    NestingError,
    is_container,
    is_null,
    json_ready,
    months_days_rest,
    nanoseconds,
)

OBJECT_FIX = "give the column one type, e.g. df[c] = df[c].astype(str)"


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
    if module == "polars" and hasattr(type(source), "schema"):
        return _from_polars(source.collect() if hasattr(source, "collect") else source)
    if module in {"duckdb", "_duckdb"} and hasattr(source, "types"):
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
    if isinstance(kind, pandas.CategoricalDtype) and not _fits_dictionary(kind.categories):
        return _column(name, cells.astype(kind.categories.dtype))
    if isinstance(kind, np.dtype) and kind.kind == "m":
        return _spans(cells.to_numpy())
    if isinstance(kind, pandas.PeriodDtype | pandas.IntervalDtype):
        cells = cells.astype(str).where(cells.notna(), None)  # Arrow would store a period (2020-01) as its number
    if kind == np.dtype(object):
        return _objects(name, cells)
    try:
        return pa.Array.from_pandas(cells)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError) as error:
        raise RelationalError(f"cannot turn column {name!r} into Arrow: {error}: {OBJECT_FIX}") from error


def _fits_dictionary(categories: Any) -> bool:
    """Whether Arrow keeps these categories as they are: of objects that are no texts it makes one type."""
    import pandas

    kind = categories.dtype
    if kind == np.dtype(object):
        return all(isinstance(category, str) for category in categories)
    return not isinstance(kind, pandas.PeriodDtype | pandas.IntervalDtype) and kind.kind != "m"


def _spans(cells: np.ndarray) -> pa.Array:
    """Timedeltas as DuckDB takes them from a frame."""
    unit = NANOSECONDS[np.datetime_data(cells.dtype)[0]]
    spans = (number * unit for number in cells.astype(np.int64).tolist())
    rows = zip(spans, np.isnat(cells), strict=True)
    return pa.array(
        [None if gone else months_days_rest(span) for span, gone in rows],
        pa.month_day_nano_interval(),
    )


# --------------------------------------------------------------------------------------- Python objects of any kind
def _objects(name: str, cells: Any) -> pa.Array | pa.ChunkedArray:
    """One type of Arrow where it gives every cell back, else JSON texts: each cell keeps its own keys and type."""
    if not any(is_container(kind) for kind in set(map(type, cells))):
        with suppress(pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
            column = pa.Array.from_pandas(cells)
            if pa.types.is_duration(column.type):
                if all(isinstance(cell, datetime.timedelta) or is_null(cell) for cell in cells):
                    return _spans_of_objects(cells)
            elif not pa.types.is_nested(column.type) and _same_times(column, cells):
                return column
    texts = []
    for row, cell in enumerate(cells):
        try:
            texts.append(_text(cell))
        except BytesError as error:
            return _with_bytes(name, cells, row, error)
        except (UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
            raise _no_text(name, row, error) from error
    return nested_column(texts, column_type(texts))


def _same_times(column: pa.Array, cells: Any) -> bool:
    """Whether times kept their zones and clocks: Arrow gives all of a column the kind of the first."""
    if not pa.types.is_temporal(column.type):
        return True
    kept = (None if cell is None else cell.isoformat() for cell in column.to_pylist())
    return all(text is None or text == _iso(cell) for text, cell in zip(kept, cells, strict=True))


def _iso(cell: Any) -> Any:
    return cell.isoformat() if isinstance(cell, datetime.date) else str(json_ready(cell))


def _spans_of_objects(cells: Any) -> pa.Array:
    spans = [None if is_null(cell) else months_days_rest(nanoseconds(cell)) for cell in cells]
    return pa.array(spans, pa.month_day_nano_interval())


def _text(cell: Any) -> str | None:
    value = json_ready(cell)
    if value is None or value != value:
        return None
    text = one_line(json_text(value))
    text.encode()
    return text


def _with_bytes(name: str, cells: Any, row: int, error: Exception) -> pa.Array:
    """Cells with bytes in them: no model reads them, but a column that no prompt names passes through to the output."""
    with suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
        plain = [json_ready(cell, keep_bytes=True) for cell in cells]
        column = pa.array(plain)
        if column.to_pylist() == plain:
            return column
    raise RelationalError(
        f"column {name!r}, row {row} (counted from 0) holds bytes ({error}), which a model cannot read: drop the "
        "column, or store the bytes as text first, e.g. decoded or described"
    ) from error


def _no_text(name: str, row: int, error: Exception) -> RelationalError:
    place = f"column {name!r}, row {row} (counted from 0)"
    if isinstance(error, NestingError | RecursionError):
        return RelationalError(
            f"{place} is nested more than {MAX_LEVELS} levels deep, or holds itself: store the inner part as text, "
            "e.g. json.dumps(part)"
        )
    if isinstance(error, UnicodeEncodeError):
        return RelationalError(
            f"{place} holds half a character (a lone surrogate), which is no valid Unicode: mend or remove it, e.g. "
            "text.encode('utf-8', 'replace').decode()"
        )
    return RelationalError(f"cannot turn {place} into Arrow: {error}: {OBJECT_FIX}")


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
    return pa.table({name: _polars_column(name, frame.get_column(name)) for name in frame.columns})


def _polars_column(name: str, cells: Any) -> pa.Array:
    try:
        return cells.to_arrow()
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RelationalError(
            f"cannot turn column {name!r} ({cells.dtype}) into Arrow: {error}: cast it first, e.g. "
            f"df.with_columns(pl.col({name!r}).cast(pl.String))"
        ) from error

"""JSON texts -> a column that gives each cell back as it was written.

Arrow's types for nested values belong to a whole column: a struct has one set of keys, and a cell without one of them
gets it as a null. So such a type is taken only where it loses nothing; else the column is one of JSON texts
(``arrow.json``, which Parquet and DuckDB know as JSON), and each cell keeps its own keys, numbers and nulls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa

from vllm_relational.table.cell_text import is_json, json_texts

# Enough to see that cells differ in their keys, before all of them are turned into an Arrow type for nothing.
FIRST_CELLS = 200
# Arrow files nest at most 64 levels.
MAX_LEVELS = 16


def json_column(texts: Sequence[str | None]) -> pa.Array:
    """A column of JSON texts, each as ``one_line`` writes it; None is null."""
    return pa.array(texts, pa.json_())


def column_type(texts: Sequence[str | None]) -> pa.DataType:
    """The nested type that gives every text back, else that of JSON. texts: as ``one_line`` writes them."""
    found = _typed(texts[:FIRST_CELLS])
    if found is not None and len(texts) > FIRST_CELLS:
        found = _typed(texts)
    return pa.json_() if found is None else found.type


def nested_column(texts: Sequence[str | None], kind: pa.DataType) -> pa.Array:
    """The column of the type that ``column_type`` found."""
    return json_column(texts) if is_json(kind) else pa.array(_parsed(texts), kind)


def _typed(texts: Sequence[str | None]) -> pa.Array | None:
    try:
        array = pa.array(_parsed(texts))
        kept = not _unfit(array.type) and json_texts(array) == list(texts)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError):
        return None
    return array if kept else None


def _parsed(texts: Sequence[str | None]) -> list[object]:
    return [None if text is None else json.loads(text) for text in texts]


def _unfit(kind: pa.DataType, level: int = 0) -> bool:
    """Types that files do not take: without any field, or nested too deep."""
    if level > MAX_LEVELS or (pa.types.is_struct(kind) and kind.num_fields == 0):
        return True
    return any(_unfit(kind.field(place).type, level + 1) for place in range(kind.num_fields))

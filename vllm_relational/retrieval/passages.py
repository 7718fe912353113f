"""The distinct texts of a column: what an index is made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vllm_relational.records import RelationalError


@dataclass(frozen=True)
class Passages:
    """The distinct texts of one column, by first appearance; nulls and blank texts are left out.

    texts: one a passage.
    rows:  int64 ``[num_passages]``, ascending: the first row that holds the text.
    """

    texts: list[str]
    rows: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Changes when a text or the row it stands in changes, and with nothing else of the table."""
        digest = hashlib.blake2b(self.rows.astype("<i8").tobytes(), digest_size=16)
        for text in self.texts:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()


def distinct_passages(table: pa.Table, column: str) -> Passages:
    """The passages of a text column. Raises ``RelationalError`` when the table has rows and none of them is one."""
    first_rows: dict[str, int] = {}
    for row, text in enumerate(texts_of(table, column)):
        if text is not None and text not in first_rows and not text.isspace() and text:
            first_rows[text] = row
    if not first_rows and table.num_rows:
        raise RelationalError(
            f"column {column!r} holds no text to search in ({table.num_rows} rows, all null or blank): name the column "
            f"of passages; {_columns_of(table)}"
        )
    return Passages(list(first_rows), np.fromiter(first_rows.values(), np.int64, len(first_rows)))


def texts_of(table: pa.Table, column: str) -> list[str | None]:
    """The cells of a text column; ``RelationalError`` names the fix when there is no such column or it is not text."""
    check_table(table)
    if column not in table.column_names:
        raise RelationalError(f"the table has no column {column!r}: {_columns_of(table)}")
    if table.column_names.count(column) > 1:
        raise RelationalError(f"two columns are named {column!r}: rename one of them")
    kind = table.schema.field(column).type
    if not _is_text(kind):
        raise RelationalError(f"column {column!r} is {kind}, not text: cast it to a string first, or name another")
    texts: list[str | None] = table.column(column).to_pylist()
    return texts


def check_table(table: Any) -> None:
    """Raise ``RelationalError`` unless the table is one of Arrow."""
    if not isinstance(table, pa.Table):
        raise RelationalError(
            f"retrieval takes a pyarrow Table, not a {type(table).__name__}: vllm_relational.table.read_table(table) "
            "makes one of a file, a pandas or polars DataFrame or a DuckDB relation"
        )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)) or (
        pa.types.is_null(kind)
    )


def _columns_of(table: pa.Table) -> str:
    names = table.column_names
    return f"columns: {', '.join(names[:20])}" + (f", and {len(names) - 20} more" if len(names) > 20 else "")

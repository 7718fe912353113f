"""DuckDB's types that Arrow does not hold as they are: their cells are read as the text that DuckDB prints.

Arrow would get the bytes of a BIT, GEOMETRY or VARIANT, a TIMETZ without its zone, more digits of a HUGEINT than its
decimals have, -1 for a UHUGEINT beyond 2^127, and months, days and nanoseconds of an INTERVAL. ``run`` and SQL read
cells through this module and send the same text.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from vllm_relational.table.cell_text import CELLS, JSON_CELLS, PRINTED_CELLS

# By ``DuckDBPyType.id``.
PRINTED = frozenset({"interval", "bit", "time with time zone", "bignum", "hugeint", "uhugeint", "geometry", "variant"})


def arrow_of_relation(relation: Any) -> pa.Table:
    """The rows of a DuckDB relation. Columns whose texts are no texts of the user's say so, see ``cell_text.CELLS``."""
    cells = [_cells(kind) for kind in relation.types]
    table = printed(relation).to_arrow_table()
    fields = [
        field.with_metadata({**(field.metadata or {}), CELLS: kind}) if kind else field
        for field, kind in zip(table.schema, cells, strict=True)
    ]
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields))


def _cells(kind: Any) -> bytes | None:
    if str(kind) == "JSON":
        return JSON_CELLS
    return PRINTED_CELLS if kind.id in PRINTED else None


def printed(relation: Any) -> Any:
    """The relation with the text of every cell that Arrow does not hold, at any depth; itself where there is none."""
    wanted = [type_of_text(kind) for kind in relation.types]
    if all(kind is None for kind in wanted):
        return relation
    columns = zip(relation.columns, wanted, strict=True)
    return relation.project(
        ", ".join(
            quoted(name) if kind is None else f"CAST({quoted(name)} AS {kind}) AS {quoted(name)}"
            for name, kind in columns
        )
    )


def type_of_text(kind: Any) -> str | None:
    """The type to cast to; None where Arrow holds the values."""
    if kind.id in PRINTED:
        return "VARCHAR"
    return _nested(kind) if kind.id in ("struct", "list", "array", "map", "tuple") else None


def _nested(kind: Any) -> str | None:
    children = [(name, part) for name, part in kind.children if name != "size"]
    texts = [type_of_text(part) for _, part in children]
    if not any(texts):
        return None
    inner = [text or str(part) for text, (_, part) in zip(texts, children, strict=True)]
    if kind.id in ("list", "array"):
        return f"{inner[0]}[{dict(kind.children).get('size', '')}]"
    if kind.id == "struct":
        inner = [f"{quoted(name)} {part}" for (name, _), part in zip(children, inner, strict=True)]
    return f"{kind.id.upper()}({', '.join(inner)})"


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'

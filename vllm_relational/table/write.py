"""The answered table -> a file, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from vllm_relational.files.atomic import check_writable, replacing
from vllm_relational.records import RelationalError
from vllm_relational.table.formats import writer_of
from vllm_relational.table.read import ARROW_SUFFIXES, PARQUET_SUFFIXES


def check_output(path: Path) -> None:
    """Raise ``RelationalError`` if the answers could not be written to ``path``: before any row is asked."""
    writer_of(path)
    check_writable(path)


def write_table(table: pa.Table, path: Path, before: Callable[[Path], None] = lambda partial: None) -> None:
    """Write ``table`` in the format of the path's suffix. A reader never sees half a file.

    before: see ``atomic_file.replacing``.
    """
    try:
        with replacing(path, before) as out:
            writer_of(path)(table, out)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RelationalError(f"cannot write {path}: {error}; the answers are in the checkpoint") from error


def keeps_metadata(path: Path) -> bool:
    """Whether a file of that name has room for the metadata of a schema."""
    return path.suffix.lower() in PARQUET_SUFFIXES | ARROW_SUFFIXES

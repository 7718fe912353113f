"""The answered table -> a file, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from vllm_relational.records import RelationalError
from vllm_relational.table.formats import writer_of


def check_output(path: Path) -> None:
    """Raise ``RelationalError`` if the answers could not be written to ``path``: before any row is asked."""
    writer_of(path)
    folder = path.parent
    if not folder.is_dir():
        raise RelationalError(f"the folder {folder} does not exist: make it first (mkdir -p {folder})")
    if not os.access(folder, os.W_OK) or path.is_dir():
        raise RelationalError(f"cannot write {path}: choose another path with -o")


def write_table(table: pa.Table, path: Path) -> None:
    """Write ``table`` in the format of the path's suffix. A reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as out:
            writer_of(path)(table, out)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        partial.unlink(missing_ok=True)
        raise RelationalError(f"cannot write {path}: {error}; the answers are in the checkpoint") from error

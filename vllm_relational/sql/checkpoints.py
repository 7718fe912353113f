"""Checkpoints beside the side file: answers as they come, until the side file has them.

The transaction that stores the answers of a run also lists its checkpoint as finished, and what is listed is deleted.
A process that is killed between the two leaves the file to the next session, which deletes it at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import duckdb

from vllm_relational.config import Layout

# The side file is data: only names of this form are names of checkpoints.
_NAME = re.compile(r"op_[1-9][0-9]{0,8}\.[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True)
class Kept:
    """A run's checkpoint. name: as it is listed, None without one; options: those of ``RelationalLLM.run`` for it."""

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


NOT_KEPT = Kept()


class Checkpoints:
    """Of one side file. cursor: a connection that has it as ``schema``."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, schema: str, side: Path) -> None:
        self._cursor, self._side = cursor, side
        self._place = f"{schema}.finished_checkpoints"
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {self._place}(name VARCHAR)")

    def of(self, operator: str, keys: Sequence[str], layout: Layout) -> Kept:
        """The checkpoint of a run over these keys; one that is there goes on in the layout that it has."""
        digest = hashlib.blake2b("\n".join(keys).encode("utf-8", "replace"), digest_size=8).hexdigest()
        name = f"{operator}.{digest}"
        begun = next((known for known in (layout, *get_args(Layout)) if self._path(name, known).exists()), None)
        path = self._path(name, begun or layout)
        return Kept(name, {"checkpoint": path, "resume": begun is not None, "layout": begun or layout})

    def finish(self, name: str) -> None:
        """List a checkpoint, within the transaction that stores its answers."""
        self._cursor.execute(f"INSERT INTO {self._place} VALUES (?)", [name])

    def sweep(self) -> None:
        """Delete what is listed. A name leaves the list when its file is gone: another run may have it again."""
        self._cursor.execute("BEGIN")
        try:
            for (name,) in self._cursor.execute(f"DELETE FROM {self._place} RETURNING name").fetchall():
                self._delete(name)
            self._cursor.execute("COMMIT")
        except BaseException:  # Ctrl-C too: the list stays
            self._cursor.execute("ROLLBACK")
            raise

    def _delete(self, name: object) -> None:
        if isinstance(name, str) and _NAME.fullmatch(name):
            for layout in get_args(Layout):
                self._path(name, layout).unlink(missing_ok=True)

    def _path(self, name: str, layout: Layout) -> Path:
        return self._side.with_name(f"{self._side.name}.{name}.{layout}.checkpoint.jsonl")

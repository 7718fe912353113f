"""A damaged cache file: what can be read of it goes into a new file; the damaged one is kept under another name."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from vllm_relational.files.atomic import PRIVATE, followed

WAIT_SECONDS = 2.0  # for another process to close the file: as long as one has it open, it stays as it is
_KEY_BITS = 64  # of the beginning of a key, by which ranges of keys are halved
_PARTS_A_PAGE = 4  # halving ends at ranges of so small a part of a page

_ROWS = "SELECT key, CAST(answer AS BLOB), cut, checksum, CAST(model AS BLOB), created FROM answers"
_INSERT = "INSERT OR IGNORE INTO answers VALUES (?, CAST(? AS TEXT), ?, ?, CAST(? AS TEXT), ?)"

Row = tuple[Any, ...]


class Mended(NamedTuple):
    """aside: the damaged file, None where another process has mended it meanwhile; kept: entries in the new one."""

    aside: Path | None
    kept: int


def mend(path: Path, make: Callable[[sqlite3.Connection], None], is_whole: Callable[[Row], bool]) -> Mended:
    """Put a new file with the whole entries of ``path`` in its place; no connection of this process has it open.

    make: makes the tables in an empty database. Raises ``sqlite3.Error`` or ``OSError`` where that cannot be done,
    above all while another process has the file open; nothing was changed then.
    """
    place = followed(path)
    before = place.stat().st_ino
    with closing(sqlite3.connect(place, timeout=WAIT_SECONDS, isolation_level=None)) as old:
        old.execute("PRAGMA locking_mode = EXCLUSIVE")
        old.execute("PRAGMA journal_mode = DELETE").fetchall()  # the log is written back: nobody else is there
        old.execute("BEGIN EXCLUSIVE")
        if place.stat().st_ino != before:
            return Mended(None, 0)
        name = f"{place.name}.{secrets.token_hex(4)}"
        new, aside = place.with_name(f"{name}.new"), place.with_name(f"{name}.damaged")
        try:
            kept = _write(new, (row for row in _readable(old) if is_whole(row)), make)
            os.link(place, aside)  # before the exchange: there is never a time without the file
            new.replace(place)
        finally:
            new.unlink(missing_ok=True)
    return Mended(aside, kept)


def _write(path: Path, rows: Iterator[Row], make: Callable[[sqlite3.Connection], None]) -> int:
    """A new file with these entries; how many they are."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))
    with closing(sqlite3.connect(path, isolation_level=None)) as new:
        new.execute("BEGIN")
        make(new)
        new.executemany(_INSERT, rows)
        (kept,) = new.execute("SELECT count(*) FROM answers").fetchone()
        new.execute("COMMIT")
    return int(kept)


def _readable(database: sqlite3.Connection) -> Iterator[Row]:
    """The rows on pages that can be read, some of them twice.

    First in the order of the file, which finds also keys that stand at the wrong place; then, where a page ends that,
    by ranges of keys, each halved until it is read or smaller than a page.
    """
    try:
        yield from database.execute(_ROWS)
        return
    except sqlite3.DatabaseError:
        pass
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    least = 2**_KEY_BITS // (_PARTS_A_PAGE * max(int(pages), 1))
    ranges = [(0, 2**_KEY_BITS)]
    while ranges:
        start, end = ranges.pop()
        try:
            yield from database.execute(*_between(start, end))
        except sqlite3.DatabaseError:
            middle = (start + end) // 2
            ranges += [(middle, end), (start, middle)] if end - start > least else []


def _between(start: int, end: int) -> tuple[str, list[bytes]]:
    """The query for keys that begin with these bits; end: the first that is none of them."""
    size = _KEY_BITS // 8
    if end >= 2**_KEY_BITS:
        return f"{_ROWS} WHERE key >= ? ORDER BY key", [start.to_bytes(size, "big")]
    return f"{_ROWS} WHERE key >= ? AND key < ? ORDER BY key", [start.to_bytes(size, "big"), end.to_bytes(size, "big")]

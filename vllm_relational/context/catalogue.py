"""The contexts of a database in the order of their token ids: one SQLite file, made again from them at any time.

In that order the context that shares the longest prefix with a prompt is a neighbour of the prompt's place: two
look-ups in a B-tree find it among any number, also where the prefix ends within a context. The catalogue only proposes:
token ids are compared with the context's own file, so that a damaged catalogue costs a match, never makes a wrong one.
It follows the folders: the time of a fingerprint's folder says whether contexts came or went.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from vllm_relational.context import commit
from vllm_relational.context.errors import ContextError
from vllm_relational.context.manifest import read_manifest
from vllm_relational.context.stored import contexts_in, read_tokens

CATALOGUE = "catalogue.sqlite"
APPLICATION_ID = 0x764C5243  # "vLRC", in the header of the file
FORMAT = 1
PAGE_BYTES = 16384  # the token ids of a long context are read in few steps
WAIT_SECONDS = 3.0  # for another process's write
BATCH = 64  # contexts that are added at a time, so that nobody waits long
RACY_SECONDS = 0.5  # a folder that changed so lately may change again within the same tick of its clock
RACY_SECONDS_COARSE = 2.0  # where the clock of a file system counts whole seconds

SPARE = 64, 0.25  # tokens of contexts that are gone stay, up to so many and so large a share: taking them out reads all

_TABLES = (
    # AUTOINCREMENT: a number that prefixes of a context that is gone still have is never another's.
    "CREATE TABLE contexts (number INTEGER PRIMARY KEY AUTOINCREMENT, fingerprint TEXT NOT NULL, id TEXT NOT NULL)",
    "CREATE UNIQUE INDEX by_id ON contexts (fingerprint, id)",
    "CREATE TABLE prefixes (fingerprint TEXT NOT NULL, tokens BLOB NOT NULL, number INTEGER NOT NULL, "
    "PRIMARY KEY (fingerprint, tokens)) WITHOUT ROWID",
    "CREATE TABLE folders (fingerprint TEXT PRIMARY KEY, changed INTEGER NOT NULL) WITHOUT ROWID",
)
_OBJECTS = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'sqlite_sequence' ORDER BY rowid"
_Statement = tuple[str, tuple[object, ...]]

_Result = TypeVar("_Result")


class Catalogue:
    """The catalogue of the database in ``root``; in memory where its file cannot be written, or is in use too long.

    Safe to use from several threads and after a fork: every call opens the file anew. Raises only ``OSError``, where
    the database cannot be read.
    """

    def __init__(self, root: Path, writable: bool) -> None:
        self._root, self._path, self._writable = root, root / CATALOGUE, writable
        self._memory: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def nearest(self, fingerprint: str, tokens: np.ndarray, skip: Collection[str] = ()) -> list[str]:
        """Ids of at most two contexts, of which one shares the longest prefix with ``tokens``; none of ``skip``."""
        return self._run(lambda database: self._nearest(database, fingerprint, _key(tokens), skip))

    def _nearest(self, database: sqlite3.Connection, fingerprint: str, key: bytes, skip: Collection[str]) -> list[str]:
        self._refresh(database, fingerprint)
        found = []
        for side, order in (("<=", "DESC"), (">", "ASC")):
            sql = (
                "SELECT id FROM prefixes CROSS JOIN contexts USING (number) "  # in the order of the tokens
                f"WHERE prefixes.fingerprint = ? AND tokens {side} ? AND id NOT IN ({','.join('?' * len(skip))}) "
                f"ORDER BY tokens {order} LIMIT 1"
            )
            found += database.execute(sql, (fingerprint, key, *skip)).fetchall()
        return [str(name) for (name,) in found]

    def rebuild(self) -> None:
        """Make it again from the contexts."""
        with self._lock:
            self._memory = None
        if self._writable:
            with suppress(OSError, ContextError), commit.locked(self._root, WAIT_SECONDS):
                self._remove()
        for entry in contexts_in(self._root):
            self._run(partial(self._refresh, fingerprint=entry.name))

    # ------------------------------------------------------------------------------------------ following folders
    def _refresh(self, database: sqlite3.Connection, fingerprint: str) -> None:
        """Add the contexts that came to a folder, forget those that went."""
        folder = self._root / fingerprint
        changed = _changed(folder)
        row = database.execute("SELECT changed FROM folders WHERE fingerprint = ?", (fingerprint,)).fetchone()
        if changed and row == (changed,):
            return
        present = {entry.name for entry in contexts_in(folder)}
        known = {name for (name,) in database.execute("SELECT id FROM contexts WHERE fingerprint = ?", (fingerprint,))}
        if gone := known - present:
            _change(database, _forgetting(fingerprint, gone))
            _thin_out(database)
        for some in _batches(sorted(present - known)):
            _change(database, _adding(folder, some))
        if _settled(changed):
            _change(database, [("INSERT OR REPLACE INTO folders VALUES (?, ?)", (fingerprint, changed))])

    # ------------------------------------------------------------------------------------------------ the file
    def _run(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """On the file; on a new one where it is damaged; in memory where neither can be."""
        for _ in range(2):
            if self._memory is not None:
                break
            try:
                with closing(self._opened()) as database:
                    return action(database)
            except sqlite3.Error as error:
                if not self._mend(error):
                    break
        with self._lock:
            if self._memory is None:
                self._memory = _prepared(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))
            return action(self._memory)

    def _opened(self) -> sqlite3.Connection:
        name = f"{self._path.absolute().as_uri()}?mode={'rwc' if self._writable else 'ro'}"
        database = sqlite3.connect(name, timeout=WAIT_SECONDS, isolation_level=None, uri=True)
        try:
            return _prepared(database)
        except BaseException:
            database.close()
            raise

    def _mend(self, error: sqlite3.Error) -> bool:
        """Take a damaged file away, unless another process has done so; whether to try again."""
        if not self._writable or isinstance(error, sqlite3.OperationalError):  # locked, no room, of a newer version
            return False
        try:
            with commit.locked(self._root, WAIT_SECONDS):
                if not self._is_whole():
                    self._remove()
            return True
        except (OSError, ContextError):
            return False

    def _is_whole(self) -> bool:
        try:
            with closing(self._opened()) as database:
                return bool(database.execute("PRAGMA quick_check").fetchone() == ("ok",))
        except sqlite3.Error:
            return False

    def _remove(self) -> None:
        for name in (CATALOGUE, f"{CATALOGUE}-journal"):
            (self._root / name).unlink(missing_ok=True)


def _prepared(database: sqlite3.Connection) -> sqlite3.Connection:
    """With its tables; ``DatabaseError`` for a file of something else, ``OperationalError`` for a newer version."""
    found = [sql for (sql,) in database.execute(_OBJECTS)]
    if not found:
        _make_tables(database)
        return database
    (owner,), (version,) = (
        database.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
    )
    if owner == APPLICATION_ID and version > FORMAT:
        raise sqlite3.OperationalError("the catalogue is of a newer version")
    if found != list(_TABLES):
        raise sqlite3.DatabaseError("no catalogue of contexts")
    return database


def _make_tables(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    with database:
        database.execute("BEGIN IMMEDIATE")
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # nobody was faster
            for sql in (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {FORMAT}", *_TABLES):
                database.execute(sql)


def _change(database: sqlite3.Connection, statements: Iterable[_Statement]) -> None:
    """All of them, or none."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        for sql, values in statements:
            database.execute(sql, values)


def _adding(folder: Path, names: Iterable[str]) -> Iterator[_Statement]:
    """Those whose manifest and token ids can be read; ``DB.verify`` tells of the others."""
    for name in names:
        with suppress(OSError, ContextError):
            key = _key(read_tokens(folder / name, read_manifest(folder / name)))
            yield "INSERT OR IGNORE INTO contexts (fingerprint, id) VALUES (?, ?)", (folder.name, name)
            sql = "INSERT OR REPLACE INTO prefixes SELECT fingerprint, ?, number FROM contexts"
            yield f"{sql} WHERE fingerprint = ? AND id = ?", (key, folder.name, name)


def _forgetting(fingerprint: str, names: Iterable[str]) -> Iterator[_Statement]:
    for name in names:
        yield "DELETE FROM contexts WHERE fingerprint = ? AND id = ?", (fingerprint, name)


def _thin_out(database: sqlite3.Connection) -> None:
    """Take the tokens of contexts that are gone out, where they are many."""
    (live,), (kept,) = (
        database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("contexts", "prefixes")
    )
    if kept - live > SPARE[0] + SPARE[1] * live:
        _change(database, [("DELETE FROM prefixes WHERE number NOT IN (SELECT number FROM contexts)", ())])


def _key(tokens: np.ndarray) -> bytes:
    """Compared byte by byte it is in the order of the token ids: most significant byte first."""
    return tokens.astype(">u4").tobytes()


def _changed(folder: Path) -> int:
    """Nanoseconds; 0 for a folder that is not there."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _settled(changed: int) -> bool:
    """Whether a later change will have another time."""
    window = RACY_SECONDS if changed % 10**9 else RACY_SECONDS_COARSE
    return bool(changed) and time.time() - changed / 1e9 > window


def _batches(names: list[str]) -> Iterator[list[str]]:
    yield from (names[start : start + BATCH] for start in range(0, len(names), BATCH))

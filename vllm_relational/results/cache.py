"""Answers that outlive a run: one SQLite file, shared by runs, tables and processes.

A key is a digest of the model, the decoding settings and the prompt itself, in original field order (what is asked in
another order is still the same question; see ``answer_key``). Only answers that the answer format admits are stored,
never failures. Each is committed as it comes, in SQLite's write-ahead log: a killed process loses none, and two
processes may write at a time. A checksum over key and answer says which entries are damaged: they are never served.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from vllm_relational.files.atomic import PRIVATE
from vllm_relational.records import Prompt, RelationalError
from vllm_relational.results.cache_repair import Row, mend
from vllm_relational.terminal import warn

APPLICATION_ID = 0x764C5252  # "vLRR", in the header of the file
FORMAT = 2
WAIT_SECONDS = 30.0  # for another process's write
RETRY_SECONDS = 0.02  # where SQLite does not wait by itself
LOG_PAGES, PAGE_BYTES = 1000, 4096  # the write-ahead log is written back at this size: 4 MB
FEW_ENTRIES = 20_000  # are looked through in some hundredths of a second
ENTRIES_A_MISS = 100  # are looked through for each key that is not there: a small part of the time to ask for it
KEYS_A_QUERY = 500  # SQLite's least limit of parameters is 999

_TABLE = (
    "CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL, cut INTEGER NOT NULL, checksum BLOB NOT NULL, "
    "model TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID"
)
_ROWS = "SELECT key, CAST(answer AS BLOB), cut, checksum FROM answers"


class CachedAnswer(NamedTuple):
    """cut: the text ends at max_tokens."""

    text: str
    cut: bool = False


def answer_key(settings: Mapping[str, Any], prompt: Prompt) -> bytes:
    """Digest of what an answer depends on: 32 bytes.

    settings: model, decoding settings and what is asked of the order of fields; JSON values.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=32)
    digest.update(array("q", prompt.token_ids).tobytes())
    for text in (prompt.system, prompt.user):
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


class AnswerCache:
    """An open cache file; made where there is none.

    damaged: entries that were looked for and left out, because their checksum does not fit.
    A file that is found to be damaged is set aside, and what can be read of it goes on in a new one, with a warning.
    Raises ``RelationalError`` where the file is no cache of this version, damaged, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._writes, self._mended = True, False
        self._open()

    def _open(self) -> None:
        """Open the file that stands under the name, also where another process exchanges it for a mended one."""
        while True:
            _make_private(self.path)
            with self._explained("open"):
                self._database = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
            try:
                there = _identity(self.path)
                with self._explained("open"):
                    self._prepare()
                if _identity(self.path) == there:
                    return
            except BaseException:
                self._database.close()
                raise
            self._database.close()

    def _prepare(self) -> None:
        """Make the table in a new file; refuse a file of something else before anything in it is changed."""
        self._database.execute("BEGIN IMMEDIATE")
        (owner,), (version,) = (self._one(f"PRAGMA {name}") for name in ("application_id", "user_version"))
        (num_tables,) = self._one("SELECT count(*) FROM sqlite_master")
        if (owner, version) == (0, 0) and not num_tables:
            _make_table(self._database)
        elif (owner, version) == (APPLICATION_ID, 1) and num_tables == 1:
            self._upgrade()
        elif (owner, version) != (APPLICATION_ID, FORMAT) or self._objects() != [_TABLE]:
            self._database.execute("ROLLBACK")
            raise RelationalError(f"{self.path} is not a result cache of this version: name another file with --cache")
        self._database.execute("COMMIT")
        self._use_log()
        self._database.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last answers, not the file
        self._database.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        self._database.execute(f"PRAGMA journal_size_limit = {LOG_PAGES * PAGE_BYTES}")

    def _objects(self) -> list[str]:
        """What is in the file, as SQL: a view or a trigger in it would run with our statements."""
        return [sql for (sql,) in self._database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]

    def _upgrade(self) -> None:
        """Of the first format, which had no checksums."""
        self._database.execute("ALTER TABLE answers RENAME TO before")
        self._database.execute(_TABLE)
        rows = self._database.execute("SELECT key, answer, model, created FROM before")
        texts = ((key, text, model, created) for key, text, model, created in rows if isinstance(text, str))
        self._database.executemany(
            "INSERT INTO answers VALUES (?, ?, 0, ?, ?, ?)",
            ((key, text, _checksum(key, text.encode(), False), model, created) for key, text, model, created in texts),
        )
        self._database.execute("DROP TABLE before")
        self._database.execute(f"PRAGMA user_version = {FORMAT}")

    def _use_log(self) -> None:
        """Change to the write-ahead log. Where two processes do so in a new file, SQLite refuses one at once."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)

    def find(self, keys: Iterable[bytes]) -> dict[bytes, CachedAnswer]:
        """The answers that are there and whole. Where a page of the file is damaged, the others are still read."""
        wanted, before, mended = list(keys), self.damaged, self._mended
        found, missing = self._look_up(wanted)
        if missing and not self._mended and self._has_others(wanted, max(FEW_ENTRIES, ENTRIES_A_MISS * missing)):
            self._mend()
        if self._mended > mended and self._writes:  # what was damaged has been told
            self.damaged = before
            found, _ = self._look_up(wanted)
        return found

    def _look_up(self, keys: list[bytes]) -> tuple[dict[bytes, CachedAnswer], int]:
        """The answers that are there and whole, and how many keys are not there."""
        found: dict[bytes, CachedAnswer] = {}
        known = set(keys)
        missing = len(known)
        with self._explained("read"):
            for some in _batches(keys):
                for key, raw, cut, checksum in self._rows(some):
                    if key not in known:  # a damaged one, at the place of the one that was looked for
                        continue
                    missing -= 1
                    if _is_whole((key, raw, cut, checksum)):
                        found[key] = CachedAnswer(raw.decode(), bool(cut))
                    else:
                        self.damaged += 1
        return found, missing

    def _has_others(self, wanted: list[bytes], most: int) -> bool:
        """Whether entries that nobody looks for are damaged: a damaged key is found under no name, and may hide others.

        A file with more entries than ``most`` is not looked through.
        """
        known = set(wanted)
        try:
            (entries,) = self._one(f"SELECT count(*) FROM (SELECT 1 FROM answers LIMIT {most + 1})")
            rows = self._database.execute(_ROWS) if entries <= most else ()
            return any(not _is_whole(row) and row[0] not in known for row in rows)
        except sqlite3.DatabaseError as error:
            return _is_damage(error)

    def _mend(self) -> bool:
        """Set the damaged file aside and go on with what can be read of it; False where that cannot be done."""
        if self._mended:
            return False
        self._mended = True
        self._database.close()
        try:
            made = mend(self.path, _make_table, _is_whole)
        except (sqlite3.Error, OSError) as error:
            self._open()
            fix = "end other runs that use it and run again, or name another file with --cache"
            self._stop_writing(f"{self.path} is damaged, and answers of this run are not kept in it ({error}): {fix}")
            return False
        self._open()
        if made.aside is not None:
            warn(
                f"{self.path} is damaged: {made.kept:,} answers that are whole were taken over into a new file, the "
                f"others are asked again; the damaged file is kept as {made.aside}: delete it when you like"
            )
        return True

    def _stop_writing(self, why: str) -> None:
        if self._writes:
            self._writes = False
            warn(why)

    def _rows(self, keys: list[bytes]) -> list[Any]:
        try:
            return self._database.execute(f"{_ROWS} WHERE key IN ({','.join('?' * len(keys))})", keys).fetchall()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):  # locked
                raise
            if self._mend():
                return self._rows(keys)
            self._stop_writing(f"{self.path} is damaged: answers of this run are not kept in it")
            if len(keys) == 1:
                self.damaged += 1
                return []
            half = len(keys) // 2
            return self._rows(keys[:half]) + self._rows(keys[half:])

    def add(self, key: bytes, answer: str, model: str, cut: bool = False) -> None:
        """Store one answer. A cache that cannot be written any more warns once and lets the run go on."""
        if not self._writes:
            return
        try:
            row = (key, answer, cut, _checksum(key, answer.encode(), cut), model, time.time())
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            if _is_damage(error) and self._mend():
                self.add(key, answer, model, cut)
                return
            self._stop_writing(f"cannot write the result cache {self.path}: {error}; the run goes on without")

    def sizes(self) -> list[tuple[str, int, int]]:
        """By model, the answers and the characters in them."""
        with self._explained("read"):
            sql = "SELECT model, count(*), sum(length(answer)) FROM answers GROUP BY model ORDER BY model"
            return list(self._database.execute(sql))

    def clear(self, model: str | None = None) -> int:
        """Drop all answers, or those of one model, and shrink the file; returns how many were dropped."""
        with self._explained("clear"):
            where = ("", ()) if model is None else (" WHERE model = ?", (model,))
            dropped = self._database.execute(f"DELETE FROM answers{where[0]}", where[1]).rowcount
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return dropped

    def close(self) -> None:
        with suppress(sqlite3.Error):  # another process reads: the last one empties the log
            self._database.execute("PRAGMA busy_timeout = 0")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with suppress(sqlite3.Error):
            self._database.close()

    def _one(self, sql: str) -> Any:
        return self._database.execute(sql).fetchone()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise RelationalError(f"cannot {what} the result cache {self.path}: {_fix(error, what)}") from error


@contextmanager
def opened_cache(path: Path | None) -> Iterator[AnswerCache | None]:
    """The cache of a run, None for one without; opened before an engine is paid for, closed at the end of the block."""
    cache = AnswerCache(path) if path is not None else None
    try:
        yield cache
    finally:
        if cache is not None:
            cache.close()


class QueryCache:
    """The cache file as one query sees it: answers by the row that is asked.

    settings: see ``answer_key``; model: the name shown in the sizes of the file.
    cut:      the rows found whose answers end at max_tokens.
    """

    def __init__(self, file: AnswerCache, settings: Mapping[str, Any], model: str) -> None:
        self.cut: set[int] = set()
        self._file, self._settings, self._model = file, settings, model
        self._keys: dict[int, bytes] = {}

    def find(self, prompts: Iterable[Prompt], usable: Callable[[str], bool]) -> dict[int, str]:
        """Usable answers that are there, by ``Prompt.key``; remembers the keys of the others for ``add``."""
        keys = {prompt.key: answer_key(self._settings, prompt) for prompt in prompts}
        before = self._file.damaged
        answers = self._file.find(set(keys.values()))
        if self._file.damaged > before:
            warn(
                f"{self._file.path}: {self._file.damaged - before} damaged answers were left out and are asked again",
                stacklevel=2,
            )
        found = {row: answers[key] for row, key in keys.items() if key in answers and usable(answers[key].text)}
        self._keys = {row: key for row, key in keys.items() if row not in found}
        self.cut = {row for row, answer in found.items() if answer.cut}
        return {row: answer.text for row, answer in found.items()}

    def add(self, row: int, text: str, cut: bool = False) -> None:
        """Store the answer to a row that was looked for and not found."""
        if row in self._keys:
            self._file.add(self._keys[row], text, self._model, cut)


def _make_private(path: Path) -> None:
    """A new file is for its owner only, and what SQLite puts beside it likewise. Raises for what is no file."""
    if path.exists() and not path.is_file():
        raise RelationalError(f"{path} is no regular file: name another file with --cache")
    with suppress(OSError):  # SQLite will say why it cannot be
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        try:
            if not os.fstat(opened).st_size:  # also one that was there, with nothing in it
                os.fchmod(opened, PRIVATE)
        finally:
            os.close(opened)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _make_table(database: sqlite3.Connection) -> None:
    database.execute(_TABLE)
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {FORMAT}")


def _is_whole(row: Row) -> bool:
    """Whether its checksum fits an entry: key, answer in UTF-8, mark and checksum, more or not."""
    key, answer, cut, checksum = row[:4]
    whole = isinstance(key, bytes) and isinstance(answer, bytes) and isinstance(cut, int)
    return whole and checksum == _checksum(key, answer, cut)


def _is_damage(error: sqlite3.Error) -> bool:
    """Locked, full, and the like have classes of their own."""
    return type(error) is sqlite3.DatabaseError


def _checksum(key: bytes, answer: bytes, cut: int) -> bytes:
    """8 bytes: an entry with another key, another answer or another mark has another."""
    return xxhash.xxh3_64_digest(len(key).to_bytes(8, "little") + key + bytes([bool(cut)]) + answer)


def _fix(error: sqlite3.DatabaseError, what: str) -> str:
    if isinstance(error, sqlite3.OperationalError):  # locked, no such folder, read-only, full
        return f"{error}; check the folder and its rights, or name another file with --cache"
    if "not a database" in str(error):  # somebody's file: no word of deleting it
        return f"{error}; name another file with --cache"
    if what != "open":
        return f"{error}; the file is damaged: a run with this --cache takes over what can be read of it"
    beginning = "the file is damaged at its beginning, so no answer in it can be found"
    return f"{error}; {beginning}: move it away, or name another with --cache"


def _batches(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(keys)
    while some := list(islice(rest, KEYS_A_QUERY)):
        yield some

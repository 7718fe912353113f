"""Blocks of vLLM's KV cache on disk: one file a block, found by the hash of all tokens up to its end.

    FOLDER/vllm-blocks/                    lock, tmp/ (files being written), damaged/ (files set aside)
    FOLDER/vllm-blocks/<layout>/           layout.json: what the pages depend on, of which <layout> is the digest
    FOLDER/vllm-blocks/<layout>/<hh>/<key>.kv

A file is a header and the page: keys, values and whatever else the attention keeps in a page, as they lie in memory.
The header names the layout and the key, and holds the checksum of the page, so that a file that was moved, cut or
changed is no block: it is set aside, and the block is computed again. Engines whose pages mean something else, by their
weights, their numbers or their attention, have another layout and never meet.

Any number of processes write and read at once: a file appears whole, under its final name, once it is on the disk, and
is never changed. Two writers of a block each write their own file; the last one stays.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from vllm_relational.records import RelationalError

logger = logging.getLogger("vllm.relational.contexts")  # below vLLM's logger: its level and format

FORMAT = 1
HOME = "vllm-blocks"
LAYOUT_FILE = "layout.json"
SUFFIX = ".kv"
MAX_KEY = 36  # bytes: a SHA-256 and the number of a group of layers
TRIM_TO, TRIM_EACH = 0.9, 0.05
"""Of the limit: what is left after old blocks went, and what a process writes before it looks again."""
STALE_S = 3600.0  # seconds without a change after which a file in tmp/ has lost its writer
PAUSE_S = 60.0  # seconds without another try to write, after the disk was full
PIECE = 1 << 20  # bytes read at once
MAX_DAMAGED = 64  # files kept to be looked at

_MAGIC = b"VLRBLK1\n"
_HEADER = struct.Struct(f"<8s16sI{MAX_KEY}sQ16s")  # magic, layout, length of key, key, bytes of page, checksum
_CHECK = struct.Struct("<Q")  # of the header
HEADER_BYTES = _HEADER.size + _CHECK.size


class BlockStore:
    """The blocks of one layout in a folder. Safe to use from several threads and processes.

    facts:     JSON values that tell the pages of this engine from others; with other facts it is another store.
    max_bytes: of all layouts in the folder; what was used longest ago goes first. A process looks after every 5% that
               it writes, so several that write at once may go beyond by that much each. None: no limit.

    Raises ``RelationalError`` where the folder cannot be made or read. A folder that cannot be written to is read.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any], max_bytes: int | None = None) -> None:
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, indent=1)
        self.layout = xxhash.xxh3_128_digest(text.encode())
        self.home = Path(folder) / HOME
        self.root = self.home / self.layout.hex()
        self.max_bytes = max_bytes
        self._unusable: set[bytes] = set()  # damaged blocks that could not be set aside
        self._lock = threading.Lock()
        self._written = 0 if max_bytes is None else int(max_bytes * TRIM_EACH)  # so that the first write looks
        self._paused_until = 0.0
        self._warned: set[int] = set()
        self._make(text)

    # ------------------------------------------------------------------------------------------------------- reading
    def has(self, key: bytes) -> bool:
        """Whether there is a block of this key, as far as its name says."""
        return key not in self._unusable and os.path.exists(self.path_of(key))

    def read(self, key: bytes, page: memoryview) -> bool:
        """Fill ``page``, writable bytes, with the block. False where there is none of that size, or it is damaged: the
        bytes then mean nothing, and a damaged file is set aside.

        A piece is added to the checksum while it is in the processor's cache. Larger pieces than fit there take longer;
        smaller ones are more calls, each of which gives up Python's lock, and many threads read at once.
        """
        if key in self._unusable:
            return False
        try:
            file = os.open(self.path_of(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._warn("cannot read blocks of contexts", error)
            return False
        try:
            return self._read(key, file, page)
        finally:
            os.close(file)

    def _read(self, key: bytes, file: int, page: memoryview) -> bool:
        try:
            problem = self._problem(key, file, page)
        except OSError as error:  # the device, not the file: nothing is known against it
            self._warn("cannot read blocks of contexts", error)
            return False
        if problem:
            self._set_aside(key, problem)
        return not problem

    def _problem(self, key: bytes, file: int, page: memoryview) -> str:
        """Reads; in words what is wrong with the file, or nothing."""
        header, more, checksum = bytearray(HEADER_BYTES), bytearray(1), xxhash.xxh3_128()
        count = _read_all(file, [memoryview(header)], 0)
        for start in range(0, page.nbytes, PIECE):
            piece = page[start : start + PIECE]
            count += _read_all(file, [piece], count)
            checksum.update(piece)
        count += _read_all(file, [memoryview(more)], count)
        if count != HEADER_BYTES + page.nbytes:
            return f"it has {os.fstat(file).st_size:,} bytes, not {HEADER_BYTES + page.nbytes:,}"
        if header != self._header(key, page.nbytes, checksum.digest()):
            return "its header or its page was changed, or it belongs elsewhere"
        return ""

    def touch(self, keys: Iterable[bytes]) -> None:
        """Say that these blocks were used now: what was used longest ago goes first. Nothing without a limit."""
        for key in keys if self.max_bytes is not None else ():
            with suppress(OSError):  # a folder that is only read has no order of use
                os.utime(self.path_of(key))

    # ------------------------------------------------------------------------------------------------------- writing
    def write(self, blocks: Iterable[tuple[bytes, memoryview]]) -> int:
        """Keep blocks, given by key and page; how many there are now. Returns once they are on the disk.

        Never raises for a disk that is full or cannot be written to: the blocks are then not kept, and the log says so
        once. Blocks that are there already are left alone.
        """
        kept, written, folders = 0, 0, set()
        with self._pausing():
            for key, page in blocks:
                if not self.has(key):
                    if time.monotonic() < self._paused_until:
                        break
                    folders.add(self._write(key, page))
                    written += page.nbytes + HEADER_BYTES
                kept += 1
        for folder in folders:
            with suppress(OSError):
                _sync_folder(folder)
        self._trim_when_due(written)
        return kept

    def _write(self, key: bytes, page: memoryview) -> Path:
        """One block; the folder that it is in."""
        target = Path(self.path_of(key))
        file, partial = tempfile.mkstemp(dir=self.home / "tmp")
        try:
            try:
                header = self._header(key, page.nbytes, xxhash.xxh3_128_digest(page))
                _write_all(file, [memoryview(header), page])
                os.fsync(file)
            finally:
                os.close(file)
            target.parent.mkdir(exist_ok=True)
            os.replace(partial, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
        self._unusable.discard(key)
        return target.parent

    @contextmanager
    def _pausing(self) -> Iterator[None]:
        """After a write that failed, the next ones wait: each would cost as much and fail too."""
        try:
            yield
        except OSError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            self._warn("blocks of contexts are not kept", error)

    def _header(self, key: bytes, size: int, checksum: bytes) -> bytes:
        header = _HEADER.pack(_MAGIC, self.layout, len(key), key.ljust(MAX_KEY, b"\0"), size, checksum)
        return header + _CHECK.pack(xxhash.xxh3_64_intdigest(header))

    def path_of(self, key: bytes) -> str:
        """The file of a block. Raises ``RelationalError`` for a key that no block has."""
        if not 8 <= len(key) <= MAX_KEY:
            raise RelationalError(f"a block's key has {len(key)} bytes: it must have 8 to {MAX_KEY}")
        name = key.hex()
        return f"{self.root}/{name[:2]}/{name}{SUFFIX}"

    # ------------------------------------------------------------------------------------------------- what must go
    def _set_aside(self, key: bytes, problem: str) -> None:
        path = Path(self.path_of(key))
        logger.warning("%s is damaged (%s): set aside, and computed again", path, problem)
        try:
            os.replace(path, self.home / "damaged" / f"{path.stem}-{time.time_ns()}{SUFFIX}")
        except FileNotFoundError:
            return  # another process did
        except OSError:
            self._unusable.add(key)

    def _trim_when_due(self, written: int) -> None:
        if self.max_bytes is None:
            return
        with self._lock:
            self._written += written
            due = self._written >= self.max_bytes * TRIM_EACH
            self._written = 0 if due else self._written
        if due:
            self.trim()

    def trim(self) -> int:
        """Remove what was used longest ago, until 9/10 of the limit are left; bytes removed. Nothing where another
        process is at it, or without a limit."""
        if self.max_bytes is None:
            return 0
        try:
            with _locked(self.home / "lock"):
                return self._remove(sorted(_files(self.home)), self.max_bytes)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                self._warn("old blocks of contexts are not removed", error)
            return 0

    def _remove(self, files: list[tuple[int, int, str]], limit: int) -> int:
        """files: time of last use, size, path; oldest first."""
        total, removed = sum(size for _, size, _ in files), 0
        if total <= limit:
            return 0
        for _, size, path in files:
            if total - removed <= limit * TRIM_TO:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            removed += size
        return removed

    # ------------------------------------------------------------------------------------------------------- folders
    def _make(self, facts: str) -> None:
        try:
            for folder in (self.root, self.home / "tmp", self.home / "damaged"):
                folder.mkdir(parents=True, exist_ok=True)
            described = self.root / LAYOUT_FILE
            if not described.exists():
                described.write_text(facts, encoding="utf-8")
            self._clean()
        except OSError as error:
            if not self.home.is_dir():
                reason = error.strerror or error
                raise RelationalError(f"contexts cannot be kept in {self.home.parent}: {reason}") from error
            self._warn("blocks of contexts are read but not kept", error)

    def _clean(self) -> None:
        """Files of writers that were killed, and all but the newest of those set aside."""
        now = time.time_ns()
        for used, _, path in _files(self.home / "tmp"):
            if now - used > STALE_S * 1e9:
                _unlink(path)
        for _, _, path in sorted(_files(self.home / "damaged"))[:-MAX_DAMAGED]:
            _unlink(path)

    def _warn(self, what: str, error: OSError) -> None:
        """Once for each kind of error."""
        if error.errno not in self._warned:
            self._warned.add(error.errno or 0)
            logger.warning("%s in %s: %s", what, self.home, error.strerror or error)


# ------------------------------------------------------------------------------------------------------- file system
def _files(folder: Path) -> Iterator[tuple[int, int, str]]:
    """All blocks below a folder, with those being written or set aside: time of last use, size, path."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if name == LAYOUT_FILE or name == "lock":
                continue
            with suppress(FileNotFoundError):
                status = os.lstat(path)
                yield status.st_mtime_ns, status.st_size, path


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _read_all(file: int, buffers: list[memoryview], start: int) -> int:
    """Fill the buffers, one after the other, as far as the file goes; bytes read."""
    total = 0
    while buffers and (count := os.preadv(file, buffers, start + total)):
        total += count
        buffers = _behind(buffers, count)
    return total


def _write_all(file: int, buffers: list[memoryview]) -> None:
    while buffers:
        buffers = _behind(buffers, os.writev(file, buffers))


def _behind(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What of the buffers is left after so many bytes."""
    left = []
    for buffer in buffers:
        skip = min(count, buffer.nbytes)
        count -= skip
        left += [buffer[skip:]] if skip < buffer.nbytes else []
    return left


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Raises ``BlockingIOError`` where another process holds the lock; the kernel takes it from a killed one."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield

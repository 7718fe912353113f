"""How a database changes on the disk: by renames of whole folders, so that a kill at any moment loses nothing old.

    DB/.lock                          held by the one process that changes names, released by the kernel
    DB/.tmp-<random>                  a context that is being written; locked by its writer while that lives
    DB/.trash-<random>                a context that was deleted and is being removed
    DB/<fingerprint>/<context id>     contexts; see ``stored.py``

Writing needs no lock, so several processes may write large contexts at a time; what takes the lock is short. Readers
take none: what they have open stays whole when its folder is renamed and its files are unlinked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_relational.context.errors import ContextError
from vllm_relational.context.stored import sync_folder

LOCK, TEMPORARY, TRASH = ".lock", ".tmp-", ".trash-"
WAIT_SECONDS = 120.0  # for another process's renames, which take moments
RETRY_SECONDS = 0.005
_MAKE_ROOM = "delete contexts (vllm-relational context rm), or keep the database on another disk"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def locked(root: Path, wait_s: float | None = None) -> Iterator[None]:
    """The right to rename folders of a database; waits for another process, or thread, that has it.

    wait_s: seconds; by default minutes. Raises ``ContextError`` where they are over: that process was stopped.
    """
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        _wait_for(descriptor, root, WAIT_SECONDS if wait_s is None else wait_s)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, root: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not _has_lock(descriptor):
        if time.monotonic() > deadline:
            raise ContextError(
                f"another process has held {root / LOCK} for {wait_s:.0f} s: continue or end it "
                f"(fuser {root / LOCK} says which)"
            )
        time.sleep(RETRY_SECONDS)


def _has_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """A folder to write a context in. Where it was not renamed into place it is removed at the end, or by ``tidy``."""
    path = root / f"{TEMPORARY}{secrets.token_hex(8)}"
    with locked(root):  # else ``tidy`` might see it before its writer has locked it
        path.mkdir()
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def put_in_place(written: Path, target: Path) -> None:
    """Rename a folder whose files are on the disk to where there is none. Under the lock. Raises ``OSError``."""
    sync_folder(written)
    if not target.parent.exists():
        target.parent.mkdir()
        sync_folder(target.parent.parent)
    os.rename(written, target)
    sync_folder(target.parent)


def take_out(root: Path, folder: Path) -> None:
    """Delete a context: it is gone for all new readers; its room is made by ``empty_trash``. Under the lock. Raises
    ``OSError``."""
    os.rename(folder, root / f"{TRASH}{secrets.token_hex(8)}")
    sync_folder(folder.parent)


def empty_trash(root: Path) -> None:
    """Remove the files of deleted contexts, also those that killed processes left. Needs no lock."""
    with suppress(OSError):
        for left in list(root.glob(f"{TRASH}*")):
            shutil.rmtree(left, ignore_errors=True)


def tidy(root: Path) -> None:
    """Remove what killed processes had half written, or half deleted."""
    with locked(root):
        for left in list(root.glob(f"{TEMPORARY}*")):
            if not _is_written(left):
                shutil.rmtree(left, ignore_errors=True)
    empty_trash(root)


def _is_written(folder: Path) -> bool:
    """Whether its writer lives."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True  # renamed meanwhile
    except OSError:
        return False
    try:
        return not _has_lock(descriptor)
    finally:
        os.close(descriptor)


def check_room(root: Path, wanted: int) -> None:
    """Raise ``ContextError`` before anything is written where the disk has no room for so many bytes."""
    with suppress(OSError):
        room = os.statvfs(root)
        free = room.f_bavail * room.f_frsize
        if room.f_blocks and free < wanted:
            raise ContextError(
                f"no room for a context of {wanted:,} bytes in {root}: its disk has {free:,} bytes left; {_MAKE_ROOM}"
            )


@contextmanager
def explained(what: str, root: Path) -> Iterator[None]:
    """Failures to write, as errors that say what to do. what: "store a context", say."""
    try:
        yield
    except OSError as error:
        fix = "check the folder and its rights"
        if error.errno in _FULL:
            fix = _MAKE_ROOM
        raise ContextError(f"cannot {what} in {root}: {error.strerror or error}; {fix}") from error

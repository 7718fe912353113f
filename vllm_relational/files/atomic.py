"""Files that are written whole or not at all.

What is written goes into a file beside the target, with a name of its own that no link can stand under, and takes the
target's place in one step when it is complete and on the disk. Two runs on one target each write their own.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import xxhash

from vllm_relational.records import RelationalError

_PREFIX = ".vllm-relational-"  # of a file that is being written; short, whatever the target is called
_SUFFIX = ".partial"
PRIVATE = 0o600  # the mode of files of ours that hold answers, or say what was asked


def check_writable(path: Path) -> None:
    """Raise ``RelationalError`` where ``path`` cannot be written: too long a name, a folder, a device, no rights.

    Finds out by making a file beside the target. The target stays as it is.
    """
    try:
        problem = _problem(path)
        if problem is None:
            target = real_place(path)
            partial = _partial_name(target)
            _create(partial, os.O_WRONLY).close()
            partial.unlink()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    if problem:
        raise RelationalError(f"cannot write {path}: {problem}")


def real_place(path: Path) -> Path:
    """The file that is written under that name: where a symbolic link leads, also one that leads to no file yet."""
    return Path(os.path.realpath(path))


def followed(path: Path) -> Path:
    """The name itself, or of a symbolic link the file: what stands beside a file has one place for all its names."""
    return real_place(path) if os.path.islink(path) else path


@contextmanager
def replacing(
    path: Path, before: Callable[[Path], None] = lambda partial: None, private: bool = False
) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of ``path`` when the block ends well; else ``path`` stays as it was.

    before: called with the complete file, just before it takes its place.
    private: for its owner only; else the mode is that of the file it replaces, or of a new file. Raises ``OSError``.
    """
    target = real_place(path)
    _remove_left_over(target)
    partial = _partial_name(target)
    with _create(partial, os.O_RDWR) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that its writer lives
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), PRIVATE if private else stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
            before(partial)
            partial.replace(target)
            _sync_folder(target.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_whole(path: Path, data: bytes, private: bool = False) -> None:
    """Write a file of these bytes. Raises ``RelationalError`` where that fails; ``path`` then stays as it was.

    private: see ``replacing``.
    """
    try:
        with replacing(path, private=private) as file:
            file.write(data)
    except OSError as error:
        raise RelationalError(f"cannot write {path}: {error.strerror or error}") from error


def _problem(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist: make it first (mkdir -p {folder})"
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return (
            None if real_place(path).parent.is_dir() else f"it is a link into {real_place(path).parent}, which is gone"
        )
    if stat.S_ISDIR(kind):
        return "it is a folder; name a file in it"
    if not stat.S_ISREG(kind):
        return "it is no regular file"
    return None if os.access(path, os.W_OK) else "it is write-protected"


def _partial_name(target: Path) -> Path:
    return target.with_name(f"{_stem(target)}{secrets.token_hex(8)}{_SUFFIX}")


def _stem(target: Path) -> str:
    """How the names of files begin that are to replace the target."""
    return f"{_PREFIX}{xxhash.xxh3_64_hexdigest(os.fsencode(target.name))}-"


def _create(path: Path, access: int) -> IO[bytes]:
    """A new file; ``FileExistsError`` for whatever is there already, also a link to nowhere."""
    flags = access | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(path, "wb", opener=lambda name, _: os.open(name, flags, 0o666))


def _remove_left_over(target: Path) -> None:
    """Files of writers to this target that were killed."""
    for left in target.parent.glob(f"{_stem(target)}*{_SUFFIX}"):
        with (
            suppress(OSError),
            open(left, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems have no such thing
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

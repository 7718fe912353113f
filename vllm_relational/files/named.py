"""Whether two names are one file, whatever way they are written: by ``..``, a symbolic or a hard link."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_relational.records import RelationalError


@dataclass(frozen=True)
class NamedFile:
    """A file that a command was given.

    role:    what the user calls it, ``--output``.
    written: whether its content changes; two names of one file that is only read are no harm.
    given:   the name that the user gave, where this one was made of it by adding to its end.
    """

    role: str
    path: Path
    written: bool
    given: Path | None = None


def check_distinct(files: Iterable[NamedFile]) -> None:
    """Raise ``RelationalError`` where two names are one file and one of them is written. None of them need exist."""
    seen: dict[object, list[NamedFile]] = {}
    for file in files:
        for identity in _identities(file.path):
            for other in seen.setdefault(identity, []):
                if file.written or other.written:
                    raise RelationalError(
                        f"{other.role} and {file.role} are one file ({_shown(other.path, file.path)}): name two files"
                    )
            seen[identity].append(file)


def standard_streams() -> Iterator[NamedFile]:
    """Standard output and error where they are files: ``> FILE`` writes as ``-o FILE`` does."""
    for role, number in (("standard output", 1), ("standard error", 2)):
        place = Path(f"/dev/fd/{number}")
        try:
            if stat.S_ISREG(os.fstat(number).st_mode) and sys.platform == "linux":
                yield NamedFile(role, place, True)
        except OSError:  # closed
            continue


def check_usable(file: NamedFile) -> None:
    """Raise ``RelationalError`` where a name can be no file: too long, a folder, a pipe, a device, a link to itself."""
    try:
        kind = file.path.stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    else:
        problem = None if stat.S_ISREG(kind) else "it is a folder" if stat.S_ISDIR(kind) else "it is no regular file"
    if problem and file.given is not None:
        added = file.path.name.removeprefix(file.given.name)
        raise RelationalError(
            f"cannot use {file.given}: a file of its name and {added} is kept beside it, which cannot be: {problem}; "
            "name another"
        )
    if problem:
        raise RelationalError(f"cannot use {file.path} as {file.role}: {problem}; name another")


def _identities(path: Path) -> Iterator[object]:
    """What is equal for two names of one file: the file itself, and its place in a folder."""
    try:
        found = path.stat()
        yield found.st_dev, found.st_ino
    except (OSError, ValueError):
        pass
    real = Path(os.path.realpath(path))
    try:
        folder = real.parent.stat()
        yield folder.st_dev, folder.st_ino, real.name
    except (OSError, ValueError):
        yield str(real)


def _shown(one: Path, other: Path) -> str:
    return str(one) if one == other else f"{one}, {other}"

"""What is in a database, read from its folders: for lists, for names, and for what goes first when room is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vllm_relational.context.errors import ContextError
from vllm_relational.context.manifest import is_id, read_manifest, seal
from vllm_relational.context.stored import NAMES, ContextNames, contexts_in, index_kinds, read_names, read_tokens
from vllm_relational.files.atomic import write_whole
from vllm_relational.terminal import printable

MAX_NAME_CHARS = 200
MIN_ID_CHARS = 4  # of the beginning of an id that stands for it


@dataclass(frozen=True)
class ContextInfo:
    """One context.

    num_bytes: of all its files, indexes too. created, used: seconds since 1970; used is when it last served or was
    stored. indexes: their kinds. problem: why it cannot be used, as far as its manifest says; then what is said of
    tokens and layers is 0.
    """

    id: str
    fingerprint: str
    model: str
    names: tuple[str, ...]
    num_tokens: int
    num_layers: int
    dtype: str
    num_bytes: int
    created: float
    used: float
    indexes: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class StoreStat:
    """A database as a whole. free_bytes: that the disk has left. problems: contexts that cannot be used."""

    path: str
    num_contexts: int
    num_tokens: int
    num_bytes: int
    num_fingerprints: int
    free_bytes: int
    max_bytes: int | None
    problems: int


@dataclass(frozen=True)
class ContextProblem:
    """What is wrong with a context, or beside them (id is then empty)."""

    id: str
    text: str


def folders_of(root: Path) -> Iterator[Path]:
    """Of all contexts, readable or not."""
    for fingerprint in contexts_in(root):
        yield from (Path(entry.path) for entry in contexts_in(Path(fingerprint.path)))


def info_of(folder: Path) -> ContextInfo | None:
    """None for a context that was deleted meanwhile."""
    try:
        used = folder.stat().st_mtime
        manifest = read_manifest(folder)
        read_tokens(folder, manifest)
    except (OSError, ContextError) as error:
        if not folder.exists():
            return None
        problem = f"{error.filename} cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        size = size_of(folder)
        return ContextInfo(
            folder.name, folder.parent.name, "", tuple(read_names(folder)), 0, 0, "", size, 0.0, 0.0, (), problem
        )
    return ContextInfo(
        id=manifest.id,
        fingerprint=manifest.fingerprint,
        model=manifest.model,
        names=tuple(read_names(folder)),
        num_tokens=manifest.num_tokens,
        num_layers=len(manifest.layers),
        dtype=manifest.layers[0].dtype,
        num_bytes=size_of(folder),
        created=manifest.created,
        used=used,
        indexes=index_kinds(folder),
        problem=None,
    )


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; 0 where it is gone."""
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


class Sizes:
    """Sizes of contexts, read again only for those that were used or got an index since."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[Path, tuple[int, int]] = {}  # folder -> its time in ns, its bytes

    def by_use(self) -> list[tuple[Path, int]]:
        """All contexts and their bytes, the one that was not used for longest first."""
        found: dict[Path, tuple[int, int]] = {}
        for folder in folders_of(self._root):
            with suppress(FileNotFoundError):
                used = folder.stat().st_mtime_ns
                before = self._known.get(folder)
                found[folder] = before if before is not None and before[0] == used else (used, size_of(folder))
        self._known = found
        return [(folder, size) for folder, (_, size) in sorted(found.items(), key=lambda item: item[1][0])]


# ------------------------------------------------------------------------------------------------------- names
def check_name(name: str) -> None:
    """Raise ``ContextError`` for what cannot be the name of a context."""
    if not isinstance(name, str) or not name.strip() or name != name.strip() or len(name) > MAX_NAME_CHARS:
        raise ContextError(
            f"{name!r} is no name for a context: 1 to {MAX_NAME_CHARS} characters, no blanks at the ends"
        )
    if printable(name) != name or is_id(name):
        raise ContextError(f"{name!r} is no name for a context: it could not be told apart, or not be shown")


def find_folder(root: Path, wanted: str) -> Path:
    """The context of a name, an id, or the beginning of an id. Raises ``ContextError`` unless it is exactly one."""
    folders = list(folders_of(root))
    found = [folder for folder in folders if wanted in read_names(folder)]
    found = found or [folder for folder in folders if folder.name == wanted]
    if not found and len(wanted) >= MIN_ID_CHARS:
        found = [folder for folder in folders if folder.name.startswith(wanted)]
    if not found:
        raise ContextError(
            f"there is no context {wanted!r} in {root}: vllm-relational context list shows what there is"
        )
    if len(found) > 1:
        places = ", ".join(f"{folder.name} of model {folder.parent.name[:8]}" for folder in found[:5])
        raise ContextError(f"{wanted!r} stands for {len(found)} contexts: {places}; give the whole id, or another name")
    return found[0]


def check_free(folder: Path, name: str) -> None:
    """Raise ``ContextError`` where another context of the same model has the name. folder: of the one to be named."""
    for entry in contexts_in(folder.parent):
        if entry.name != folder.name and name in read_names(Path(entry.path)):
            raise ContextError(
                f"another context is called {name!r} ({entry.name}): take another name, or delete it first"
            )


def add_name(folder: Path, name: str) -> None:
    """Give a context one more name. Under the lock. Raises ``ContextError``."""
    names = read_names(folder)
    if name not in names:
        check_free(folder, name)
        write_whole(folder / NAMES, seal(ContextNames([*names, name])))


def as_json(value: ContextInfo | StoreStat | ContextProblem) -> bytes:
    """One object in one line."""
    return msgspec.json.encode(value)

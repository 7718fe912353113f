"""One context on the disk, open for reading: its token ids, its layers, and the indexes built over them later.

Everything is opened at once, so that a context that is deleted or evicted meanwhile stays usable to the end. Indexes
come and go: each is a file beside the layers, with a sealed record of its checksums. One that does not fit its record
is taken away and built again, never believed.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from vllm_relational.context.errors import ContextError, DamagedContextError
from vllm_relational.context.files import LayerFile, LayerShape, checksums_of, forget, verify_file
from vllm_relational.context.manifest import TOKENS, ContextManifest, is_id, read_manifest, seal, unseal

TOKEN = np.dtype("<u4")
NAMES = "names.json"

_PARTIAL = ".tmp-"
_ABANDONED_SECONDS = 86_400.0  # a file that is being written is written to within a day
_KIND = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_INDEX = re.compile(r"index_([a-z0-9_]+)_(\d\d+)")


class ContextGoneError(ContextError):
    """The context was deleted, or evicted for a newer one, before it was opened."""


class ContextNames(msgspec.Struct, frozen=True):
    """What people call a context; the only thing of it that changes."""

    names: list[str]
    format: int = 1


class IndexRecord(msgspec.Struct, frozen=True):
    """What an index file held when it was written."""

    checksums: list[str]
    format: int = 1


class StoredContext:
    """A context of ``fingerprint``: token ids uint32 ``[num_tokens]``, read-only, and a file for each layer.

    Immutable, and usable for as long as it lives, also when it is deleted meanwhile. Safe to use from several threads.
    Opening checks all headers and the token ids; what the layers hold is checked by ``verify``. Raises
    ``ContextGoneError``, ``DamagedContextError``, ``NewerFormatError``, and ``ContextError`` for what cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _explained(folder):
            self.manifest = read_manifest(folder)
            self.token_ids = read_tokens(folder, self.manifest)
            self._layers = [self._open_layer(index) for index in range(self.num_layers)]

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self.manifest.id

    @property
    def fingerprint(self) -> str:
        """Of the model whose keys and values these are."""
        return self.manifest.fingerprint

    @property
    def num_tokens(self) -> int:
        """Stored tokens."""
        return self.manifest.num_tokens

    @property
    def num_layers(self) -> int:
        """Layers, each of one file."""
        return len(self.manifest.layers)

    @property
    def shapes(self) -> list[LayerShape]:
        """By layer."""
        return [layer.shape for layer in self._layers]

    def layer(self, index: int) -> LayerFile:
        """The keys and values of a layer; their bytes are those that were written once ``verify`` has passed."""
        return self._layers[index]

    def verify(self, num_tokens: int | None = None) -> None:
        """Compare the first ``num_tokens`` of all layers with their checksums, once in a process; None for all.

        What holds them is compared in pieces of a MiB. Raises ``DamagedContextError``.
        """
        for layer, entry in zip(self._layers, self.manifest.layers, strict=True):
            with _explained(self.folder):
                layer.verify(entry.checksums, num_tokens)

    def problems(self) -> Iterator[str]:
        """Read every file anew and say what is damaged beside tokens and layers, for which it raises as ``verify``."""
        for layer in self._layers:
            forget(layer.fileno())
        self.verify()
        if _names_in(self.folder) is None:
            yield f"{self.folder / NAMES} is damaged: the context's names are lost, store it again under a name"
        for file in sorted(self.folder.glob("index_*")):
            recorded = _record_of(file).exists()
            if (match := _INDEX.fullmatch(file.name)) and self.index_path(match[1], int(match[2]), again=True) is None:
                remove_index(file)
                if recorded:  # else its writer was killed just before
                    yield f"{file} was damaged and is removed: it is built again when it is needed"

    def touch(self) -> None:
        """Say that the context is used: the time of its folder orders what is evicted."""
        with suppress(OSError):  # of a database that cannot be written, or a context that is gone
            os.utime(self.folder)

    def _open_layer(self, index: int) -> LayerFile:
        entry = self.manifest.layers[index]
        layer = LayerFile(self.folder / entry.file)
        if layer.shape != entry.shape(self.num_tokens):
            raise DamagedContextError(f"{layer.path} is that of another context: delete this one")
        return layer

    # ------------------------------------------------------------------------------------------------ indexes
    def index_path(self, kind: str, layer: int, again: bool = False) -> Path | None:
        """The file of an index over the keys of a layer, found whole; None where it has to be built.

        An index that is damaged is removed. again: read it though this process found it whole before.
        """
        path = self._index_file(kind, layer)
        record = _record_of(path)
        try:
            with open(path, "rb") as file:
                if again:
                    forget(file.fileno())
                verify_file(file.fileno(), path, unseal(record.read_bytes(), IndexRecord, record).checksums)
            return path
        except (DamagedContextError, OSError) as error:
            if not isinstance(error, FileNotFoundError):
                remove_index(path)
        except ContextError:  # of a newer version
            pass
        return None

    def add_index(self, kind: str, layer: int, write: Callable[[Path], None]) -> Path | None:
        """Keep an index over the keys of a layer: ``write`` writes it into the file that it is given.

        Returns its path; None where it cannot be kept: the context was deleted, the disk is full or write-protected, or
        keys of the layer are damaged that its session did not need.
        """
        path = self._index_file(kind, layer)
        _sweep(self.folder)
        partial = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}")
        try:
            self._layers[layer].verify(self.manifest.layers[layer].checksums)
            write(partial)
            record = seal(IndexRecord(synced_checksums(partial)))
            remove_index(path)
            os.replace(partial, path)
            write_synced(partial, record)
            os.replace(partial, _record_of(path))
            sync_folder(self.folder)
            return path
        except (OSError, DamagedContextError):
            return None
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _index_file(self, kind: str, layer: int) -> Path:
        if not _KIND.fullmatch(kind) or not 0 <= layer < self.num_layers:
            raise ContextError(f"there can be no index {kind!r} of layer {layer} of {self.num_layers}")
        return self.folder / f"index_{kind}_{layer:02d}"


def open_stored(folder: Path, known: weakref.WeakValueDictionary[str, StoredContext]) -> StoredContext:
    """The context of a folder; one that is open already is used by all. Raises as ``StoredContext`` does."""
    key = str(folder)
    stored = known.get(key)
    if stored is None or not folder.exists():
        known[key] = stored = StoredContext(folder)
    return stored


def read_tokens(folder: Path, manifest: ContextManifest) -> np.ndarray:
    """The token ids of a context: uint32, read-only. Raises ``OSError``, ``DamagedContextError``."""
    path = folder / TOKENS
    data = path.read_bytes()
    if len(data) != 4 * manifest.num_tokens or xxhash.xxh3_64_hexdigest(data) != manifest.tokens_checksum:
        raise DamagedContextError(f"{path} is damaged: delete the context")
    return np.frombuffer(data, TOKEN)


def read_names(folder: Path) -> list[str]:
    """What people call the context of a folder; nothing where that cannot be read."""
    return _names_in(folder) or []


def _names_in(folder: Path) -> list[str] | None:
    try:
        return unseal((folder / NAMES).read_bytes(), ContextNames, folder / NAMES).names
    except (OSError, ContextError):
        return None


def index_kinds(folder: Path) -> tuple[str, ...]:
    """Kinds of the indexes of the context of a folder."""
    try:
        return tuple(sorted({match[1] for name in os.listdir(folder) if (match := _INDEX.fullmatch(name))}))
    except OSError:
        return ()


def contexts_in(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The contexts of a fingerprint's folder, or the fingerprints of a database: whatever can be one by its name."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if is_id(entry.name) and entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return


def remove_index(path: Path) -> None:
    """Take an index away: its record first, so that a file is never taken for another's."""
    for file in (_record_of(path), path):
        with suppress(OSError):
            file.unlink()


def _sweep(folder: Path) -> None:
    """Take away what was left by processes that ended while they wrote an index."""
    with suppress(OSError):
        for left in folder.glob(f"{_PARTIAL}*"):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()


def _record_of(index: Path) -> Path:
    return index.with_name(f"{index.name}.json")


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Failures to read, as errors that say what to do."""
    try:
        yield
    except FileNotFoundError as error:
        if not folder.exists():
            raise ContextGoneError(f"{folder} was deleted") from error
        raise DamagedContextError(f"{error.filename} is missing: delete the context") from error
    except OSError as error:
        what = f"cannot read {error.filename or folder}: {error.strerror}"
        if error.errno == errno.EIO:
            raise DamagedContextError(f"{what}: the disk is failing, delete the context") from error
        raise ContextError(f"{what}{_fix(error)}") from error


def _fix(error: OSError) -> str:
    many = "; a context keeps a file open for each layer: raise the limit (ulimit -n)"
    return many if error.errno in (errno.EMFILE, errno.ENFILE) else ""


# --------------------------------------------------------------------------------------------- onto the disk
def write_synced(path: Path, data: bytes) -> None:
    """A new file of these bytes, on the disk. Raises ``OSError``, for a file that exists too."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def synced_checksums(path: Path) -> list[str]:
    """Bring a file that was written to the disk, and return its checksums."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return checksums_of(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk. Raises ``OSError``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have no such thing
            raise
    finally:
        os.close(descriptor)

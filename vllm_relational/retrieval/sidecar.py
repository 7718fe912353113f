"""What an index was made from, in a JSON file beside it, and both files written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from vllm_relational.files.atomic import write_whole
from vllm_relational.records import RelationalError

VERSION = 1
REBUILD = "build it again: vllm-relational index TABLE COLUMN -o PATH --overwrite, or build_index(...)"


@dataclass(frozen=True)
class Sidecar:
    """The description of an index.

    column:       of the passages.
    fingerprint:  of the passages and their rows, see ``Passages.fingerprint``.
    num_passages: distinct texts.
    embedder:     name of the embedding model.
    dimension:    of its vectors.
    search:       'exact' or 'approximate'.
    source:       the file of the table, relative to the index's folder; None for a table that was no file.
    digest:       of the index file, so that half-replaced pairs of files are found.
    """

    column: str
    fingerprint: str
    num_passages: int
    embedder: str
    dimension: int
    search: str
    source: str | None
    digest: str
    version: int = VERSION


def sidecar_path(path: Path) -> Path:
    """``passages.index`` is described in ``passages.index.json``."""
    return path.with_name(f"{path.name}.json")


def digest_of(index: bytes) -> str:
    """The digest of an index file's bytes."""
    return hashlib.blake2b(index, digest_size=16).hexdigest()


def write_index(path: Path, index: bytes, sidecar: Sidecar) -> None:
    """Write both files; a reader sees the old ones, the new ones, or a pair that ``read_index`` refuses."""
    text = json.dumps(dataclasses.asdict(sidecar), ensure_ascii=False, indent=1)
    write_whole(path, index)
    write_whole(sidecar_path(path), text.encode("utf-8", "surrogatepass"))


def read_index(path: Path) -> tuple[bytes, Sidecar]:
    """The bytes of the index file and its description. Raises ``RelationalError`` when they do not belong together."""
    sidecar = read_sidecar(path)
    try:
        index = path.read_bytes()
    except OSError as error:
        raise RelationalError(f"cannot read the index {path}: {error}; {REBUILD}") from error
    if digest_of(index) != sidecar.digest:
        raise RelationalError(f"the index {path} and {sidecar_path(path)} do not belong together: {REBUILD}")
    return index, sidecar


def read_sidecar(path: Path) -> Sidecar:
    """The description of the index at ``path``."""
    described = sidecar_path(path)
    if not described.exists():
        raise RelationalError(f"there is no index {path} ({described} is missing): {REBUILD}")
    try:
        fields = json.loads(described.read_text(encoding="utf-8", errors="surrogatepass"))
        if fields["version"] != VERSION:
            raise RelationalError(
                f"the index {path} has version {fields['version']}, this one reads {VERSION}: {REBUILD}"
            )
        sidecar = Sidecar(**fields)
        _check_kinds(sidecar)
        return sidecar
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RelationalError(f"{described} does not describe an index ({error}): {REBUILD}") from error


def _check_kinds(sidecar: Sidecar) -> None:
    """Raise ``TypeError`` where a field holds what no ``write_index`` wrote."""
    for field in dataclasses.fields(sidecar):
        value = getattr(sidecar, field.name)
        kinds = {"int": (int,), "str": (str,), "str | None": (str, type(None))}[str(field.type)]
        if type(value) not in kinds:
            raise TypeError(f"{field.name} is {value!r}")

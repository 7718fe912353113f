"""The manifest of a context: what its files are, and the checksums that say whether they still are.

``manifest.json`` is ``{"checksum": ..., "manifest": {...}}``: the checksum is xxh3 over the bytes of the inner object
as they stand there. It is written last, once, and never changed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec
import xxhash

from vllm_relational.context.errors import DamagedContextError, NewerFormatError
from vllm_relational.context.files import LayerShape

FORMAT = 1
MANIFEST = "manifest.json"
TOKENS = "tokens.u32"

_ID = re.compile(r"[0-9a-f]{32}")


class LayerEntry(msgspec.Struct, frozen=True):
    """One layer's file. checksums: see ``write_layer``."""

    file: str
    num_kv_heads: int
    head_size: int
    dtype: str
    checksums: list[str]

    def shape(self, num_tokens: int) -> LayerShape:
        """Of the file."""
        return LayerShape(self.num_kv_heads, num_tokens, self.head_size, self.dtype)


class ContextManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a context's folder.

    id:          hexadecimal, 32 digits, made of fingerprint and token ids: what is stored once has one id.
    fingerprint: of the model whose keys and values these are.
    model:       its name, for people.
    created:     seconds since 1970.
    tokens_checksum: xxh3 of ``tokens.u32``, which holds the token ids as little-endian uint32.
    """

    format: int = FORMAT
    id: str
    fingerprint: str
    model: str
    created: float
    num_tokens: int
    tokens_checksum: str
    layers: list[LayerEntry]

    @property
    def num_bytes(self) -> int:
        """Of the files of the layers and the tokens."""
        return 4 * self.num_tokens + sum(layer.shape(self.num_tokens).file_bytes for layer in self.layers)


def is_id(name: str) -> bool:
    """Whether a name can be that of a context's folder or of a fingerprint's: nothing else is ever opened."""
    return _ID.fullmatch(name) is not None


def layer_file(index: int) -> str:
    """The name of a layer's file."""
    return f"layer_{index:02d}.kv"


class _Sealed(msgspec.Struct):
    checksum: str
    manifest: msgspec.Raw


class _Version(msgspec.Struct):
    format: int


_Sealable = TypeVar("_Sealable", bound=msgspec.Struct)


def seal(content: msgspec.Struct) -> bytes:
    """The bytes of a file that holds ``content`` with a checksum."""
    inner = msgspec.json.encode(content)
    return msgspec.json.encode(_Sealed(_digest(inner), msgspec.Raw(inner)))


def unseal(data: bytes, kind: type[_Sealable], path: Path) -> _Sealable:
    """What ``seal`` put into a file. Raises ``DamagedContextError`` for anything else; path: for the message."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        if _digest(bytes(sealed.manifest)) == sealed.checksum:
            return _decoded(bytes(sealed.manifest), kind, path)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    raise DamagedContextError(f"{path} is damaged, or was not written by vllm-relational: delete the context")


def _decoded(inner: bytes, kind: type[_Sealable], path: Path) -> _Sealable:
    version = msgspec.json.decode(inner, type=_Version).format
    if version != FORMAT:
        raise NewerFormatError(f"{path} has format {version}, this version reads {FORMAT}: upgrade vllm-relational")
    return msgspec.json.decode(inner, type=kind)


def _digest(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def read_manifest(folder: Path) -> ContextManifest:
    """The manifest of a context's folder. Raises ``OSError``, ``DamagedContextError``, ``NewerFormatError``."""
    path = folder / MANIFEST
    manifest = unseal(path.read_bytes(), ContextManifest, path)
    if (manifest.id, manifest.fingerprint) != (folder.name, folder.parent.name):
        raise DamagedContextError(f"{path} is that of another context: move the folder back, or delete it")
    _check_layers(manifest, path)
    return manifest


def _check_layers(manifest: ContextManifest, path: Path) -> None:
    """A valid checksum is no promise that another program wrote what we would."""
    names = [layer.file for layer in manifest.layers]
    if not names or names != [layer_file(index) for index in range(len(names))] or manifest.num_tokens < 1:
        raise DamagedContextError(f"{path} names no layers that there can be: delete the context")

"""The kinds of indexes, and their files: one for all KV heads of a layer.

A file holds no keys. It has a header of its own: magic bytes, format, the keys that it belongs to (type, number, head
size, and a digest of some of them), where each array lies, and xxh3 checksums of header and arrays. A file that is
damaged, or of other keys, raises ``DamagedContextError``: build the index again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from vllm_relational.context.errors import ContextError, DamagedContextError
from vllm_relational.context.search.base import SearchedKeys
from vllm_relational.context.search.clusters import Clusters
from vllm_relational.context.search.codes import Int4
from vllm_relational.context.search.flat import Flat
from vllm_relational.context.search.graph import Graph

KINDS: dict[str, type[SearchedKeys]] = {"flat": Flat, "int4": Int4, "clusters": Clusters, "graph": Graph}
MAGIC = b"VRKEYIX\n"
FORMAT = 1
ALIGN = 64
_PREFIX = struct.Struct("<8sQQ")  # magic, bytes of the header, its xxh3_64
MAX_HEADER = 1 << 26
SAMPLED = 64
"""Keys whose digest says that an index belongs to them."""


class ArrayPlace(msgspec.Struct, frozen=True):
    """An array of a file: its place behind the header, in bytes."""

    name: str
    dtype: str
    shape: list[int]
    offset: int


class IndexedHead(msgspec.Struct, frozen=True):
    """The index of one KV head."""

    keys: str
    settings: dict[str, float]
    arrays: list[ArrayPlace]


class IndexHeader(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    format: int
    kind: str
    payload_bytes: int
    checksum: str
    heads: list[IndexedHead]


def build(kind: str, keys: np.ndarray, queries: np.ndarray | None = None) -> SearchedKeys:
    """The index of that kind over the keys of one KV head ``[num_keys, head_size]``.

    queries: float32 ``[num_queries, head_size]``, some that were asked of these keys; only a graph needs them.
    """
    if kind == "flat":
        return Flat(keys)
    if kind == "int4":
        return Int4.build(keys)
    if kind == "clusters":
        return Clusters.build(keys)
    if kind == "graph":
        return Graph.build(keys, np.zeros((0, keys.shape[1]), np.float32) if queries is None else queries)
    raise ContextError(f"there is no index of kind {kind!r}: there are {', '.join(KINDS)}")


def digest_of(keys: np.ndarray) -> str:
    """Type and size of the keys, and some of them."""
    places = np.linspace(0, max(len(keys) - 1, 0), min(len(keys), SAMPLED)).astype(np.int64)
    of_some = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(keys[places]).tobytes())
    return f"{keys.dtype.name} {len(keys)} {keys.shape[1]} {of_some}"


def save(path: Path, indexes: Sequence[SearchedKeys]) -> None:
    """Write the indexes of a layer's KV heads, all of one kind, into a file. It is on the disk when this returns."""
    kinds = {index.kind for index in indexes}
    if len(kinds) != 1:
        raise ContextError(f"an index file holds indexes of one kind, not {sorted(kinds)}")
    heads, parts, size, digest = [], [], 0, xxhash.xxh3_128()
    for index in indexes:
        places = []
        for name, array in index.arrays.items():
            data = np.ascontiguousarray(array).tobytes()
            padded = data + bytes(-len(data) % ALIGN)
            places.append(ArrayPlace(name, array.dtype.str, list(array.shape), size))
            parts.append(padded)
            digest.update(padded)
            size += len(padded)
        heads.append(IndexedHead(digest_of(index.keys), index.settings, places))
    header = msgspec.json.encode(IndexHeader(FORMAT, kinds.pop(), size, digest.hexdigest(), heads))
    header += b" " * (-(len(header) + _PREFIX.size) % ALIGN)
    _write(path, [_PREFIX.pack(MAGIC, len(header), xxhash.xxh3_64_intdigest(header)), header, *parts])


def _write(path: Path, parts: list[bytes]) -> None:
    with open(path, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, keys: Sequence[np.ndarray], kind: str | None = None) -> list[SearchedKeys]:
    """The indexes of a layer, whose keys of each KV head are given; their arrays stay in the file, mapped.

    Raises ``DamagedContextError`` where the file does not hold what was written, is of another kind, or of other keys.
    """
    header, start = _read_header(path)
    if len(header.heads) != len(keys) or (kind is not None and header.kind != kind) or header.kind not in KINDS:
        raise _damaged(
            path, f"is an index {header.kind!r} of {len(header.heads)} KV heads, not {kind!r} of {len(keys)}"
        )
    payload = _payload(path, header, start)
    return [_index_of(path, header.kind, head, own, payload) for head, own in zip(header.heads, keys, strict=True)]


def _damaged(path: Path, what: str) -> DamagedContextError:
    return DamagedContextError(f"{path} {what}: remove it, and the index is built again")


def _read_header(path: Path) -> tuple[IndexHeader, int]:
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
            raise _damaged(path, "is no index file, or is cut off")
        _, size, checksum = _PREFIX.unpack(prefix)
        data = file.read(min(size, MAX_HEADER))
    if len(data) != size or xxhash.xxh3_64_intdigest(data) != checksum:
        raise _damaged(path, "has a damaged header")
    try:
        header = msgspec.json.decode(data, type=IndexHeader)
    except msgspec.MsgspecError as error:
        raise _damaged(path, f"has a header of another format ({error})") from error
    if header.format != FORMAT:
        raise _damaged(path, f"has format {header.format}, where this version knows {FORMAT}")
    return header, _PREFIX.size + size


def _payload(path: Path, header: IndexHeader, start: int) -> np.ndarray:
    size = path.stat().st_size - start
    if size != header.payload_bytes:
        raise _damaged(path, f"has {size} bytes of arrays, not {header.payload_bytes}")
    if size == 0:
        return np.zeros(0, np.uint8)
    payload: np.ndarray = np.asarray(np.memmap(path, np.uint8, "r", start, (size,)))
    if xxhash.xxh3_128_hexdigest(payload.data) != header.checksum:
        raise _damaged(path, "holds other bytes than were written")
    return payload


def _index_of(path: Path, kind: str, head: IndexedHead, keys: np.ndarray, payload: np.ndarray) -> SearchedKeys:
    if head.keys != digest_of(keys):
        raise _damaged(path, f"was built over other keys ({head.keys}, not {digest_of(keys)})")
    made: Any = KINDS[kind]
    try:
        arrays = {place.name: _array(payload, place) for place in head.arrays}
        index: SearchedKeys = made(keys) if kind == "flat" else made(keys, arrays, head.settings)
    except (ContextError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise _damaged(path, f"does not hold an index {kind!r} ({error})") from error
    return index


def _array(payload: np.ndarray, place: ArrayPlace) -> np.ndarray:
    dtype = np.dtype(place.dtype)
    size = int(np.prod(place.shape, dtype=np.int64)) * dtype.itemsize
    return payload[place.offset : place.offset + size].view(dtype).reshape(place.shape)

"""The file of one layer: its keys and values, head by head, each on pages of its own so that it can be mapped.

    header, 4 KiB | keys of head 0 | ... | keys of head H-1 | values of head 0 | ... | values of head H-1

A region is ``[num_tokens, head_size]`` in the layer's dtype, little endian, padded with zeros to a multiple of 4 KiB.
The header holds the shape, where the regions are, and a checksum over itself. Checksums of the whole file, one per MiB,
are kept in the manifest of the context. A file is never changed once it is written.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from vllm_relational.context.errors import ContextError, DamagedContextError, NewerFormatError

MAGIC = b"VLRLAYER"
VERSION = 1
PAGE = 4096
CHUNK = 1 << 20  # bytes under one checksum
STORED_AS: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}
"""NumPy's type of each dtype; it has no bfloat16, whose bits stand in uint16."""

StoredKind = Literal["keys", "values"]

# magic, version, dtype, num_kv_heads, num_tokens, head_size, offset of keys, offset of values, from head to head
_HEADER = struct.Struct("<8sI12sIQIQQQ")
_CHECKSUM = struct.Struct("<Q")


@dataclass(frozen=True)
class LayerShape:
    """The shape of the keys of a layer, which is that of its values: ``[num_kv_heads, num_tokens, head_size]``.

    dtype: "bfloat16", "float16" or "float32". Raises ``ContextError`` for a shape that no file has.
    """

    num_kv_heads: int
    num_tokens: int
    head_size: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in STORED_AS:
            raise ContextError(f"keys and values of dtype {self.dtype} cannot be stored: {', '.join(STORED_AS)} can")
        if min(self.num_kv_heads, self.num_tokens, self.head_size) < 1:
            raise ContextError(f"nothing to store: a layer of {self}")

    @property
    def region_bytes(self) -> int:
        """Of the keys of one head, without padding."""
        return self.num_tokens * self.head_size * STORED_AS[self.dtype].itemsize

    @property
    def stride(self) -> int:
        """Bytes from one head to the next: a multiple of 4096."""
        return -(-self.region_bytes // PAGE) * PAGE

    @property
    def file_bytes(self) -> int:
        """Of a file of this shape."""
        return PAGE + 2 * self.num_kv_heads * self.stride


def write_layer(path: Path, keys: Sequence[np.ndarray], values: Sequence[np.ndarray], shape: LayerShape) -> list[str]:
    """Write a new file, to the disk, and return its checksums: hexadecimal, one per MiB.

    keys, values: by head ``[num_tokens, head_size]`` (so arrays ``[num_kv_heads, num_tokens, head_size]`` will do),
    bfloat16 as uint16. They are taken one at a time; what is contiguous is not copied. Raises ``ContextError`` for
    another shape or type, ``OSError`` where the file exists or cannot be written.
    """
    with open(path, "xb", buffering=0) as file:
        sums = _Checksums()
        for data in _contents(keys, values, shape):
            _write_all(file.fileno(), data)
            sums.update(data)
        os.fsync(file.fileno())
    return sums.finish()


def _contents(keys: Sequence[np.ndarray], values: Sequence[np.ndarray], shape: LayerShape) -> Iterator[memoryview]:
    """The bytes of the file in order."""
    padding = memoryview(bytes(shape.stride - shape.region_bytes))
    yield memoryview(_header(shape))
    for part in (keys, values):
        if len(part) != shape.num_kv_heads:
            raise ContextError(f"keys or values of {len(part)} heads, where {shape.num_kv_heads} were expected")
        for head in range(shape.num_kv_heads):
            yield _bytes_of(part[head], shape)
            yield padding


def _bytes_of(head: np.ndarray, shape: LayerShape) -> memoryview:
    expected = (shape.num_tokens, shape.head_size)
    if head.shape != expected or head.dtype != STORED_AS[shape.dtype]:
        raise ContextError(
            f"a head is {head.dtype} {list(head.shape)}, where {STORED_AS[shape.dtype]} {list(expected)} was expected"
        )
    return np.ascontiguousarray(head).reshape(-1).view(np.uint8).data


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _header(shape: LayerShape) -> bytes:
    values_at = PAGE + shape.num_kv_heads * shape.stride
    fields = _HEADER.pack(
        MAGIC,
        VERSION,
        shape.dtype.encode(),
        shape.num_kv_heads,
        shape.num_tokens,
        shape.head_size,
        PAGE,
        values_at,
        shape.stride,
    )
    body = fields.ljust(PAGE - _CHECKSUM.size, b"\0")
    return body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


class _Checksums:
    """xxh3 of every MiB of what is handed over piece by piece."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._open, self._filled = xxhash.xxh3_64(), 0

    def update(self, data: memoryview) -> None:
        while data:
            piece = data[: CHUNK - self._filled]
            self._open.update(piece)
            self._filled += len(piece)
            data = data[len(piece) :]
            if self._filled == CHUNK:
                self._end()

    def _end(self) -> None:
        self._done.append(self._open.hexdigest())
        self._open, self._filled = xxhash.xxh3_64(), 0

    def finish(self) -> list[str]:
        if self._filled:
            self._end()
        return self._done


class LayerFile:
    """A layer's file, open for reading for as long as this object or an array of it lives, also when it is deleted.

    Opening checks the header and the size. Raises ``DamagedContextError`` for a file that is not what was written,
    ``NewerFormatError`` for one of a newer version, ``OSError`` where it cannot be opened. What the regions hold is
    checked by ``verify`` only. Safe to use from several threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._mapped: mmap.mmap | None = None
        self.shape = self._checked_shape()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # modules may be gone when Python ends
        if hasattr(self, "_descriptor"):
            close(self._descriptor)

    def fileno(self) -> int:
        """The open file, for mapping regions of it; closed with this object."""
        return self._descriptor

    def _checked_shape(self) -> LayerShape:
        status = os.fstat(self._descriptor)
        header = os.pread(self._descriptor, PAGE, 0) if stat.S_ISREG(status.st_mode) else b""
        shape = _shape_of(header, self.path)
        if status.st_size != shape.file_bytes:
            raise DamagedContextError(
                f"{self.path} has {status.st_size:,} bytes, {shape.file_bytes:,} were written: delete the context"
            )
        return shape

    def region(self, kind: StoredKind, head: int) -> tuple[int, int]:
        """Where the keys or values of a head are: the offset, a multiple of 4096, and the bytes."""
        if not 0 <= head < self.shape.num_kv_heads:
            raise IndexError(f"there is no KV head {head}: {self.shape.num_kv_heads} heads")
        place = head + (self.shape.num_kv_heads if kind == "values" else 0)
        return PAGE + place * self.shape.stride, self.shape.region_bytes

    def array(self, kind: StoredKind, head: int) -> np.ndarray:
        """Mapped, read-only: ``[num_tokens, head_size]``; uint16 for bfloat16. Pages are read when they are used."""
        if self._mapped is None:
            self._mapped = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
        offset, _ = self.region(kind, head)
        count = self.shape.num_tokens * self.shape.head_size
        flat: np.ndarray = np.frombuffer(self._mapped, STORED_AS[self.shape.dtype], count, offset)
        return flat.reshape(self.shape.num_tokens, self.shape.head_size)

    def verify(self, checksums: Sequence[str], num_tokens: int | None = None) -> None:
        """Compare what holds the first ``num_tokens`` of every head with its checksums; None for the whole file.

        What was found right is not read again in this process while the file's size, times and inode are the same.
        Raises ``DamagedContextError``, which names the MiB.
        """
        verify_file(self._descriptor, self.path, checksums, None if num_tokens is None else self._chunks(num_tokens))

    def _chunks(self, num_tokens: int) -> set[int]:
        """The MiB that hold the header and the first tokens of every head."""
        size = num_tokens * self.shape.head_size * STORED_AS[self.shape.dtype].itemsize
        starts = range(PAGE, self.shape.file_bytes, self.shape.stride)
        return {0}.union(*(range(start // CHUNK, (start + size - 1) // CHUNK + 1) for start in starts))


def _shape_of(header: bytes, path: Path) -> LayerShape:
    if len(header) != PAGE or not header.startswith(MAGIC):
        raise DamagedContextError(f"{path} is no file of a context's layer: delete the context")
    body, (checksum,) = header[: -_CHECKSUM.size], _CHECKSUM.unpack(header[-_CHECKSUM.size :])
    fields: tuple[Any, ...] = _HEADER.unpack_from(header)
    if fields[1] != VERSION and checksum == xxhash.xxh3_64_intdigest(body):
        raise NewerFormatError(f"{path} has format {fields[1]}, this version reads {VERSION}: upgrade vllm-relational")
    if checksum != xxhash.xxh3_64_intdigest(body):
        raise DamagedContextError(f"the header of {path} is damaged: delete the context")
    _, _, dtype, num_kv_heads, num_tokens, head_size, *_ = fields
    return LayerShape(num_kv_heads, num_tokens, head_size, dtype.rstrip(b"\0").decode())


# ----------------------------------------------------------------------------------------------- checksums of files
_Identity = tuple[int, ...]
_right: dict[_Identity, tuple[int, set[int]]] = {}  # a digest of a file's checksums, and the MiB found to fit them


def checksums_of(descriptor: int) -> list[str]:
    """Of an open file: xxh3 in hexadecimal, one per MiB. Reads, so that a bad sector is an ``OSError``."""
    buffer = bytearray(CHUNK)
    return [_checksum_at(descriptor, number, buffer) for number in range(_num_chunks(os.fstat(descriptor).st_size))]


def verify_file(descriptor: int, path: Path, checksums: Sequence[str], wanted: Iterable[int] | None = None) -> None:
    """Raise ``DamagedContextError`` unless an open file has these checksums; a MiB is read once in a process.

    wanted: numbers of the MiB that are compared; None for all.
    """
    identity, given = _identity(descriptor), hash(tuple(checksums))
    if _num_chunks(identity[2]) != len(checksums):
        raise DamagedContextError(f"{path} has {identity[2]:,} bytes, another size was written: delete the context")
    if _right.get(identity, (None,))[0] != given:
        _right[identity] = (given, set())
    right, buffer = _right[identity][1], bytearray(CHUNK)
    for number in sorted(set(range(len(checksums)) if wanted is None else wanted) - right):
        if _checksum_at(descriptor, number, buffer) != checksums[number]:
            raise DamagedContextError(f"{path} is damaged in MiB {number}: delete the context")
        right.add(number)


def forget(descriptor: int) -> None:
    """Read an open file again at its next ``verify_file``."""
    _right.pop(_identity(descriptor), None)


def _identity(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _num_chunks(num_bytes: int) -> int:
    return -(-num_bytes // CHUNK)


def _checksum_at(descriptor: int, number: int, buffer: bytearray) -> str:
    view, filled = memoryview(buffer), 0
    while filled < CHUNK and (read := os.preadv(descriptor, [view[filled:]], number * CHUNK + filled)):
        filled += read
    return xxhash.xxh3_64_hexdigest(view[:filled])

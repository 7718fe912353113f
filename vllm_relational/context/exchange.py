"""Contexts as safetensors files, to take them elsewhere and to bring them in.

A file holds ``token_ids`` (U32, ``[num_tokens]``) and for each layer ``layer_NN.keys`` and ``layer_NN.values``,
``[num_kv_heads, num_tokens, head_size]``, in BF16, F16 or F32; as metadata the fingerprint, the name of the model and a
checksum of the file. It is written and read head by head: safetensors' own functions take a file as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import numpy as np
import xxhash

from vllm_relational.context.errors import ContextError, DamagedContextError
from vllm_relational.context.files import STORED_AS, LayerShape
from vllm_relational.context.layer_source import LayerSource
from vllm_relational.context.manifest import is_id
from vllm_relational.context.stored import TOKEN, StoredContext
from vllm_relational.context.token_ids import as_token_ids
from vllm_relational.files.atomic import replacing

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
TOKEN_IDS = "token_ids"
MAX_HEADER_BYTES = 100_000_000  # as in safetensors
FORMAT = "1"
CHECKSUM, UNKNOWN = "xxh3_64", "?" * 16  # of the whole file, while this stands in its own place

_DTYPE_OF = {code: name for name, code in DTYPES.items()}


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


# ------------------------------------------------------------------------------------------------------- export
def export_context(stored: StoredContext, path: Path) -> None:
    """Write a context into a file; the file appears whole, or not at all. Raises ``ContextError``."""
    metadata = {"format": FORMAT, "fingerprint": stored.fingerprint, "model": stored.manifest.model, CHECKSUM: UNKNOWN}
    header = _header(stored, metadata)
    digest = xxhash.xxh3_64(header)
    for piece in _pieces(stored):
        digest.update(piece)
    header = header.replace(UNKNOWN.encode(), digest.hexdigest().encode())
    try:
        with replacing(path) as file:
            file.write(header)
            for piece in _pieces(stored):
                file.write(piece)
    except OSError as error:
        raise ContextError(
            f"cannot write {path}: {error.strerror or error}; make room, or name another place"
        ) from error


def _pieces(stored: StoredContext) -> Iterator[memoryview]:
    """The data of the file in order."""
    yield _bytes_of(stored.token_ids)
    for index, shape in enumerate(stored.shapes):
        layer = stored.layer(index)
        yield from (_bytes_of(layer.array("keys", head)) for head in range(shape.num_kv_heads))
        yield from (_bytes_of(layer.array("values", head)) for head in range(shape.num_kv_heads))


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _header(stored: StoredContext, metadata: dict[str, str]) -> bytes:
    tensors: dict[str, Any] = {"__metadata__": metadata}
    place = 4 * stored.num_tokens
    tensors[TOKEN_IDS] = _Tensor("U32", [stored.num_tokens], (0, place))
    for index, shape in enumerate(stored.shapes):
        for kind in ("keys", "values"):
            end = place + shape.num_kv_heads * shape.region_bytes
            sizes = [shape.num_kv_heads, shape.num_tokens, shape.head_size]
            tensors[f"layer_{index:02d}.{kind}"] = _Tensor(DTYPES[shape.dtype], sizes, (place, end))
            place = end
    text = msgspec.json.encode(tensors)
    text = text.ljust(-(-len(text) // 8) * 8)  # data aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text


# ------------------------------------------------------------------------------------------------------- import
@dataclass(frozen=True)
class ExportedContext:
    """What a file holds. fingerprint, model: empty where the file does not say."""

    path: Path
    token_ids: np.ndarray
    fingerprint: str
    model: str
    source: LayerSource

    def check(self, token_ids: np.ndarray, fingerprint: str) -> None:
        """Raise ``ContextError`` unless it is of these tokens and, as far as it says, of this model."""
        if not np.array_equal(self.token_ids, token_ids):
            raise ContextError(f"{self.path} holds other token ids than those given: pass those that it holds")
        if self.fingerprint and self.fingerprint != fingerprint:
            raise ContextError(
                f"{self.path} was made by another model ({self.model or 'unnamed'}): weights, dtype or config differ"
            )


def read_export(path: Path) -> ExportedContext:
    """A file of ``export_context``, or of the same tensors. The checksum is compared where there is one.

    Raises ``DamagedContextError``, and ``ContextError`` for what is no such file.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file).read()
    except OSError as error:
        raise ContextError(f"cannot read {path}: {error.strerror or error}") from error


class _Reader:
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._size = path, os.fstat(file.fileno()).st_size
        self._metadata, self._tensors, self._start = self._read_header(file)
        self._data = np.memmap(path, np.uint8, "r") if self._size else np.empty(0, np.uint8)

    def _read_header(self, file: IO[bytes]) -> tuple[dict[str, str], dict[str, _Tensor], int]:
        length = int.from_bytes(file.read(8), "little")
        if self._size < 8 or length > min(MAX_HEADER_BYTES, self._size - 8):
            raise self._wrong("it is no safetensors file, or cut off")
        try:
            raw = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
            metadata = msgspec.json.decode(raw.pop("__metadata__", b"{}"), type=dict[str, str])
            tensors = {name: msgspec.json.decode(text, type=_Tensor) for name, text in raw.items()}
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._wrong(f"its header cannot be read ({error})") from error
        return metadata, tensors, 8 + length

    def read(self) -> ExportedContext:
        self._check_sum()
        token_ids = self._token_ids()
        num_layers = sum(name.endswith(".keys") for name in self._tensors)
        shapes = [self._shape_of(index, len(token_ids)) for index in range(num_layers)]
        if not shapes:
            raise self._wrong("it holds no layer_00.keys")
        fingerprint = self._metadata.get("fingerprint", "")
        source = LayerSource(shapes, lambda index: (self._heads(index, "keys"), self._heads(index, "values")))
        model = self._metadata.get("model", "")
        return ExportedContext(self._path, token_ids, fingerprint if is_id(fingerprint) else "", model, source)

    def _check_sum(self) -> None:
        expected = self._metadata.get(CHECKSUM)
        if expected is None and self._metadata.get("fingerprint") is None:
            return  # written by others
        header = bytes(self._data[: self._start]).replace((expected or "").encode(), UNKNOWN.encode(), 1)
        digest = xxhash.xxh3_64(header)
        digest.update(self._data[self._start :].data)
        if digest.hexdigest() != expected:
            raise DamagedContextError(f"{self._path} is damaged: export the context again")

    def _token_ids(self) -> np.ndarray:
        tensor = self._tensors.get(TOKEN_IDS)
        types = {"U32": TOKEN, "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
        if tensor is None or tensor.dtype not in types or len(tensor.shape) != 1:
            raise self._wrong(f"it holds no {TOKEN_IDS} of integers [num_tokens]")
        return as_token_ids(self._bytes_of(TOKEN_IDS, 8 if tensor.dtype == "I64" else 4).view(types[tensor.dtype]))

    def _shape_of(self, index: int, num_tokens: int) -> LayerShape:
        found = [self._tensors.get(f"layer_{index:02d}.{kind}") for kind in ("keys", "values")]
        keys, values = found
        if keys is None or values is None or (keys.dtype, keys.shape) != (values.dtype, values.shape):
            raise self._wrong(f"it holds no layer_{index:02d}.keys and .values of one shape")
        if keys.dtype not in _DTYPE_OF or len(keys.shape) != 3 or keys.shape[1] != num_tokens:
            raise self._wrong(f"layer_{index:02d} is {keys.dtype} {keys.shape}, no [heads, {num_tokens}, head_size]")
        self._heads(index, "keys"), self._heads(index, "values")
        return LayerShape(keys.shape[0], keys.shape[1], keys.shape[2], _DTYPE_OF[keys.dtype])

    def _heads(self, index: int, kind: str) -> Sequence[np.ndarray]:
        name = f"layer_{index:02d}.{kind}"
        tensor = self._tensors[name]
        stored_as = STORED_AS[_DTYPE_OF[tensor.dtype]]
        heads: np.ndarray = self._bytes_of(name, stored_as.itemsize).view(stored_as).reshape(tensor.shape)
        return cast(Sequence[np.ndarray], heads)

    def _bytes_of(self, name: str, item_bytes: int) -> np.ndarray:
        tensor = self._tensors[name]
        begin, end = tensor.data_offsets
        fits = 0 <= begin <= end <= self._size - self._start
        if not fits or min(tensor.shape) < 0 or end - begin != item_bytes * int(np.prod(tensor.shape, dtype=object)):
            raise self._wrong(f"{name} is not where its header says: the file is damaged or cut off")
        return self._data[self._start + begin : self._start + end]

    def _wrong(self, what: str) -> ContextError:
        return ContextError(f"{self._path} holds no context: {what}")

"""Writes the folder of one context: layers, token ids, names, and last the manifest, each on the disk in turn."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import xxhash

from vllm_relational.context.files import write_layer
from vllm_relational.context.layer_source import LayerSource
from vllm_relational.context.manifest import MANIFEST, TOKENS, ContextManifest, LayerEntry, layer_file, seal
from vllm_relational.context.stored import NAMES, TOKEN, ContextNames, write_synced


def id_of(token_ids: np.ndarray, fingerprint: str) -> str:
    """The id of the context of these tokens, uint32, and this model: 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(fingerprint.encode() + _bytes_of(token_ids))


def write_context(
    folder: Path, token_ids: np.ndarray, source: LayerSource, fingerprint: str, model: str, name: str | None
) -> None:
    """Into an empty folder. Holds no more of the source at a time than it hands out. Raises ``OSError``,
    ``ContextError``."""
    entries = [_write_layer(folder, index, source) for index in range(len(source.shapes))]
    data = _bytes_of(token_ids)
    manifest = ContextManifest(
        id=id_of(token_ids, fingerprint),
        fingerprint=fingerprint,
        model=model,
        created=time.time(),
        num_tokens=len(token_ids),
        tokens_checksum=xxhash.xxh3_64_hexdigest(data),
        layers=entries,
    )
    write_synced(folder / TOKENS, data)
    write_synced(folder / NAMES, seal(ContextNames([] if name is None else [name])))
    write_synced(folder / MANIFEST, seal(manifest))


def _write_layer(folder: Path, index: int, source: LayerSource) -> LayerEntry:
    shape, name = source.shapes[index], layer_file(index)
    keys, values = source.read(index)
    checksums = write_layer(folder / name, keys, values, shape)
    return LayerEntry(name, shape.num_kv_heads, shape.head_size, shape.dtype, checksums)


def _bytes_of(token_ids: np.ndarray) -> bytes:
    return token_ids.astype(TOKEN, copy=False).tobytes()

"""Stored contexts for tests of sessions: layer files in a folder, without a database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vllm_relational.context.files import LayerFile, LayerShape, write_layer


class StoredLayers:
    """Files of all layers, as ``store.StoredContext`` hands them out."""

    def __init__(self, files: list[LayerFile]) -> None:
        self.files = files

    def layer(self, index: int) -> LayerFile:
        return self.files[index]

    def index_path(self, kind: str, layer: int) -> Path | None:
        path = self.files[layer].path.with_name(f"index_{kind}_{layer:02d}")
        return path if path.exists() else None

    def add_index(self, kind: str, layer: int, write: Callable[[Path], None]) -> None:
        write(self.files[layer].path.with_name(f"index_{kind}_{layer:02d}"))


def store_layers(folder: Path, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> StoredLayers:
    """Write keys and values ``[num_kv_heads, tokens, head_size]`` of all layers."""
    files = []
    for index, (keys, values) in enumerate(layers):
        heads, tokens, size = keys.shape
        path = folder / f"layer_{index:02d}.kv"
        shape = LayerShape(heads, tokens, size, str(keys.dtype).removeprefix("torch."))
        write_layer(path, as_numpy(keys), as_numpy(values), shape)
        files.append(LayerFile(path))
    return StoredLayers(files)


def as_numpy(tensor: torch.Tensor):
    """bfloat16 as uint16."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()

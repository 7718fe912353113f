"""Keys and values as users have them, ready to be written: taken layer by layer and head by head, so that only one head
is ever copied.

They may be arrays, tensors on any device, a cache of transformers, a session, or a file that ``context export`` wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np

from vllm_relational.context.errors import ContextError
from vllm_relational.context.files import STORED_AS, LayerShape


class HoldsContext(Protocol):
    """What a session shows of itself, so that it can be stored."""

    @property
    def ids(self) -> Any:
        """Of all tokens whose keys and values it holds, ``[num_tokens]``."""
        ...

    def keys_values(self, layer: int) -> tuple[Any, Any]:
        """Of all tokens: two tensors or arrays ``[num_kv_heads, num_tokens, head_size]``, or with a batch of one."""
        ...


@dataclass(frozen=True)
class LayerSource:
    """The layers of one sequence.

    shapes: by layer. read: keys and values of a layer, each a sequence of heads ``[num_tokens, head_size]`` as
    ``write_layer`` takes them.
    """

    shapes: list[LayerShape]
    read: Callable[[int], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]

    @property
    def num_bytes(self) -> int:
        """Of the files to be written."""
        return sum(shape.file_bytes for shape in self.shapes)


def source_of(kv: Any, num_tokens: int) -> LayerSource:
    """kv: a list over layers of (keys, values), ``[num_kv_heads, num_tokens, head_size]`` or with a batch of one in
    front; or a cache of transformers. Raises ``ContextError`` for what does not hold ``num_tokens`` tokens."""
    if hasattr(kv, "self_attention_cache"):
        raise ContextError("the cache of an encoder-decoder cannot be stored")
    layers = _of_cache(kv) if hasattr(kv, "layers") else _of_list(kv)
    if not layers:
        raise ContextError("there are no layers of keys and values: run the model on the token ids first")
    return _source([_checked(pair, index, num_tokens) for index, pair in enumerate(layers)])


def source_of_session(session: HoldsContext, num_layers: int) -> LayerSource:
    """The layers that a session holds; read one after the other when they are written."""

    def read(layer: int) -> tuple[_Heads, _Heads]:
        pair = _checked(session.keys_values(layer), layer, len(session.ids))
        return _Heads(pair[0]), _Heads(pair[1])

    return LayerSource([read(layer)[0].shape for layer in range(num_layers)], read)


def _source(layers: list[tuple[Any, Any]]) -> LayerSource:
    return LayerSource(
        [_shape_of(keys) for keys, _ in layers], lambda index: (_Heads(layers[index][0]), _Heads(layers[index][1]))
    )


def _of_cache(cache: Any) -> list[Any]:
    """The layers of a transformers cache that keeps all tokens."""
    for layer in cache.layers:
        if getattr(layer, "is_sliding", False):
            raise ContextError(
                "the cache holds sliding windows, not all tokens: such a model's contexts cannot be stored"
            )
        if getattr(layer, "keys", None) is None:
            raise ContextError("the cache is empty: run the model on the token ids first")
    return [(layer.keys, layer.values) for layer in cache.layers]


def _of_list(kv: Any) -> list[Any]:
    try:
        return [(keys, values) for keys, values in kv]
    except (TypeError, ValueError) as error:
        raise ContextError(
            "keys and values are needed as a list over layers of (keys, values), or as a cache of transformers, not "
            f"{type(kv).__name__}"
        ) from error


def _checked(pair: tuple[Any, Any], layer: int, num_tokens: int) -> tuple[Any, Any]:
    """Without the batch, as many tokens as there are ids, keys and values alike."""
    keys, values = (_without_batch(part, layer) for part in pair)
    if tuple(keys.shape) != tuple(values.shape) or keys.dtype != values.dtype:
        raise ContextError(
            f"layer {layer} has keys {_described(keys)} and values {_described(values)}: only equal ones can be stored"
        )
    if keys.shape[1] != num_tokens:
        raise ContextError(
            f"layer {layer} holds {keys.shape[1]} tokens, {num_tokens} token ids were given: pass the ids of exactly "
            "the tokens in the cache (after generate, all but the last)"
        )
    return keys, values


def _without_batch(part: Any, layer: int) -> Any:
    if not hasattr(part, "shape") or not hasattr(part, "dtype"):
        raise ContextError(f"keys or values of layer {layer} are {type(part).__name__}, no array or tensor")
    if part.ndim == 4 and part.shape[0] == 1:
        part = part[0]
    if part.ndim != 3:
        raise ContextError(
            f"keys or values of layer {layer} have shape {list(part.shape)}: one sequence is needed, "
            "[num_kv_heads, num_tokens, head_size]"
        )
    return part


def _described(part: Any) -> str:
    return f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)}"


def _shape_of(part: Any) -> LayerShape:
    num_kv_heads, num_tokens, head_size = map(int, part.shape)
    dtype = str(part.dtype).removeprefix("torch.")
    return LayerShape(num_kv_heads, num_tokens, head_size, "bfloat16" if dtype == "uint16" else dtype)


class _Heads(Sequence[np.ndarray]):
    """Keys or values by head, each made an array when it is asked for."""

    def __init__(self, part: Any) -> None:
        self.shape = _shape_of(part)
        self._part = part

    def __len__(self) -> int:
        return self.shape.num_kv_heads

    @overload
    def __getitem__(self, head: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, head: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, head: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        one = self._part[head]
        if hasattr(one, "detach"):
            one = _as_numpy(one)
        return np.ascontiguousarray(one, STORED_AS[self.shape.dtype])


def _as_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu()
    bits: Any = tensor.contiguous().view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    array: np.ndarray = bits.numpy()
    return array

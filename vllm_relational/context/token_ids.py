"""Token ids as users give them: lists, arrays and tensors become one array, and what is none is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vllm_relational.context.errors import ContextError
from vllm_relational.context.stored import TOKEN

MOST = 2**32 - 1


def as_token_ids(ids: Any, vocab_size: int | None = None) -> np.ndarray:
    """uint32 ``[num_tokens]``, at least one.

    ids: integers ``[num_tokens]`` or ``[1, num_tokens]``: a list, a NumPy array, a tensor on any device.
    vocab_size: of the model; a larger id belongs to another tokenizer. Raises ``ContextError``.
    """
    if isinstance(ids, str | bytes | Mapping):  # a text, or what a tokenizer returned as a whole
        raise ContextError(f"token ids are needed, not {type(ids).__name__}: pass tokenizer(text).input_ids")
    array = _as_array(ids)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1:
        raise ContextError(f"token ids of shape {list(array.shape)}: one sequence is needed, [n] or [1, n]")
    if not array.size:
        raise ContextError("no token ids: a context has at least one token")
    if not np.issubdtype(array.dtype, np.integer):
        raise ContextError(f"token ids of type {array.dtype}: integers are needed")
    _check_range(array, vocab_size)
    return np.ascontiguousarray(array, TOKEN)


def _as_array(ids: Any) -> np.ndarray:
    if hasattr(ids, "detach"):  # a tensor; torch is not imported for the sake of lists
        ids = ids.detach().cpu().numpy()
    try:
        return np.asarray(ids)
    except (TypeError, ValueError) as error:
        raise ContextError(f"these are no token ids: {error}") from error


def _check_range(array: np.ndarray, vocab_size: int | None) -> None:
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > MOST:
        raise ContextError(f"token id {lowest if lowest < 0 else highest}: ids are from 0 to {MOST}")
    if vocab_size is not None and highest >= vocab_size:
        raise ContextError(f"token id {highest}: the model has {vocab_size} tokens; take its own tokenizer")


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """How many leading tokens two sequences share."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length

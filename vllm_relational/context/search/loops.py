"""The one place that chooses between the native loops of the search (csrc/context) and their references in numpy.

``VLLM_RELATIONAL_SIMD`` names the instructions that native loops use, for tests and measurements: ``portable``,
``avx2``, ``avx512``, ``avx512_bf16``; without it the best that the processor has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vllm_relational import native
from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import naive
from vllm_relational.context.search.hits import Hits

STORED = (np.uint16, np.float16, np.float32)
"""Types of stored keys and values; uint16 is bfloat16."""
MAX_HEAD_SIZE = 256


def level() -> str:
    """The instructions asked for; empty for the best."""
    return os.environ.get("VLLM_RELATIONAL_SIMD", "")


def simd_levels() -> list[str]:
    """What the processor has, from the least to the best; ``["numpy"]`` without native code."""
    module = native.context_search()
    return ["numpy"] if module is None else list(module.simd_levels())


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ContextError(f"context search, {name}: {error}") from error


def built(name: str, **arguments: Any) -> Any:
    """What a loop of that name returns. Native code is there."""
    with _explained(name):
        return getattr(native.context_search(), name)(level=level(), **arguments)


def made(name: str, reference: Callable[..., Any], **arguments: Any) -> Any:
    """An object whose methods are loops: the native one of that name, else the reference."""
    module = native.context_search()
    with _explained(name):
        return reference(**arguments) if module is None else getattr(module, name)(**arguments)


def asked_of(loops: Any, name: str, **arguments: Any) -> Any:
    """What a method of such an object returns."""
    with _explained(name):
        return getattr(loops, name)(level=level(), **arguments)


def stored_rows(given: np.ndarray, name: str) -> np.ndarray:
    """Keys or values that can be searched, C-contiguous: the array itself where it is that; else ``ContextError``."""
    if not isinstance(given, np.ndarray) or given.ndim != 2 or given.dtype not in STORED:
        raise ContextError(
            f"{name} must be a numpy array [num_keys, head_size] of float32, float16 or uint16 (bfloat16), "
            f"not {_described(given)}"
        )
    size = given.shape[1]
    if size < 2 or size > MAX_HEAD_SIZE or size % 2:
        raise ContextError(f"{name}: the head size must be even, from 2 to {MAX_HEAD_SIZE}, not {size}")
    return np.ascontiguousarray(given)


def query_heads(given: Any, head_size: int) -> np.ndarray:
    """Queries as float32 ``[num_heads, head_size]``, C-contiguous; else ``ContextError``."""
    queries = np.ascontiguousarray(given, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != head_size:
        raise ContextError(f"queries must be [num_heads, {head_size}] as the keys are, not {list(queries.shape)}")
    return queries


def token_range(start: int, stop: int | None, num_keys: int) -> tuple[int, int]:
    """``[start, stop)`` among the keys; ``ContextError`` where it is not."""
    end = num_keys if stop is None else stop
    if not 0 <= start <= end <= num_keys:
        raise ContextError(f"tokens [{start}, {end}) are not among the {num_keys} keys of this index")
    return int(start), int(end)


def checked_beta(beta: float) -> float:
    """Itself; ``ContextError`` for NaN and below 0."""
    if not beta >= 0:
        raise ContextError(
            f"beta must be 0 or greater, not {beta}: it is how far below the greatest score a key may be"
        )
    return float(beta)


def checked_k(k: int) -> int:
    """Itself; ``ContextError`` below 0."""
    if k < 0:
        raise ContextError(f"k must be 0 or greater, not {k}")
    return int(k)


def checked_lower(lower: Any, num_heads: int) -> np.ndarray | None:
    """Float32 ``[num_heads]`` or None; ``ContextError`` for another shape."""
    if lower is None:
        return None
    found = np.ascontiguousarray(lower, dtype=np.float32)
    if found.shape != (num_heads,):
        raise ContextError(f"lower must have one number for each of the {num_heads} queries, not {list(found.shape)}")
    return np.where(np.isnan(found), -np.inf, found).astype(np.float32)


def _described(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype} {list(given.shape)}"
    return type(given).__name__


def scan_dipr(
    keys: np.ndarray, queries: np.ndarray, beta: float, start: int, stop: int, lower: np.ndarray | None
) -> Hits:
    """See ``KeyIndex.dipr``; arguments are checked."""
    if native.context_search() is None:
        return naive.dipr(keys, queries, beta, start, stop, lower)
    return Hits(*built("scan_dipr", keys=keys, queries=queries, beta=beta, lower=lower, start=start, stop=stop))


def scan_topk(keys: np.ndarray, queries: np.ndarray, k: int, start: int, stop: int) -> Hits:
    """See ``KeyIndex.topk``; arguments are checked."""
    if native.context_search() is None:
        return naive.topk(keys, queries, k, start, stop)
    return Hits(*built("scan_topk", keys=keys, queries=queries, k=k, start=start, stop=stop))


def score_rows(keys: np.ndarray, tokens: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Scores with listed keys: float32 ``[num_heads, num_tokens]``."""
    if native.context_search() is None:
        return naive.score_rows(keys, tokens, queries)
    found: np.ndarray = built("score_rows", keys=keys, tokens=tokens, queries=queries)
    return found


def attend(
    values: np.ndarray, offsets: np.ndarray, tokens: np.ndarray, scores: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """See ``merge.attend``."""
    if native.context_search() is None:
        return naive.attend(values, offsets, tokens, scores, scale)
    out, lse = built("attend", values=values, offsets=offsets, tokens=tokens, scores=scores, scale=scale)
    return out, lse

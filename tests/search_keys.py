"""Keys, values and queries for tests of the context search, and what a search must have found."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from vllm_relational.context.search import naive

DTYPES = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32}
_LIBC = ctypes.CDLL(None, use_errno=True)


def stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 numbers as they are stored; bfloat16 by cutting."""
    if dtype == "bfloat16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return numbers.astype(DTYPES[dtype])


def bf16(numbers: np.ndarray) -> np.ndarray:
    """Float32 numbers that are ones of bfloat16."""
    return (stored(numbers, "bfloat16").astype(np.uint32) << 16).view(np.float32)


def clustered_keys(count: int, head_size: int, seed: int = 0, clusters: int = 24) -> np.ndarray:
    """Float32 keys as models have them: clusters, a few wide channels with an offset, and an attention sink first."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, 2, (clusters, head_size))
    keys = centres[random.integers(0, clusters, count)] + random.normal(0, 0.7, (count, head_size))
    keys[:, :3] = keys[:, :3] * 3 + 8
    if count:
        keys[0] *= 3
    return keys.astype(np.float32)


def query_heads(num_heads: int, head_size: int, seed: int = 1, *, as_bf16: bool = True) -> np.ndarray:
    """Float32 queries ``[num_heads, head_size]``."""
    numbers = np.random.default_rng(seed).normal(0, 1.5, (num_heads, head_size)).astype(np.float32)
    return bf16(numbers) if as_bf16 else numbers


def guarded(array: np.ndarray) -> np.ndarray:
    """The same numbers at the end of a mapping, behind which memory cannot be read."""
    size = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert _LIBC.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    whole = np.frombuffer(memory, np.uint8, size)
    place = whole[size - array.nbytes :].view(array.dtype).reshape(array.shape)
    place[...] = array
    return place


def rounding(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """How far a product in float32 may be from the exact one: ``[num_heads, num_keys]``."""
    sizes = np.abs(queries.astype(np.float64)) @ np.abs(naive.numbers(keys)).T
    return sizes * 2.0**-24 * (keys.shape[1] + 4) + 1e-30


def check_dipr(hits, keys, queries, beta, start, stop, lower=None) -> None:
    """The hits are the DIPR set, up to keys whose distance to the threshold is one of rounding."""
    exact = naive.exact_scores(keys[start:stop], queries)
    slack = rounding(keys[start:stop], queries)
    best = naive.greatest(exact, lower)
    for head in range(len(queries)):
        tokens = hits.of(head) - start
        assert (np.diff(tokens) > 0).all() and (len(tokens) == 0 or (tokens[0] >= 0 and tokens[-1] < stop - start))
        np.testing.assert_array_less(np.abs(hits.scores_of(head) - exact[head, tokens]), slack[head, tokens] + 1e-30)
        room = 2 * slack[head].max(initial=0)
        surely = np.flatnonzero(exact[head] >= best[head] - beta + room)
        assert set(surely) <= set(tokens), "a key of the set is missing"
        assert (exact[head, tokens] >= best[head] - beta - room).all(), "a key outside the set was named"

"""Contexts for tests: numbers that follow from the token ids, so that whoever reads one knows what must be in it."""

from __future__ import annotations

import numpy as np

from vllm_relational.context import DB
from vllm_relational.context.files import STORED_AS
from vllm_relational.context.stored import StoredContext

FINGERPRINT, OTHER = "a" * 32, "b" * 32
NUM_LAYERS, NUM_HEADS, HEAD_SIZE = 2, 2, 8


def tokens(*parts: int | range) -> np.ndarray:
    """Token ids: numbers, and ranges of them."""
    return np.array([one for part in parts for one in ([part] if isinstance(part, int) else part)], np.uint32)


def layers_for(ids, num_layers=NUM_LAYERS, dtype="bfloat16", salt=0):
    """Keys and values that depend on every token id up to theirs, as a model's do: ``[heads, n, size]`` each."""
    mixed = np.cumsum(np.asarray(ids, np.uint64) * np.uint64(2654435761)) + np.uint64(salt)
    return [tuple(_part(mixed, 2 * layer + part, dtype) for part in range(2)) for layer in range(num_layers)]


def _part(mixed, number, dtype):
    heads = np.arange(NUM_HEADS * HEAD_SIZE, dtype=np.uint64).reshape(NUM_HEADS, 1, HEAD_SIZE)
    bits = (mixed[None, :, None] + heads * np.uint64(40503)) * np.uint64(31 + number)
    bits = (bits >> np.uint64(7)) & np.uint64(0x3FFF)  # a finite number of every dtype
    kind = STORED_AS[dtype]
    return bits.astype(np.uint16).view(kind) if kind.itemsize == 2 else bits.astype(kind)


def put(db: DB, *parts: int | range, fingerprint=FINGERPRINT, name=None, salt=0) -> str:
    """Store the context of these tokens; its id."""
    ids = tokens(*parts)
    return db.import_(ids, layers_for(ids, salt=salt), fingerprint, name)


def holds(stored: StoredContext, *parts: int | range, salt=0) -> bool:
    """Whether a context is the one of these tokens, bit by bit."""
    ids = tokens(*parts) if parts else stored.token_ids
    if not np.array_equal(stored.token_ids, ids):
        return False
    for index, pair in enumerate(layers_for(ids, stored.num_layers, stored.shapes[0].dtype, salt)):
        for kind, part in zip(("keys", "values"), pair, strict=True):
            for head in range(NUM_HEADS):
                if stored.layer(index).array(kind, head).tobytes() != part[head].tobytes():
                    return False
    return True

"""Keys in 4 bits a channel: what their codes cannot rule out is computed with the keys themselves, so it is exact.

A group of 16 keys has per channel a zero point and a scale in bfloat16, together 48 bytes a key at head size 64, where
the key takes 128. With ``|q . k - q . k'| <= sum |q_c| scale_c / 2`` the codes alone say which keys may be within beta:
the keys may lie on a disk, of which a hundredth is read. On a CPU the scan of the codes takes longer than that of the
keys in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_relational import native
from vllm_relational.context.search import loops, naive_codes
from vllm_relational.context.search.base import NativeIndex


class Int4(NativeIndex):
    """4-bit codes of the keys. ``Hits.visited`` counts the keys that they could not rule out."""

    kind = "int4"
    is_exact = True

    @classmethod
    def build(cls, keys: np.ndarray) -> Int4:
        """Of keys as they are stored; groups with what is not finite are never ruled out."""
        keys = loops.stored_rows(keys, "keys")
        module = native.context_search()
        parts = naive_codes.encode(keys) if module is None else module.encode(keys)
        return cls(keys, dict(zip(naive_codes.ARRAYS, parts, strict=True)), {})

    def _made(self) -> Any:
        return loops.made("Codes", naive_codes.Codes, keys=self.keys, **self.arrays)

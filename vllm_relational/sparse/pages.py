"""One page of the KV cache with its index inside: who owns which byte.

The cache of a layer is one tensor; the page of block ``b`` and KV head ``h`` is one contiguous chunk of it:

    | token 0: key, value | token 1: key, value | ... | codes | zero point | value mean | scale | padding |
    |<------------ block_size tokens ---------------->|<-------------- index, by groups ----------->|

Keys and values keep the layout that vLLM's own kernels read; a copied, offloaded or shared block carries its index
along. Of every group of tokens the index holds, a channel at a time, 4-bit codes with a zero point (float16) and a
scale (8 bits), and the mean of the values (bfloat16). A group is *quantised* when its last token is written. The more
tokens a group has, the less of the index is read per token, and the wider its bounds: 64 tokens, where blocks are that
large.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

GROUPS = (64, 32, 16)
"""Tokens that share a zero point and a scale per channel, and a mean value: the first of these that divides a block."""

_ALIGNMENT = 4  # bytes: the cache may be seen as float32


@dataclass(frozen=True)
class PageLayout:
    """Where things lie in a page.

    block_size: tokens per page, a multiple of 16. head_size: channels of keys and of values, a multiple of 16.
    dtype:      of keys and values. ``ValueError`` for sizes that the index does not fit.
    """

    block_size: int
    head_size: int
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if self.block_size % GROUPS[-1] or self.block_size < GROUPS[-1]:
            raise ValueError(f"the DIPR index needs blocks of a multiple of {GROUPS[-1]} tokens, not {self.block_size}")
        if self.head_size % 16:
            raise ValueError(f"the DIPR index needs a head size of a multiple of 16, not {self.head_size}")

    @property
    def group(self) -> int:
        """Tokens of a group."""
        return next(size for size in GROUPS if self.block_size % size == 0)

    @property
    def num_groups(self) -> int:
        """Groups of a page."""
        return self.block_size // self.group

    @property
    def token_bytes(self) -> int:
        """Bytes of the page per token: key, value, and its share of the index."""
        return 2 * self.head_size * self.dtype.itemsize + self.index_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of the index per token, rounded up."""
        exact = -(-self.head_size * (self.group // 2 + 2 + 1 + 2) // self.group)
        return -(-exact // _ALIGNMENT) * _ALIGNMENT

    @property
    def outline_bytes(self) -> float:
        """Bytes of zero point and scale per token."""
        return 3 * self.head_size / self.group

    @property
    def mean_bytes(self) -> float:
        """Bytes of the mean value per token."""
        return 2 * self.head_size / self.group

    def views(self, cache: torch.Tensor) -> Pages:
        """The parts of a layer's cache ``[num_blocks, num_kv_heads, block_size, token_bytes / itemsize]``.

        Pages must be contiguous chunks; blocks and heads may stand in any order. Nothing is copied.
        """
        block_size, content = cache.shape[2:]
        itemsize = cache.element_size()
        if block_size != self.block_size or content * itemsize != self.token_bytes:
            raise ValueError(f"a cache of shape {tuple(cache.shape)} holds no pages of {self}")
        if cache.stride(3) != 1 or cache.stride(2) != content:
            raise ValueError("the page of a block and a KV head must be one contiguous chunk")
        return Pages(self, cache)


class Pages:
    """Views into the cache of one layer; see ``PageLayout``.

    key, value:  ``[num_blocks, num_kv_heads, block_size, head_size]``, the model's dtype
    codes:       uint8 ``[num_blocks, num_kv_heads, num_groups, group, head_size // 2]``, as ``codec.pack`` packs them
    words:       the codes as int32 ``[..., head_size // 8]``
    zero_point:  float16 ``[num_blocks, num_kv_heads, num_groups, head_size]``
    scale:       uint8, the same shape; ``codec.decode_scale`` reads it; scale_words: four per word
    value_mean:  bfloat16, the same shape
    """

    def __init__(self, layout: PageLayout, cache: torch.Tensor) -> None:
        self.layout, self.cache = layout, cache
        blocks, heads = cache.shape[0], cache.shape[1]
        size, group, groups, head = layout.block_size, layout.group, layout.num_groups, layout.head_size
        rows = self._part(layout.dtype, 0, (size, 2 * head))
        self.key, self.value = rows[..., :head], rows[..., head:]
        self.key_value = rows
        start = size * 2 * head * layout.dtype.itemsize
        self.codes = self._part(torch.uint8, start, (groups, group, head // 2))
        self.words = self._part(torch.int32, start, (groups, group, head // 8))
        start += groups * group * head // 2
        self.zero_point = self._part(torch.float16, start, (groups, head))
        start += groups * head * 2
        self.value_mean = self._part(torch.bfloat16, start, (groups, head))
        start += groups * head * 2
        self.scale = self._part(torch.uint8, start, (groups, head))
        self.scale_words = self._part(torch.int32, start, (groups, head // 4))
        self.num_blocks, self.num_kv_heads = blocks, heads

    def _part(self, dtype: torch.dtype, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        """``shape`` elements of every page from byte ``start`` on."""
        typed = self.cache.view(dtype)
        inner = [1]
        for length in reversed(shape[1:]):
            inner.insert(0, inner[0] * length)
        return typed.as_strided(
            (typed.shape[0], typed.shape[1], *shape),
            (typed.stride(0), typed.stride(1), *inner),
            typed.storage_offset() + start // dtype.itemsize,
        )


def new_cache(layout: PageLayout, num_blocks: int, num_kv_heads: int, device: str = "cpu") -> torch.Tensor:
    """An empty cache of the layout, for tests and benchmarks."""
    shape = (num_blocks, num_kv_heads, layout.block_size, layout.token_bytes // layout.dtype.itemsize)
    return torch.zeros(shape, dtype=layout.dtype, device=device)

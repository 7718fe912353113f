"""Requests in a paged cache whose unused bytes are poison."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_relational.sparse import codec, naive
from vllm_relational.sparse.pages import PageLayout, Pages, new_cache


@dataclass
class Paged:
    """Pages, queries ``[num_reqs, num_heads, head_size]``, block table and lengths of a batch of requests."""

    pages: Pages
    query: torch.Tensor
    block_table: torch.Tensor
    lens: torch.Tensor
    rows: torch.Tensor

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5


def paged_batch(
    lens: list[int],
    *,
    group: int = 4,
    kv_heads: int = 2,
    head_size: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spread: float = 1.0,
    device: str = "cpu",
) -> Paged:
    """Keys vary slowly from group to group, and around an offset a channel, as real ones do; blocks lie at random.

    spread: of the products; the larger, the fewer tokens matter.
    """
    random, of_channels = (torch.Generator().manual_seed(number) for number in (seed, seed + 1))
    layout = PageLayout(block_size, head_size, dtype)
    needed = [-(-length // block_size) for length in lens]
    cache = new_cache(layout, sum(needed) + 3, kv_heads)
    cache.view(torch.uint8).fill_(0xFF)  # NaN as a number, -1 as an offset
    pages = layout.views(cache)
    order = torch.randperm(sum(needed) + 3, generator=random).int()
    block_table = torch.full((len(lens), max(needed) + 1), 2**30, dtype=torch.int32)
    for request, (length, blocks) in enumerate(zip(lens, needed, strict=True)):
        own, order = order[:blocks], order[blocks:]
        block_table[request, :blocks] = own
        shape = (length, kv_heads, head_size)
        slow = torch.randn((-(-length // 64), kv_heads, head_size), generator=random).repeat_interleave(64, 0)[:length]
        offset = torch.randn((1, kv_heads, head_size), generator=of_channels) * 3
        keys = torch.randn(shape, generator=random) * 0.5 + slow + offset
        places = torch.arange(length)
        slots = own.long()[places // block_size] * block_size + places % block_size
        codec.write(pages, keys, torch.randn(shape, generator=random), slots)
    query = torch.randn((len(lens) + 1, group * kv_heads, head_size), generator=random) * spread
    rows = torch.randperm(len(lens) + 1, generator=random)[: len(lens)].int()  # one row belongs to nobody
    cache = cache.to(device)
    lengths = torch.tensor(lens, dtype=torch.int32, device=device)
    return Paged(layout.views(cache), query.to(dtype).to(device), block_table.to(device), lengths, rows.to(device))


def decode_paged(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    rule: naive.Rule | naive.TopPages,
    window: naive.Window | None = None,
    *,
    by_group: bool = True,
    tail: bool = False,
    double: bool = False,
) -> list[naive.Decoded]:
    """``naive.decode`` for every request: queries ``[num_reqs, num_heads, head_size]``, caches as in ``naive.gather``,
    block_table ``[num_reqs, max_blocks]``, seq_lens ``[num_reqs]``. ``double`` computes in float64."""
    found = []
    for query, blocks, seq_len in zip(queries, block_table, seq_lens.tolist(), strict=True):
        key, value = naive.gather(key_cache, blocks, seq_len), naive.gather(value_cache, blocks, seq_len)
        if double:
            query, key, value = query.double(), key.double(), value.double()
        found.append(naive.decode(query, key, value, scale, rule, window, by_group=by_group, tail=tail))
    return found

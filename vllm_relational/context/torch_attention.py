"""Attention over parts of a context, each where its keys are, and their merge by log-sum-exp.

Shapes: queries ``[batch, num_heads, new tokens, head_size]``; keys and values ``[batch or 1, num_kv_heads, tokens,
head_size]``, a batch of 1 shared by all rows; masks ``[batch or 1, 1, new tokens, tokens]``, bool (true: attended to)
or to be added; outputs like queries, with the logarithm of the softmax's denominator ``[batch, num_heads, new tokens]``
in float32. Heads that share a KV head are never given copies of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Partial = tuple[torch.Tensor, torch.Tensor]
"""Output and log-sum-exp."""


def causal_mask(new: int, total: int, device: torch.device) -> torch.Tensor | None:
    """For ``new`` tokens at the end of ``total``: bool ``[1, 1, new, total]``; None for a single one: it sees all."""
    if new == 1:
        return None
    last = torch.arange(total - new, total, device=device)
    return (torch.arange(total, device=device) <= last[:, None])[None, None]


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> Partial:
    """Attention of queries to all keys that the mask allows. The log-sum-exp of a query that may see none is minus
    infinity, its output is finite or NaN."""
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    if mask is None and (query.shape[2] == 1 or keys.shape[0] != query.shape[0]):
        return _as_rows(query, keys, values, scale)
    out, lse = _as_heads(query, keys, values, mask, scale)
    return out, lse if mask is None else lse.masked_fill((mask == -torch.inf).all(-1), -torch.inf)


def _as_rows(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> Partial:
    """Everything that reads a KV head is one row of one matrix: its query heads, the new tokens, and the batch where
    keys are shared."""
    batch, heads, new, size = query.shape
    shared, kv_heads = keys.shape[0], keys.shape[1]
    rows = query.view(shared, batch // shared, kv_heads, heads // kv_heads, new, size).transpose(1, 2)
    rows = rows.reshape(shared, kv_heads, -1, size)
    count = rows.shape[2]
    if count % 8 == 7:  # 7 heads a KV head are common; with 8 rows the kernel takes a sixth less, for the same bits
        rows = torch.nn.functional.pad(rows, (0, 0, 0, 1))
    out, lse = _kernel(rows, keys, values, None, scale)
    grouped = (shared, kv_heads, batch // shared, heads // kv_heads, new)
    out = out[:, :, :count].reshape(*grouped, size).transpose(1, 2).reshape(query.shape)
    return out, lse[:, :, :count].reshape(grouped).transpose(1, 2).reshape(batch, heads, new)


def _as_heads(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> Partial:
    """KV heads stand where the kernel has its batch, the query heads of one where it has heads, its keys repeated by a
    stride of 0: the same operations, so the same bits, as with copies of the keys."""
    batch, heads, new, size = query.shape
    kv_heads, total = keys.shape[1:3]
    group = heads // kv_heads
    wide = (batch, kv_heads, group, total, size)
    keys, values = (each.expand(batch, -1, -1, -1)[:, :, None].expand(wide).flatten(0, 1) for each in (keys, values))
    if mask is not None:
        mask = mask.expand(batch, kv_heads, new, total).reshape(batch * kv_heads, 1, new, total) if batch > 1 else mask
    out, lse = _kernel(query.reshape(batch * kv_heads, group, new, size), keys, values, mask, scale)
    return out.reshape(query.shape), lse.reshape(batch, heads, new)


def _kernel(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> Partial:
    if query.device.type != "cpu":
        return plain(query, keys, values, mask, scale)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(query, keys, values, attn_mask=mask, scale=scale)
    return out, lse


def plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> Partial:
    """The same written down: for other devices, where parts are small, and as a reference in tests."""
    scores = (query @ keys.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return torch.exp(scores - lse[..., None]).to(values.dtype) @ values, lse


def greatest_score(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Of single new tokens: the greatest ``q . k`` of each head, float32 ``[batch, num_heads]``; minus infinity of no
    keys."""
    batch, heads, _, size = query.shape
    kv_heads, tokens = keys.shape[1:3]
    if tokens == 0:
        return query.new_full((batch, heads), -torch.inf, dtype=torch.float32)
    grouped = query.to(keys.device).view(batch, kv_heads, heads // kv_heads, size).float()
    return (grouped @ keys.float().transpose(-1, -2)).amax(-1).view(batch, heads).to(query.device)


def merge(partials: Sequence[Partial]) -> Partial:
    """What attention over the keys of all parts together gives, up to rounding. One part is returned as it is; a query
    that sees nothing of a part takes nothing from it."""
    if len(partials) == 1:
        return partials[0]
    lses = torch.stack([lse for _, lse in partials]).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    total = lses.logsumexp(0)
    weights = torch.exp(lses - total).nan_to_num(0.0)[..., None]
    out = torch.stack([part.float() for part, _ in partials]).nan_to_num(0.0) * weights
    return out.sum(0).to(partials[0][0].dtype), total

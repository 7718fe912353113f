"""The index of a group in plain torch: how keys become codes, and what the codes promise.

A key's channel ``k`` is stored as ``code`` with ``k' = zero_point + scale * code`` and ``|k - k'| <= scale / 2``. So
for every query ``|q.k - q.k'| <= sum_i |q_i| scale_i / 2``: a hard bound, in the spirit of vector-approximation files
(Weber, Schek and Blott, 1998). ``sparse/kernels/write.py`` computes the same bits on the GPU.
"""

from __future__ import annotations

import torch

from vllm_relational.sparse.pages import Pages

NUM_CODES = 16
MIN_SCALE = 2.0**-14
MAX_SCALE_CODE = 27 * 8 - 1
"""A scale beyond this would leave float16 when multiplied by 15; such a channel is marked by a NaN ``zero_point``."""
MAX_KEY = 60000.0
"""Larger keys, which float16 cannot hold, are marked likewise, and so is a zero point that it cannot hold."""
SPARE_CODES = 0.01
"""Of the distances between the codes, room for rounding."""
SLACK = 1 + 2.0**-7
"""On the bound: covers rounding in float32, of the estimate too."""
MIDDLE = (NUM_CODES - 1) / 2
"""Scales from a channel's zero point to the middle of the keys of its group."""


def encode_scale(scale: torch.Tensor) -> torch.Tensor:
    """float32 -> the middle bits of a float16, rounded up: five of exponent, three of mantissa; may exceed 255."""
    bits = scale.clamp(min=MIN_SCALE).to(torch.float32).view(torch.int32)
    return ((bits + 0xFFFFF) >> 20) - ((127 - 15) << 3)


def decode_scale(code: torch.Tensor) -> torch.Tensor:
    """uint8 -> float16, exactly what ``encode_scale`` rounded to."""
    return (code.to(torch.int16) << 7).view(torch.float16)


def encode(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys ``[..., group, head_size]`` -> packed codes, as many bytes as half the channels, and zero point and scale
    ``[..., head_size]``."""
    codes, zero_point, scale = quantise(keys)
    return pack(codes), zero_point, scale


def quantise(keys: torch.Tensor, num_codes: int = NUM_CODES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``encode`` before packing, for groups of any size and up to 256 codes: uint8 codes of the shape of the keys."""
    keys, most = keys.float(), num_codes - 1
    low = keys.amin(-2)
    wide = encode_scale((keys.amax(-2) - low + low.abs() * 2.0**-10) / (most - SPARE_CODES))
    fits = (wide <= MAX_SCALE_CODE) & (keys.abs() <= MAX_KEY).all(-2)  # NaN fails too
    scale = torch.where(fits, wide, encode_scale(torch.zeros_like(low))).to(torch.uint8)
    size = decode_scale(scale).float()
    zero_point = _round_down(low)
    fits &= zero_point.isfinite()
    codes = ((keys - zero_point.float()[..., None, :]) / size[..., None, :] + 0.5).floor().clamp(0, most)
    codes = torch.where(fits[..., None, :], codes, 0).to(torch.uint8)
    return codes, torch.where(fits, zero_point, torch.nan), scale


def dequantise(codes: torch.Tensor, zero_point: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What the codes of ``quantise`` say of the keys: float32 of their shape; NaN where they say nothing."""
    return zero_point.float()[..., None, :] + decode_scale(scale).float()[..., None, :] * codes.float()


def _round_down(values: torch.Tensor) -> torch.Tensor:
    """float32 -> the greatest float16 that is not greater."""
    near = values.to(torch.float16)
    return torch.where(near.float() > values, torch.nextafter(near, torch.full_like(near, -torch.inf)), near)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes ``[..., head_size]`` -> bytes ``[..., head_size // 2]``.

    A 32-bit word holds eight channels: a pair of neighbours of each quarter of the head, the first in its low half and
    the second in its high half, at bit 4 times the quarter. Masked, and moved by 8 bits for the last two quarters, such
    a pair is a pair of float16 that are multiples of the smallest one.
    """
    pairs = codes.reshape(*codes.shape[:-1], 4, codes.shape[-1] // 8, 2)  # [..., quarter, word, half of the word]
    first, second, third, fourth = (pairs[..., quarter, :, :] for quarter in range(4))
    in_bytes = torch.stack([first | (second << 4), third | (fourth << 4)], dim=-1)  # [..., word, half, byte]
    return in_bytes.flatten(-3)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of ``pack``."""
    in_bytes = packed.reshape(*packed.shape[:-1], packed.shape[-1] // 4, 2, 2)
    low, high = in_bytes & 15, in_bytes >> 4
    quarters = torch.stack([low[..., 0], high[..., 0], low[..., 1], high[..., 1]], dim=-3)
    return quarters.flatten(-3)


def decode(codes: torch.Tensor, zero_point: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What packed codes say of the keys: float32 ``[..., group, head_size]``; NaN where they say nothing."""
    return dequantise(unpack(codes), zero_point, scale)


def outline(queries: torch.Tensor, zero_point: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a group's zero point and scale say of its scores, without its codes: ``q.k`` of each of its keys is at most
    ``reach`` from ``middle``. Together they are the box bound of Quest (arXiv 2406.10774).

    queries ``[..., head_size]``, zero_point and scale ``[num_groups, head_size]`` -> two of ``[..., num_groups]``,
    float32; middle is NaN for groups without codes.
    """
    queries, size = queries.float(), decode_scale(scale).float()
    middle = queries @ (zero_point.float() + MIDDLE * size).T
    return middle, queries.abs() @ size.T * (NUM_CODES / 2 * SLACK)


def quantise_groups(pages: Pages, slots: torch.Tensor) -> None:
    """Bring the index of every group up to date whose last token is among the written ``slots``; -1 is no slot."""
    size, group = pages.layout.block_size, pages.layout.group
    ends = slots[(slots >= 0) & (slots % group == group - 1)].long()
    blocks, groups = ends // size, ends % size // group
    tokens = groups[:, None] * group + torch.arange(group, device=slots.device)
    keys = pages.key[blocks[:, None], :, tokens].transpose(1, 2)  # [num ends, num_kv_heads, group, head_size]
    values = pages.value[blocks[:, None], :, tokens].transpose(1, 2)
    codes, zero_point, scale = encode(keys)
    pages.codes[blocks, :, groups] = codes
    pages.zero_point[blocks, :, groups] = zero_point
    pages.scale[blocks, :, groups] = scale
    pages.value_mean[blocks, :, groups] = values.float().mean(-2).to(torch.bfloat16)


def write(pages: Pages, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
    """Store keys and values ``[num_tokens, num_kv_heads, head_size]`` at their slots, and quantise full groups."""
    there = slots >= 0
    size = pages.layout.block_size
    blocks, tokens = slots[there].long() // size, slots[there].long() % size
    pages.key[blocks, :, tokens] = keys[: len(slots)][there].to(pages.layout.dtype)
    pages.value[blocks, :, tokens] = values[: len(slots)][there].to(pages.layout.dtype)
    quantise_groups(pages, slots)

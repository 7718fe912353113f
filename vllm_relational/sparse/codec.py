"""The index of a group in plain torch: how keys become codes, and what the codes promise.

A key's channel ``k`` is stored as ``code`` with ``k' = low + step * code`` and ``|k - k'| <= step / 2``. So for every
query ``|q.k - q.k'| <= sum_i |q_i| step_i / 2``: a hard bound, in the spirit of vector-approximation files (Weber,
Schek and Blott, 1998). ``kernels/seal.py`` computes the same bits on the GPU.
"""

from __future__ import annotations

import torch

from vllm_relational.sparse.pages import GROUP, Pages

NUM_CODES = 16
LEAST_STEP = 2.0**-12
MOST_STEP_CODE = 199
"""A step beyond this would leave float16 when multiplied by a code; such a channel is marked by a NaN ``low``."""
SLACK = 1 + 2.0**-8
"""On the bound: covers rounding in float32."""


def encode_step(step: torch.Tensor) -> torch.Tensor:
    """float32 -> 8 bits, rounded up: five of exponent, three of mantissa, from ``LEAST_STEP`` on; may exceed 255."""
    bits = step.clamp(min=LEAST_STEP).to(torch.float32).view(torch.int32)
    return ((bits + 0xFFFFF) >> 20) - ((127 - 12) << 3)


def decode_step(code: torch.Tensor) -> torch.Tensor:
    """uint8 -> float16, exactly what ``encode_step`` rounded to."""
    return ((code.to(torch.int16) << 7) + (3 << 10)).view(torch.float16)


def round_down(values: torch.Tensor) -> torch.Tensor:
    """float32 -> the greatest bfloat16 that is not greater."""
    bits = values.to(torch.float32).view(torch.int32)
    return (torch.where(bits < 0, bits + 0xFFFF, bits) >> 16).to(torch.int16).view(torch.bfloat16)


def encode(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys ``[..., GROUP, head_size]`` -> codes ``[..., GROUP, head_size // 2]``, low and step ``[..., head_size]``."""
    keys = keys.float()
    low = round_down(keys.amin(-2))
    wide = encode_step((keys.amax(-2) - low.float()) / (NUM_CODES - 1))
    fits = (wide <= MOST_STEP_CODE) & keys.isfinite().all(-2)
    low = torch.where(fits, low, torch.nan)
    step = torch.where(fits, wide, 0).to(torch.uint8)
    scaled = (keys - low.float()[..., None, :]) / decode_step(step).float()[..., None, :]
    codes = torch.where(scaled.isnan(), 0.0, scaled.add(0.5).floor().clamp(0, NUM_CODES - 1)).to(torch.uint8)
    half = keys.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << 4), low, step


def decode(codes: torch.Tensor, low: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """What the codes say of the keys: float32 ``[..., GROUP, head_size]``; NaN where they say nothing."""
    both = torch.cat([codes & 15, codes >> 4], dim=-1).float()
    return low.float()[..., None, :] + decode_step(step).float()[..., None, :] * both


def error_bound(queries: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """How far ``q.k'`` may be from ``q.k``: queries ``[..., head_size]``, step ``[num_groups, head_size]``
    -> ``[..., num_groups]``."""
    return (queries.float().abs() @ decode_step(step).float().T) * (0.5 * SLACK)


def seal(pages: Pages, slots: torch.Tensor) -> None:
    """Bring the index of every group up to date whose last token is among the written ``slots``; -1 is no slot."""
    ends = slots[(slots >= 0) & (slots % GROUP == GROUP - 1)].long()
    size = pages.layout.block_size
    blocks, groups = ends // size, ends % size // GROUP
    tokens = groups[:, None] * GROUP + torch.arange(GROUP, device=slots.device)
    keys = pages.key[blocks[:, None], :, tokens].transpose(1, 2)  # [num ends, num_kv_heads, GROUP, head_size]
    values = pages.value[blocks[:, None], :, tokens].transpose(1, 2)
    codes, low, step = encode(keys)
    pages.codes[blocks, :, groups] = codes
    pages.low[blocks, :, groups] = low
    pages.step[blocks, :, groups] = step
    pages.value_mean[blocks, :, groups] = values.float().mean(-2).to(torch.bfloat16)


def write(pages: Pages, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
    """Store keys and values ``[num_tokens, num_kv_heads, head_size]`` at their slots, and seal full groups."""
    there = slots >= 0
    size = pages.layout.block_size
    blocks, tokens = slots[there].long() // size, slots[there].long() % size
    pages.key[blocks, :, tokens] = keys[: len(slots)][there].to(pages.layout.dtype)
    pages.value[blocks, :, tokens] = values[: len(slots)][there].to(pages.layout.dtype)
    seal(pages, slots)

"""Stores keys and values, and quantises the groups whose last token is among them: ``codec.write``, bit for bit.

One launch for both: a step writes one token a request, and another launch a layer would cost more than its work. The
program that stores the last token of a group quantises it. Other programs of the same launch may store other tokens of
that group at this moment, so these are taken from where they come from and not from the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_relational.sparse.pages import Pages


@triton.jit
def _scale_code(spread):
    """``codec.encode_scale``: 5 bits of exponent, 3 of mantissa, rounded up."""
    bits = tl.maximum(spread, 0.00006103515625).to(tl.int32, bitcast=True)  # codec.MIN_SCALE
    return ((bits + 0xFFFFF) >> 20) - 896  # (127 - 15) << 3


@triton.jit
def _round_down(values):
    """float32 -> the greatest float16 that is not greater."""
    near = values.to(tl.float16)
    bits = near.to(tl.int16, bitcast=True)
    below = tl.where(bits > 0, bits - 1, tl.where(bits == 0, -32767, bits + 1)).to(tl.int16)
    return tl.where(near.to(tl.float32) > values, below.to(tl.float16, bitcast=True), near)


@triton.jit
def _load_group(new, old, ages, is_new, channels, there, stride_nt, stride_kt, GROUP: tl.constexpr):
    """``[GROUP, channels]``; new: at the last token of the group, old: at its first token in the cache."""
    tokens = tl.arange(0, GROUP)
    from_new = new - ages[:, None] * stride_nt + channels[None, :]
    from_old = old + tokens[:, None] * stride_kt + channels[None, :]
    fresh = tl.load(from_new, mask=is_new[:, None] & there[None, :], other=0.0)
    stored = tl.load(from_old, mask=~is_new[:, None] & there[None, :], other=0.0)
    return tl.where(is_new[:, None], fresh.to(stored.dtype), stored).to(tl.float32)


@triton.jit
def _quantise_slice(keys, zero_point_ptr, key_scale_ptr, channels, there):
    """Codes of some channels, int32 ``[GROUP, channels]``; stores their zero point and scale."""
    low, most = tl.min(keys, axis=0), tl.max(keys, axis=0)
    code = _scale_code((most - low + tl.abs(low) * 0.0009765625) / 14.99)  # 15 - codec.SPARE_CODES
    odd = tl.sum(((keys != keys) | (tl.abs(keys) > 60000.0)).to(tl.int32), axis=0) > 0
    fits = (code <= 215) & ~odd  # codec.MAX_SCALE_CODE
    code = tl.where(fits, code, 8)
    key_scale = ((code + 896) << 20).to(tl.float32, bitcast=True)
    zero_point = _round_down(low)
    exact = zero_point.to(tl.float32)
    fits &= tl.abs(exact) < 65520.0
    tl.store(zero_point_ptr + channels, tl.where(fits, zero_point, float("nan")), mask=there)
    tl.store(key_scale_ptr + channels, code.to(tl.uint8), mask=there)
    scaled = tl.floor((keys - exact[None, :]) / key_scale[None, :] + 0.5)
    return tl.where(fits[None, :], tl.minimum(tl.maximum(scaled, 0.0), 15.0), 0.0).to(tl.int32)


@triton.jit
def _write(
    new_key_ptr, new_value_ptr, slots_ptr, key_ptr, codes_ptr, zero_point_ptr, key_scale_ptr, mean_ptr,
    stride_nkt, stride_nkh, stride_nvt, stride_nvh, stride_kb, stride_kh, stride_kt, stride_cb, stride_ch,
    stride_ob, stride_oh, stride_sb, stride_sh,
    BLOCK_SIZE: tl.constexpr, HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr, CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Grid: (tokens, KV heads)."""
    token = tl.program_id(0)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot < 0:
        return
    head = tl.program_id(1).to(tl.int64)
    block, within = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    new_key = new_key_ptr + token.to(tl.int64) * stride_nkt + head * stride_nkh
    new_value = new_value_ptr + token.to(tl.int64) * stride_nvt + head * stride_nvh
    page = key_ptr + block * stride_kb + head * stride_kh
    every = tl.arange(0, CHANNELS)
    inside = every < HEAD_SIZE
    to = page + within * stride_kt + every
    key, value = tl.load(new_key + every, mask=inside), tl.load(new_value + every, mask=inside)
    tl.store(to, key.to(key_ptr.dtype.element_ty), mask=inside)
    tl.store(to + HEAD_SIZE, value.to(key_ptr.dtype.element_ty), mask=inside)
    if slot % GROUP != GROUP - 1:
        return
    group = within // GROUP
    ages = GROUP - 1 - tl.arange(0, GROUP)
    is_new = tl.load(slots_ptr + token - ages, mask=ages <= token, other=-1).to(tl.int64) == slot - ages
    rows = page + group * GROUP * stride_kt
    zero_point = zero_point_ptr + block * stride_ob + head * stride_oh + group * HEAD_SIZE
    mean = mean_ptr + block * stride_ob + head * stride_oh + group * HEAD_SIZE
    key_scale = key_scale_ptr + block * stride_sb + head * stride_sh + group * HEAD_SIZE
    words, tokens = tl.arange(0, WORDS), tl.arange(0, GROUP)
    there = words < HEAD_SIZE // 8
    packed = tl.zeros([GROUP, WORDS], tl.int32)
    for part in tl.static_range(8):  # quarter of the head, and which of two neighbours: see ``codec.pack``
        channels = part // 2 * (HEAD_SIZE // 4) + 2 * words + part % 2
        keys = _load_group(new_key, rows, ages, is_new, channels, there, stride_nkt, stride_kt, GROUP)
        packed |= _quantise_slice(keys, zero_point, key_scale, channels, there) << (4 * (part // 2) + 16 * (part % 2))
    place = codes_ptr + block * stride_cb + head * stride_ch + group * GROUP * (HEAD_SIZE // 8)
    tl.store(place + tokens[:, None] * (HEAD_SIZE // 8) + words[None, :], packed, mask=there[None, :])
    values = _load_group(new_value, rows + HEAD_SIZE, ages, is_new, every, inside, stride_nvt, stride_kt, GROUP)
    tl.store(mean + every, (tl.sum(values, axis=0) / GROUP).to(tl.bfloat16), mask=inside)


def write(pages: Pages, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
    """Store keys and values ``[num_tokens or more, num_kv_heads, head_size]`` at ``slots``, int ``[num_tokens]``, -1:
    nowhere, and bring the index of every group up to date whose last token is among them.

    Tokens of one group must come in their order and without others between them, as those of a request do.
    """
    if not len(slots):
        return
    layout, words = pages.layout, pages.words
    _write[(slots.shape[0], pages.num_kv_heads)](
        keys, values, slots, pages.key, words, pages.zero_point, pages.scale, pages.value_mean,
        *keys.stride()[:2], *values.stride()[:2], *pages.key.stride()[:3], *words.stride()[:2],
        *pages.zero_point.stride()[:2], *pages.scale.stride()[:2],
        BLOCK_SIZE=layout.block_size, HEAD_SIZE=layout.head_size, WORDS=triton.next_power_of_2(layout.head_size // 8),
        CHANNELS=triton.next_power_of_2(layout.head_size), GROUP=layout.group,
        num_warps=layout.group // 16,
    )  # fmt: skip

"""Writes the index of the groups whose last token was just stored: ``codec.seal``, bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_relational.sparse.pages import Pages


@triton.jit
def _step_code(spread):
    """``codec.encode_step``: 5 bits of exponent, 3 of mantissa, rounded up."""
    bits = tl.maximum(spread, 0.00006103515625).to(tl.int32, bitcast=True)  # codec.LEAST_STEP
    return ((bits + 0xFFFFF) >> 20) - 896  # (127 - 15) << 3


@triton.jit
def _round_down(values):
    """float32 -> the greatest float16 that is not greater."""
    near = values.to(tl.float16)
    bits = near.to(tl.int16, bitcast=True)
    below = tl.where(bits > 0, bits - 1, tl.where(bits == 0, -32767, bits + 1)).to(tl.int16)
    return tl.where(near.to(tl.float32) > values, below.to(tl.float16, bitcast=True), near)


@triton.jit
def _seal_slice(rows, origin_ptr, step_ptr, channels, there, stride_token, GROUP: tl.constexpr):
    """Codes of some channels, int32 ``[GROUP, channels]``; stores their origin and step."""
    tokens = tl.arange(0, GROUP)
    keys = tl.load(rows + tokens[:, None] * stride_token + channels[None, :], mask=there[None, :], other=0.0)
    keys = keys.to(tl.float32)
    low, most = tl.min(keys, axis=0), tl.max(keys, axis=0)
    code = _step_code((most - low + tl.abs(low) * 0.0009765625) / 14.99)  # 15 - codec.SPARE_STEPS
    odd = tl.sum(((keys != keys) | (tl.abs(keys) > 60000.0)).to(tl.int32), axis=0) > 0
    fits = (code <= 215) & ~odd  # codec.MOST_STEP_CODE
    code = tl.where(fits, code, 8)
    step = ((code + 896) << 20).to(tl.float32, bitcast=True)
    origin = _round_down(low)
    exact = origin.to(tl.float32)
    fits &= tl.abs(exact) < 65520.0
    tl.store(origin_ptr + channels, tl.where(fits, origin, float("nan")), mask=there)
    tl.store(step_ptr + channels, code.to(tl.uint8), mask=there)
    scaled = tl.floor((keys - exact[None, :]) / step[None, :] + 0.5)
    return tl.where(fits[None, :], tl.minimum(tl.maximum(scaled, 0.0), 15.0), 0.0).to(tl.int32)


@triton.jit
def _seal(
    key_ptr, codes_ptr, origin_ptr, step_ptr, mean_ptr, slots_ptr,
    stride_kb, stride_kh, stride_kt, stride_cb, stride_ch, stride_ob, stride_oh, stride_sb, stride_sh,
    BLOCK_SIZE: tl.constexpr, HEAD_SIZE: tl.constexpr, WORDS: tl.constexpr, CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    slot = tl.load(slots_ptr + tl.program_id(0)).to(tl.int64)
    if (slot < 0) | (slot % GROUP != GROUP - 1):
        return
    head = tl.program_id(1).to(tl.int64)
    block, group = slot // BLOCK_SIZE, slot % BLOCK_SIZE // GROUP
    rows = key_ptr + block * stride_kb + head * stride_kh + group * GROUP * stride_kt
    origin = origin_ptr + block * stride_ob + head * stride_oh + group * HEAD_SIZE
    mean = mean_ptr + block * stride_ob + head * stride_oh + group * HEAD_SIZE
    step = step_ptr + block * stride_sb + head * stride_sh + group * HEAD_SIZE
    words, tokens = tl.arange(0, WORDS), tl.arange(0, GROUP)
    there = words < HEAD_SIZE // 8
    packed = tl.zeros([GROUP, WORDS], tl.int32)
    for part in tl.static_range(8):  # quarter of the head, and which of two neighbours: see ``codec.pack``
        channels = part // 2 * (HEAD_SIZE // 4) + 2 * words + part % 2
        codes = _seal_slice(rows, origin, step, channels, there, stride_kt, GROUP)
        packed |= codes << (4 * (part // 2) + 16 * (part % 2))
    place = codes_ptr + block * stride_cb + head * stride_ch + group * GROUP * (HEAD_SIZE // 8)
    tl.store(place + tokens[:, None] * (HEAD_SIZE // 8) + words[None, :], packed, mask=there[None, :])
    every = tl.arange(0, CHANNELS)
    inside = every < HEAD_SIZE
    values = rows + HEAD_SIZE + tokens[:, None] * stride_kt + every[None, :]
    total = tl.sum(tl.load(values, mask=inside[None, :], other=0.0).to(tl.float32), axis=0)
    tl.store(mean + every, (total / GROUP).to(tl.bfloat16), mask=inside)


def seal(pages: Pages, slots: torch.Tensor) -> None:
    """Bring the index of every group up to date whose last token is among ``slots``, int ``[num_tokens]``, -1: none."""
    layout, words = pages.layout, pages.words
    _seal[(slots.shape[0], pages.num_kv_heads)](
        pages.key, words, pages.origin, pages.step, pages.value_mean, slots,
        pages.key.stride(0), pages.key.stride(1), pages.key.stride(2), words.stride(0), words.stride(1),
        pages.origin.stride(0), pages.origin.stride(1), pages.step.stride(0), pages.step.stride(1),
        BLOCK_SIZE=layout.block_size, HEAD_SIZE=layout.head_size, WORDS=triton.next_power_of_2(layout.head_size // 8),
        CHANNELS=triton.next_power_of_2(layout.head_size), GROUP=layout.group,
        num_warps=layout.group // 16,
    )  # fmt: skip

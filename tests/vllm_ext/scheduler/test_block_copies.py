"""vLLM's copy of blocks, which token-exact reuse relies on, in every layout that a cache of one group can have."""

from __future__ import annotations

import pytest
import torch
from fake_worker import full_attention
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, KVCacheTensor, compute_layout_strides
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache, copy_kv_cache_blocks_inplace

NUM_BLOCKS, LAYERS = 6, ["layer.0", "layer.1", "layer.2"]
COPIES = [KVCacheBlockCopy(1, 4), KVCacheBlockCopy(1, 2), KVCacheBlockCopy(5, 3)]


def allocate(layout, spec, kernel_block_size):
    """Caches of all layers as the engine would lay them out."""
    packed = spec.page_size_bytes * len(LAYERS) if layout.is_block_outermost else None
    fixed = (None, packed, None, None, None)
    layer_stride, block_stride, *_ = compute_layout_strides(spec, NUM_BLOCKS, len(LAYERS), layout, fixed_strides=fixed)
    size = spec.page_size_bytes * NUM_BLOCKS * len(LAYERS)
    tensor = KVCacheTensor(size=size, layers=LAYERS, layer_stride=layer_stride, block_stride=block_stride)
    config = KVCacheConfig(NUM_BLOCKS, [tensor], [KVCacheGroupSpec(LAYERS, spec)])
    return list(allocate_kv_cache(config, torch.device("cpu"), layout, [kernel_block_size]).values())


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("layout", list(KVCacheLayout), ids=lambda layout: layout.name)
def test_a_copied_block_is_whole_in_every_layer_and_others_stay(layout, split):
    spec = full_attention(num_kv_heads=2)
    try:
        caches = allocate(layout, spec, spec.block_size // split)
    except ValueError as refusal:
        pytest.skip(f"vLLM does not allow it: {refusal}")
    for number, cache in enumerate(caches):
        cache.copy_(torch.arange(cache.numel()).reshape(cache.shape) + 1000.0 * number)
    before = [by_block(cache) for cache in caches]

    copy_kv_cache_blocks_inplace(caches, NUM_BLOCKS, COPIES)

    came_from = {block: block for block in range(NUM_BLOCKS)} | {target: source for source, target in COPIES}
    for cache, old in zip(caches, before, strict=True):
        for block, source in came_from.items():
            assert torch.equal(by_block(cache)[block], old[source])


def by_block(cache):
    return cache.clone().reshape(NUM_BLOCKS, -1)

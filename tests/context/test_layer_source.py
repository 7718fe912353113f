"""Keys and values in every form that users have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contexts_made import FINGERPRINT, holds, layers_for, tokens
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, MistralConfig, StaticCache

from vllm_relational.context import DB, ContextError
from vllm_relational.context.layer_source import source_of

IDS = tokens(range(63))


def as_tensors(layers, dtype):
    kind = getattr(torch, dtype)
    tensors = [tuple(torch.from_numpy(part) for part in pair) for pair in layers]
    return [tuple(part.view(kind) if part.dtype == torch.uint16 else part for part in pair) for pair in tensors]


def in_a_cache(pairs):
    cache = DynamicCache()
    for index, (keys, values) in enumerate(pairs):
        cache.update(keys[None], values[None], index)
    return cache


FORMS = {
    "arrays": lambda layers, dtype: layers,
    "tensors": as_tensors,
    "tensors with a batch": lambda layers, dtype: [(k[None], v[None]) for k, v in as_tensors(layers, dtype)],
    "tensors in another order": lambda layers, dtype: [
        tuple(part.transpose(0, 1).contiguous().transpose(0, 1) for part in pair) for pair in as_tensors(layers, dtype)
    ],
    "a cache": lambda layers, dtype: in_a_cache(as_tensors(layers, dtype)),
    "a generator": lambda layers, dtype: iter(layers),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_stored_bit_by_bit(tmp_path, form, dtype):
    db = DB(tmp_path)
    db.import_(IDS, FORMS[form](layers_for(IDS, dtype=dtype), dtype), FINGERPRINT)
    stored, _ = db.find(IDS, FINGERPRINT)
    assert holds(stored, range(63)) and stored.shapes[0].dtype == dtype


def with_layers(config):
    return DynamicCache(config=config)


@pytest.mark.parametrize(
    ("cache", "why"),
    [
        (lambda: DynamicCache(config=LlamaConfig(num_hidden_layers=1)), "empty"),
        (lambda: DynamicCache(), "no layers"),
        (lambda: DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=8)), "sliding"),
        (lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()), "encoder"),
        (lambda: StaticCache(config=LlamaConfig(num_hidden_layers=1), max_cache_len=8), "empty"),
    ],
)
def test_caches_that_do_not_hold_all_tokens_are_refused(cache, why):
    with pytest.raises(ContextError, match=why):
        source_of(cache(), 5)


def test_a_batch_is_refused():
    pair = tuple(np.zeros((2, 1, 5, 8), np.float32) for _ in range(2))
    with pytest.raises(ContextError, match="one sequence"):
        source_of([pair], 5)


def test_only_one_head_is_copied_at_a_time():
    keys = np.zeros((4, 5, 8), np.float32)
    heads, _ = source_of([(keys, keys)], 5).read(0)
    assert np.shares_memory(heads[1], keys)

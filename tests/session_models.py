"""A random model of transformers, a text whose start is stored, and what the model answers without a session."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stored_contexts import StoredLayers, store_layers
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from vllm_relational.context.hf import ContextCache, open_session
from vllm_relational.context.settings import SessionSettings

STORED = 133  # tokens; not a multiple of a page
TOTAL = 145
NEW = 7


def random_model(dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any) -> Any:
    """Grouped heads, weights large enough that attention matters; no token ends a text."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=199,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **{"head_dim": 16, **settings},
    )
    return Qwen2ForCausalLM(config).to(dtype).eval()


@dataclass
class Case:
    """``ids`` ``[1, TOTAL]``, of which the first ``STORED`` are in ``stored`` and in ``cache``."""

    model: Any
    ids: torch.Tensor
    cache: DynamicCache
    stored: StoredLayers

    def to(self, device: str) -> Case:
        """The model and the ids there, also the cache; what is stored stays in its files."""
        cache = copy.deepcopy(self.cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
        return Case(self.model.to(device), self.ids.to(device), cache, self.stored)

    def session(
        self, num_stored: int = STORED, settings: SessionSettings | None = None
    ) -> tuple[ContextCache, torch.Tensor]:
        return open_session(self.stored, num_stored, self.ids[0].cpu(), self.model, settings)

    def generate(self, ids: torch.Tensor, session: Any, **options: Any) -> torch.Tensor:
        """Of a session."""
        self.model.set_attn_implementation("context")
        options = {"max_new_tokens": NEW, "do_sample": False, **options}
        with torch.no_grad():
            return self.model.generate(ids, past_key_values=session, **options)

    def oracle(self, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """What transformers' own cache gives that starts with the same keys and values."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(
            max(len(ids), options.get("num_beams", 1), options.get("num_return_sequences", 1))
        )
        return self.resumed(ids, cache, **options)

    def resumed(self, ids: torch.Tensor, cache: Any, **options: Any) -> torch.Tensor:
        """With a cache of transformers, which goes on."""
        self.model.set_attn_implementation("sdpa")
        options = {"max_new_tokens": NEW, "do_sample": False, **options}
        with torch.no_grad():
            return self.model.generate(ids, past_key_values=cache, **options)


def make_case(folder: Path, dtype: torch.dtype = torch.float32) -> Case:
    """A new case; its files go into the folder."""
    torch.set_num_threads(1)  # the model is tiny
    model = random_model(dtype)
    torch.manual_seed(1)
    ids = torch.randint(1, 199, (1, TOTAL))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :STORED], past_key_values=cache)
    return Case(model, ids, cache, store_layers(folder, [(each.keys[0], each.values[0]) for each in cache.layers]))

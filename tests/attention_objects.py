"""vLLM's attention objects without an engine: a configuration, a paged cache filled at random, a batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import FullAttentionSpec

from vllm_relational.sparse import codec, naive
from vllm_relational.sparse.pages import PageLayout, Pages, new_cache

HEADS, KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 4, 2, 32, 32
LAYER = "model.layers.3.self_attn.attn"
EXACT = {"alpha": 0, "dense_below": 0, "dense_layers": 0}


@cache
def model_folder(**more: Any) -> str:
    folder = Path(mkdtemp(prefix="attention_config_"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HEADS * HEAD_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "vocab_size": 1000,
        "max_position_embeddings": 8192,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def make_config(dipr: dict[str, Any] | None = None, asked: bool = True, dtype: str = "float32", **more: Any) -> Any:
    """more: keys of the model's configuration."""
    config = VllmConfig(
        model_config=ModelConfig(model_folder(**more), skip_tokenizer_init=True, dtype=dtype, max_model_len=4096),
        scheduler_config=SchedulerConfig(
            max_num_seqs=16, max_num_batched_tokens=4096, max_model_len=4096, is_encoder_decoder=False
        ),
        cache_config=CacheConfig(block_size=BLOCK_SIZE),
        additional_config={"relational": {"dipr": dipr or {}}},
    )
    config.attention_config.backend = AttentionBackendEnum.CUSTOM if asked else None
    return config


def make_spec(dtype: torch.dtype = torch.float32, **more: Any) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=KV_HEADS, head_size=HEAD_SIZE, dtype=dtype, **more)


@dataclass
class Request:
    """A context of ``seq_len`` tokens, whose last ``query_len`` are computed now; both 0 for padding.

    prompt_len: tokens of the prompt, 0 for unknown.
    """

    query_len: int
    seq_len: int
    prefilling: bool = False
    prompt_len: int = 0


class Runner(SimpleNamespace):
    """Unlike its base, it can be referred to weakly."""


@dataclass
class Batch:
    """Requests over a cache of random keys and values, in blocks in random order."""

    requests: Sequence[Request]
    dtype: torch.dtype = torch.float32
    seed: int = 0
    device: str = "cpu"
    pages: Pages = field(init=False)
    cache: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        width = max(-(-request.seq_len // BLOCK_SIZE) for request in self.requests) or 1
        order = 1 + torch.randperm(width * len(self.requests))
        self.block_table = order.view(len(self.requests), width).int()
        layout = PageLayout(BLOCK_SIZE, HEAD_SIZE, self.dtype)
        self.cache = new_cache(layout, width * len(self.requests) + 1, KV_HEADS)
        self.pages = layout.views(self.cache)
        lengths = [request.query_len for request in self.requests]
        self.num_tokens = sum(lengths)
        self.query_start_loc = torch.tensor([0, *lengths]).cumsum(0).int()
        self.seq_lens = torch.tensor([request.seq_len for request in self.requests]).int()
        self.query = torch.randn(self.num_tokens, HEADS, HEAD_SIZE).to(self.dtype)
        self._fill()
        for name in ("cache", "block_table", "query_start_loc", "seq_lens", "query", "key", "value", "slots"):
            setattr(self, name, getattr(self, name).to(self.device))
        self.pages = layout.views(self.cache)

    def _fill(self) -> None:
        """All tokens but those of this step; these come in ``key``, ``value`` and ``slots``."""
        keys, values, slots = [], [], []
        for row, request in enumerate(self.requests):
            places = torch.arange(request.seq_len)
            there = self.block_table[row, places // BLOCK_SIZE].long() * BLOCK_SIZE + places % BLOCK_SIZE
            key, value = torch.randn(2, request.seq_len, KV_HEADS, HEAD_SIZE).to(self.dtype)
            old = request.seq_len - request.query_len
            codec.write(self.pages, key[:old], value[:old], there[:old])
            keys, values, slots = [*keys, key[old:]], [*values, value[old:]], [*slots, there[old:]]
        self.key, self.value, self.slots = torch.cat(keys), torch.cat(values), torch.cat(slots)

    def common(self) -> CommonAttentionMetadata:
        return CommonAttentionMetadata(
            query_start_loc=self.query_start_loc,
            query_start_loc_cpu=self.query_start_loc.cpu(),
            seq_lens=self.seq_lens,
            num_reqs=len(self.requests),
            num_actual_tokens=self.num_tokens,
            max_query_len=max(request.query_len for request in self.requests),
            max_seq_len=int(self.seq_lens.max()),
            block_table_tensor=self.block_table,
            slot_mapping=self.slots,
            is_prefilling=torch.tensor([request.prefilling for request in self.requests]),
            seq_lens_cpu_upper_bound=self.seq_lens.cpu(),
            req_idx=np.arange(len(self.requests)),
        )

    def layer(self) -> Any:
        one = torch.ones((), device=self.device)
        return SimpleNamespace(layer_name=LAYER, isa="vec", _k_scale=one, _v_scale=one, _q_scale=one)

    def runner(self) -> Any:
        """A model runner, as ``prompt_lengths`` knows them; it lives as long as it is held."""
        prompts = np.array([request.prompt_len for request in self.requests], dtype=np.int32)
        return Runner(req_states=SimpleNamespace(prompt_len=SimpleNamespace(np=prompts)))

    def expected(self, scale: float, decode_rule: naive.Rule, window: naive.Window, sparse: Sequence[int]) -> Any:
        """Attention of every query token: those of answers of ``sparse`` requests by the rule, others to all tokens."""
        rows = []
        for row, request in enumerate(self.requests):
            for place in range(request.seq_len - request.query_len, request.seq_len):
                of_answer = row in sparse and place >= request.prompt_len
                rule = decode_rule if of_answer else naive.Dense()
                key = naive.gather(self.pages.key, self.block_table[row], place + 1)
                value = naive.gather(self.pages.value, self.block_table[row], place + 1)
                query = self.query[len(rows)]
                rows.append(naive.decode(query, key, value, scale, rule, window, tail=of_answer).output)
        return torch.stack(rows)


MIXED = [
    Request(1, 300),  # decodes, long
    Request(40, 170, prefilling=True),  # a chunk of a prompt
    Request(1, 90),  # decodes, short
    Request(3, 260),  # verification of drafted tokens
    Request(1, 257, prefilling=True),  # the last token of a prompt
    Request(1, 161),  # decodes, fills a group
    Request(0, 0),  # padding
]

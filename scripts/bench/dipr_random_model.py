"""Random weights and texts whose attention is like a real model's in what it costs: some tokens matter much more than
others, and those lie together. What answers say means nothing.

``topics`` decides how many tokens a scan lists: the fewer, the more.
"""

from __future__ import annotations

import random
from typing import Any

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256,
    "max_position_embeddings": 132096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "bos_token_id": 128000, "eos_token_id": 128009, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SMALL = {
    **LLAMA_8B, "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ALIKE, ALIGNED, FAST, STRETCH = 0.95, 0.85, 0.7, 64
"""How alike tokens of a topic are, and queries and keys of a token; the part of channels that are small because they
rotate fast; tokens of a topic that follow each other, on average."""


def random_tokens(seed: int, count: int, vocabulary: int, topics: int) -> list[int]:
    """A text that goes from topic to topic after stretches of random length."""
    draw = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < count:
        topic, length = draw.randrange(topics), 1 + int(draw.expovariate(1 / STRETCH))
        tokens += [topic + topics * draw.randrange(vocabulary // topics) for _ in range(length)]
    return tokens[:count]


def draw_weights(model: Any, config: Any, logit_std: float, topics: int, seed: int = 0) -> int:
    """Draw all weights of a vLLM model of Llama's architecture anew, in place; the number of attention layers.

    vLLM's own dummy weights are near 0 and so are their logits. Here activations keep their size from layer to layer.
    As in a real model, tokens that lie together are alike, a query finds those like its own token, and does so from
    afar: embeddings of a topic share ``ALIKE`` of their variance; the keys of a KV head are ``ALIGNED`` with its
    queries; channels that rotate fast with the position are small. Scaled products of unlike tokens have the standard
    deviation ``logit_std``.
    """
    import torch

    device = next(model.parameters()).device
    draw = torch.Generator(device=device).manual_seed(seed)
    layers = 0
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.data.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        weight.data.normal_(0.0, weight.shape[1] ** -0.5, generator=draw)
        if "embed_tokens" in name:
            weight.data *= ((1 - ALIKE) * weight.shape[1]) ** 0.5
            shared = torch.randn(topics, weight.shape[1], generator=draw, device=device) * ALIKE**0.5
            for topic in range(topics):  # in place: the KV cache has left little memory
                weight.data[topic::topics] += shared[topic].to(weight.dtype)
        if name.endswith("qkv_proj.weight"):
            _draw_queries_and_keys(weight.data, config, logit_std, draw)
            layers += 1
    return layers


def _draw_queries_and_keys(weight: Any, config: Any, logit_std: float, draw: Any) -> None:
    """Rows of the queries, then of the keys, of one layer."""
    import torch

    kv_heads, heads, hidden = config.num_key_value_heads, config.num_attention_heads, config.hidden_size
    head_size = hidden // heads
    size = torch.ones(head_size // 2, device=weight.device)
    size[: int(FAST * head_size / 2)] = 0.1
    size = torch.cat([size, size])  # a channel and the one half a head behind rotate together
    size *= logit_std**0.5 / size.pow(4).mean() ** 0.25
    key, own = (
        torch.randn(kv_heads, count, head_size, hidden, generator=draw, device=weight.device) * hidden**-0.5
        for count in (1, heads // kv_heads)
    )
    query = ALIGNED**0.5 * key + (1 - ALIGNED) ** 0.5 * own
    weight[: heads * head_size] = (query * size[:, None]).view(-1, hidden)
    weight[heads * head_size :][: kv_heads * head_size] = (key * size[:, None]).view(-1, hidden)

"""What sparse decode attention keeps and costs on a real Hugging Face model, over a real text.

The text but for its last tokens is prefilled once, densely. The last tokens are then run as one batch of queries, under
one trial after another, in place of the model's attention (transformers' attention interface): every position sees
what decoding it under the trial would have seen, given the text's own tokens (teacher forcing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from attention import selection
from attention.trial import Trial, read_trial
from vllm_relational.sparse.naive import Dense, Window

NUM_QUERIES = 128
DENSE = read_trial("dense")
PAGE = 16
STATISTICS = ("own", "union", "pages", "mass", "mass_5th", "error")
"""Of a layer's head, over the queries: share of the body that it keeps by itself, that its group keeps, share of the
body's pages of ``PAGE`` tokens in which its group keeps a token, attention mass of the tokens attended to with its 5th
percentile, and the norm of the output's error over the norm of the dense output."""

_NAME = "vllm_relational_trial"
Attention = Callable[..., tuple[torch.Tensor, None]]


@dataclass(frozen=True)
class Measured:
    """A text under one trial; positions are the text's last ``NUM_QUERIES``.

    kl:       KL divergence in nats of the next-token distribution from the dense one, a position
    same_top: whether the likeliest next token is the dense one, a position
    nll:      negative log-likelihood of the text's own next token, a position but the last
    heads:    ``[num_layers, num_heads, len(STATISTICS)]``, also of the layers that were attended to densely
    """

    trial: Trial
    seq_len: int
    kl: torch.Tensor
    same_top: torch.Tensor
    nll: torch.Tensor
    heads: torch.Tensor

    def over_layers(self, first: int) -> dict[str, float]:
        """Each statistic's mean over the heads of the layers from ``first`` on."""
        means = self.heads[first:].mean((0, 1)).tolist()
        return dict(zip(STATISTICS, means, strict=True))


@contextmanager
def attention_of(model: Any, function: Attention) -> Iterator[None]:
    """Inside, ``model`` attends by ``function``, called as transformers' attention interface says, without a mask."""
    from transformers import AttentionInterface

    before = model.config._attn_implementation
    AttentionInterface.register(_NAME, function)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class Prefilled:
    """A text whose last ``num_queries`` tokens can be run again and again over the same prefix."""

    def __init__(self, model: Any, tokens: torch.Tensor, num_queries: int = NUM_QUERIES) -> None:
        from transformers import DynamicCache

        if len(tokens) <= num_queries:
            raise ValueError(f"the text has {len(tokens)} tokens: more than {num_queries} are needed")
        self.model, self.tokens, self.num_queries = model, tokens.to(model.device), num_queries
        self.cache = DynamicCache(config=model.config)
        self._forward(self.tokens[:-num_queries], logits_to_keep=1)

    @torch.inference_mode()
    def _forward(self, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        result = self.model(input_ids=tokens[None], past_key_values=self.cache, use_cache=True, **options)
        logits: torch.Tensor = result.logits[0]
        return logits

    def run(self, function: Attention) -> torch.Tensor:
        """Logits ``[num_queries, vocabulary]``, float32, of the last tokens with attention by ``function``."""
        with attention_of(self.model, function):
            logits = self._forward(self.tokens[-self.num_queries :])
        self.cache.crop(-self.num_queries)
        return logits.float()


class Observer:
    """Attention by a trial, which notes ``STATISTICS`` of every layer; the first layers attend densely."""

    def __init__(self, trial: Trial, window: Window, dense_layers: int) -> None:
        self.trial, self.window, self.dense_layers = trial, window, dense_layers
        self.layers: list[torch.Tensor] = []

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        scored = scored_by(query, key, scaling, self.window)
        values = selection.padded(value)
        dense = selection.attend(scored, values, selection.ByProducts(Dense())).output
        found = self.trial.attend(scored, values, key.shape[2])
        self.layers.append(statistics(scored, found, dense))
        output = dense if module.layer_idx < self.dense_layers else found.output
        return output.flatten(1, 2).transpose(1, 2).to(query.dtype), None


def scored_by(query: torch.Tensor, key: torch.Tensor, scale: float, window: Window) -> selection.Scored:
    """Queries ``[1, num_heads, num_queries, head_size]`` at the end of a context with keys
    ``[1, num_kv_heads, seq_len, head_size]``."""
    num_queries, seq_len = query.shape[2], key.shape[2]
    positions = torch.arange(seq_len - num_queries, seq_len, device=key.device)[None]
    columns = selection.columns_of(seq_len, key.device)
    grouped = torch.unflatten(query, 1, (key.shape[1], -1))
    return selection.Scored(grouped, selection.padded(key), columns, positions, scale, window)


def statistics(scored: selection.Scored, found: selection.Attended, dense: torch.Tensor) -> torch.Tensor:
    """``STATISTICS`` of a layer, ``[num_heads, len(STATISTICS)]``."""
    body = scored.body(PAGE)
    size = body.sum(-1).clamp(min=1)
    group = found.kept.any(2, keepdim=True).expand_as(found.kept) & body
    pages = torch.unflatten(group, -1, (-1, PAGE)).any(-1).sum(-1)
    error = (found.output - dense).norm(dim=-1) / dense.norm(dim=-1)
    mean = [(found.own & body).sum(-1) / size, group.sum(-1) / size, pages / (size / PAGE), found.kept_weight, error]
    own, union, share, mass, wrong = (each.float().mean(-1)[0].flatten() for each in mean)
    fifth = torch.quantile(found.kept_weight, 0.05, dim=-1)[0].flatten()
    return torch.stack([own, union, share, mass, fifth, wrong], -1)


def measure(
    model: Any,
    tokens: torch.Tensor,
    trials: Iterable[Trial],
    *,
    window: Window | None = None,
    dense_layers: int = 2,
    num_queries: int = NUM_QUERIES,
) -> Iterator[Measured]:
    """Each trial on the text ``tokens`` (int ``[seq_len]``); the window must leave a body of whole groups."""
    window = window or Window()
    start, end = window.body(len(tokens) - num_queries)
    if end - start < selection.COLUMNS:
        raise ValueError(f"a text of {len(tokens)} tokens has no body outside a window of {window}")
    text = Prefilled(model, tokens, num_queries)
    reference = text.run(Observer(DENSE, window, dense_layers)).log_softmax(-1)
    following = text.tokens[-num_queries + 1 :, None]
    for trial in trials:
        observer = Observer(trial, window, dense_layers)
        found = text.run(observer).log_softmax(-1)
        kl = (reference.exp() * (reference - found)).sum(-1)
        same = found.argmax(-1) == reference.argmax(-1)
        nll = -found[:-1].gather(-1, following)[:, 0]
        heads = torch.stack(observer.layers)
        yield Measured(trial, len(tokens), kl.cpu(), same.cpu(), nll.cpu(), heads.cpu())


def record(model: Any, tokens: torch.Tensor, layers: Iterable[int], num_queries: int = NUM_QUERIES) -> dict[str, Any]:
    """Keys, values and the last queries of some layers, after rotation, for benchmarks of kernels.

    ``layers`` of the result maps a layer to ``key``, ``value`` ``[num_kv_heads, seq_len, head_size]`` and ``query``
    ``[num_heads, num_queries, head_size]``, on the CPU in the model's dtype; ``scale`` is the softmax scale.
    """
    wanted = set(layers)
    last = len(model.model.layers) - 1
    if not wanted <= set(range(last + 1)):
        raise ValueError(f"there are layers 0 to {last}, not {sorted(wanted)}")
    kept: dict[int, dict[str, torch.Tensor]] = {}
    dense = Observer(DENSE, Window(), 0)
    scales: list[float] = []

    def keep(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **options: Any) -> Any:
        if module.layer_idx in wanted:
            parts = {"query": query, "key": key, "value": value}
            kept[module.layer_idx] = {name: part[0].cpu().clone() for name, part in parts.items()}
            scales.append(scaling)
        return dense(module, query, key, value, mask, scaling, **options)

    Prefilled(model, tokens, num_queries).run(keep)
    return {"scale": scales[0], "seq_len": len(tokens), "layers": kept}

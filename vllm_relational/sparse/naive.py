"""Decode attention over a paged KV cache in plain torch, one request at a time: the oracle of every kernel.

Rules say which tokens a query attends to. Scores are unscaled, ``q.k``; DIPR (arXiv 2504.10326, section 5)
keeps the tokens with ``q.k >= max - beta``. The first ``sinks`` and the last ``recent`` tokens, the *window*, are
always attended to; between them lies the *body*, in whole groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from vllm_relational.sparse import codec

RANK_SPREAD = 0.375
"""Groups are ranked by the middle of what their scores may be, plus this share of the way to the box bound."""
MAX_LIFT = 64.0
"""Bits: a token of a group that was not chosen counts at most ``2 ** 64`` times as much as any of the window."""


@dataclass(frozen=True)
class Window:
    """Tokens at the start (``sinks``, rounded up to a group) and at the end (at least ``recent``) of every context.

    group: tokens of a group of the index, of which the body has whole ones.
    """

    sinks: int = 128
    recent: int = 512
    group: int = 16

    def body(self, seq_len: int) -> tuple[int, int]:
        """First token of the body and the one behind its last; empty where the window covers all."""
        start = -(-self.sinks // self.group) * self.group
        end = (seq_len - self.recent) // self.group * self.group
        return start, max(start, end)


class Rule(Protocol):
    """Which tokens queries keep, without the window."""

    def keep(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        """Scores ``[num_heads, seq_len]`` -> bool of the same shape."""
        ...


@dataclass(frozen=True)
class Dense:
    """All tokens."""

    def keep(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.ones_like(scores, dtype=torch.bool)


@dataclass(frozen=True)
class Dipr:
    """Tokens whose score is at most ``beta`` below the greatest of the head. A NaN score is kept."""

    beta: float

    def keep(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return ~(scores < scores.amax(-1, keepdim=True) - self.beta)


@dataclass(frozen=True)
class KnownTokens:
    """Tokens known beforehand, such as those that a kernel listed: bool ``[num_heads, seq_len]``."""

    kept: torch.Tensor

    def keep(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return self.kept.to(scores.device).clone()


@dataclass(frozen=True)
class TopPages:
    """At least ``tokens`` of the body, in whole groups: those with the greatest scores by what the index holds of a
    group beside the codes (AlayaDB's coarse index, arXiv 2504.10326, section 6; Quest, arXiv 2406.10774).

    A group's score for a KV head is the greatest, over its query heads, of how far the score with the group's middle,
    plus ``spread`` times its reach (``codec.outline``), lies above the head's greatest score of the window. All heads
    attend to the same groups. Equal scores go by position, groups that the index cannot hold come first.
    """

    tokens: int
    spread: float = RANK_SPREAD

    def choose(
        self, query: torch.Tensor, key: torch.Tensor, scores: torch.Tensor, scale: float, window: Window
    ) -> Chosen:
        """The rule for one request: arguments of ``decode``, and the scores ``[num_heads, seq_len]``."""
        kv_heads, seq_len, _ = key.shape
        start, end = window.body(seq_len)
        _, zero_point, key_scale = codec.quantise(torch.unflatten(key[:, start:end], 1, (-1, window.group)))
        parts = zip(query.view(kv_heads, -1, query.shape[-1]), zero_point, key_scale, strict=True)
        middle, reach = (torch.cat(each) for each in zip(*(codec.outline(*part) for part in parts), strict=True))
        seed = torch.cat([scores[:, :start], scores[:, end:]], 1).amax(-1, keepdim=True)
        above = (middle + self.spread * reach - seed).nan_to_num(torch.inf, torch.inf, -torch.inf)
        chosen = greatest(
            above.view(kv_heads, len(query) // kv_heads, above.shape[-1]).amax(1), -(-self.tokens // window.group)
        )
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[:, start:end] = chosen.repeat_interleave(len(query) // kv_heads, 0).repeat_interleave(window.group, 1)
        seen = torch.minimum(middle, seed + MAX_LIFT * math.log(2) / scale).nan_to_num(-torch.inf)
        estimates = scores.clone()
        estimates[:, start:end] = seen.repeat_interleave(window.group, 1)
        return Chosen(kept, estimates)


@dataclass(frozen=True)
class Chosen:
    """What an index selects: ``kept`` and, for the tail, scores ``estimates``, both ``[num_heads, seq_len]``."""

    kept: torch.Tensor
    estimates: torch.Tensor

    def keep(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return self.kept.clone()


def greatest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which are the ``count`` greatest along the last dimension, of equal ones the first: bool of the same shape."""
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


@dataclass
class Decoded:
    """One request's attention.

    output: ``[num_heads, head_size]``; lse: log of the softmax's denominator over attended tokens ``[num_heads]``;
    kept:   bool ``[num_heads, seq_len]``, the window included; kept_weight: share of the attention weight that
            the kept tokens have ``[num_heads]``.
    """

    output: torch.Tensor
    lse: torch.Tensor
    kept: torch.Tensor
    kept_weight: torch.Tensor


def gather(cache: torch.Tensor, block_table: torch.Tensor, seq_len: int) -> torch.Tensor:
    """Keys or values ``[num_blocks, num_kv_heads, block_size, head_size]`` of a request
    -> ``[num_kv_heads, seq_len, head_size]``."""
    num_pages = -(-seq_len // cache.shape[2])
    pages = cache[block_table[:num_pages].long()].transpose(0, 1)
    return pages.reshape(cache.shape[1], -1, cache.shape[3])[:, :seq_len]


def decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    rule: Rule | TopPages,
    window: Window | None = None,
    *,
    by_group: bool = True,
    tail: bool = False,
) -> Decoded:
    """Attention of one query token of a request over its whole context.

    query: ``[num_heads, head_size]``; key, value: ``[num_kv_heads, seq_len, head_size]``. Computed in their dtype, at
    least float32: give float64 for a reference of the reference.
    by_group: a token that one head of a KV head's group keeps is attended to by all of them, as the kernels do.
    tail:     tokens of the body that are not kept count with their weight and the mean value of their group, of the
              window's size or 16; under ``TopPages`` with the weight that a key in the group's middle has.
    """
    number = torch.promote_types(query.dtype, torch.float32)
    query, key, value = query.to(number), key.to(number), value.to(number)
    kv_heads, seq_len, head_size = key.shape
    grouped = query.view(kv_heads, -1, head_size)
    scores = (grouped @ key.transpose(1, 2)).view(len(query), seq_len)
    if isinstance(rule, TopPages):
        rule = rule.choose(query, key, scores, scale, window or Window(0, 1))
    kept = rule.keep(scores, scale)
    if window is not None:
        start, end = window.body(seq_len)
        kept[:, :start] = kept[:, end:] = True
    if by_group:
        together = kept.view(kv_heads, -1, seq_len).any(1, keepdim=True)
        kept = together.expand(-1, grouped.shape[1], -1).reshape(len(query), seq_len)
    logits = scores * scale
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    kept_weight = (weights * kept).sum(-1) / weights.sum(-1)
    repeats = grouped.shape[1]
    output, denominator = _weighted(weights * kept, value, repeats), (weights * kept).sum(-1)
    if tail:
        seen = rule.estimates * scale if isinstance(rule, Chosen) else logits
        rest = torch.exp(seen - logits.amax(-1, keepdim=True)) * ~kept
        output = output + _weighted(rest, _group_means(value, window.group if window else 16), repeats)
        denominator = denominator + rest.sum(-1)
    return Decoded(output / denominator[:, None], denominator.log() + logits.amax(-1), kept, kept_weight)


def _weighted(weights: torch.Tensor, value: torch.Tensor, repeats: int) -> torch.Tensor:
    kv_heads, seq_len, head_size = value.shape
    return (weights.view(kv_heads, repeats, seq_len) @ value).reshape(-1, head_size)


def _group_means(value: torch.Tensor, group: int) -> torch.Tensor:
    """Every token's value replaced by the mean of its group; the last group may be short."""
    parts = torch.split(value, group, dim=1)
    means = [part.mean(1, keepdim=True).expand_as(part) for part in parts]
    return torch.cat(means, dim=1)

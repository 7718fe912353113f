"""What a batch of queries attends to under a rule, and what it computes then: plain torch over whole layers.

``naive`` is the oracle, one request at a time; here many queries of one or more contexts are attended together, so that
a real model can be measured (``measure.py``). Beside the rules of ``naive`` there are the two that read an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from vllm_relational.sparse import codec
from vllm_relational.sparse.naive import RANK_SPREAD, Rule, Window, greatest

COLUMNS = 64
"""Contexts are padded to a multiple of this many tokens: every group size divides it."""
NOWHERE = 1 << 40
"""A position beyond every query."""
TILE = 64
"""Tokens that a scan looks at together: it knows their lower bounds before it drops any of them."""


class Coded(NamedTuple):
    """What an index says of keys ``[..., seq_len, head_size]``: keys of the same shape, NaN where it says nothing, and
    the steps and the middles of groups ``[..., seq_len / group, head_size]``, all float32."""

    key: torch.Tensor
    key_scale: torch.Tensor
    middle: torch.Tensor


@dataclass(frozen=True)
class Index:
    """The codec with other sizes: codes of ``bits``, one zero point and scale per channel for ``group`` tokens."""

    bits: int = 4
    group: int = 16

    def encode(self, key: torch.Tensor) -> Coded:
        """Keys to what the index says of them; with the default sizes exactly ``codec.decode(*codec.encode(...))``."""
        codes, zero_point, key_scale = codec.quantise(torch.unflatten(key, -2, (-1, self.group)), 2**self.bits)
        size = codec.decode_scale(key_scale).float()
        middle = zero_point.float() + (2**self.bits - 1) / 2 * size
        return Coded(codec.dequantise(codes, zero_point, key_scale).flatten(-3, -2), size, middle)

    def token_bytes(self, head_size: int) -> float:
        """Bytes that a scan reads of a token: its codes, and its share of zero point and scale."""
        return head_size * (self.bits / 8 + 3 / self.group)


DEFAULT_INDEX = Index()


class Scored:
    """The products of a layer's queries with the keys of their contexts, and what indexes say of them.

    query:     ``[batch, num_kv_heads, repeats, num_queries, head_size]``
    key:       ``[batch, num_kv_heads, num_columns, head_size]``, ``num_columns`` a multiple of ``COLUMNS``
    columns:   int ``[batch, num_columns]``, the position of each key; one beyond all queries where there is no key.
               Positions of the body must equal their column.
    positions: int ``[batch, num_queries]``: a query sees the keys up to its own position.
    exact:     float32 ``[batch, num_kv_heads, repeats, num_queries, num_columns]``, -inf where a query sees no key
    """

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        columns: torch.Tensor,
        positions: torch.Tensor,
        scale: float,
        window: Window,
        coded: Mapping[Index, Coded] | None = None,
    ) -> None:
        self.query, self.key, self.scale, self.window = query.float(), key.float(), scale, window
        self.columns, self.positions = columns[:, None, None, None, :], positions[:, None, None, :, None]
        self.visible = self.columns <= self.positions
        self.exact = self._times(self.key).masked_fill_(~self.visible, -torch.inf)
        self._coded = dict(coded or {})
        self._estimates: dict[Index, tuple[torch.Tensor, torch.Tensor]] = {}
        self._outlines: dict[Index, tuple[torch.Tensor, torch.Tensor]] = {}

    def _times(self, key: torch.Tensor) -> torch.Tensor:
        flat = self.query.flatten(2, 3) @ key.transpose(-1, -2)
        return torch.unflatten(flat, 2, self.query.shape[2:4])

    def body(self, group: int) -> torch.Tensor:
        """bool ``[batch, 1, 1, num_queries, num_columns]``: tokens outside the window, in whole groups."""
        start = -(-self.window.sinks // group) * group
        end = (self.positions + 1 - self.window.recent) // group * group
        return (self.columns >= start) & (self.columns < end)

    def estimate(self, index: Index) -> tuple[torch.Tensor, torch.Tensor]:
        """Products with the index's keys, NaN where it says nothing, and how far they may be off; both as products."""
        if index not in self._estimates:
            coded = self._coded.get(index) or index.encode(self.key)
            bound = self.query.abs().flatten(2, 3) @ coded.key_scale.transpose(-1, -2) * (0.5 * codec.SLACK)
            bound = torch.unflatten(bound.repeat_interleave(index.group, -1), 2, self.query.shape[2:4])
            self._estimates[index] = self._times(coded.key), bound
        return self._estimates[index]

    def outline(self, index: Index) -> tuple[torch.Tensor, torch.Tensor]:
        """``codec.outline`` of every group ``[batch, num_kv_heads, repeats, num_queries, num_groups]``."""
        if index not in self._outlines:
            coded = self._coded.get(index) or index.encode(self.key)
            reach = (
                self.query.abs().flatten(2, 3) @ coded.key_scale.transpose(-1, -2) * (2**index.bits / 2 * codec.SLACK)
            )
            self._outlines[index] = self._times(coded.middle), torch.unflatten(reach, 2, self.query.shape[2:4])
        return self._outlines[index]

    def window_most(self, group: int) -> torch.Tensor:
        """The greatest score of the window ``[batch, num_kv_heads, repeats, num_queries, 1]``."""
        return self.exact.masked_fill(self.body(group), -torch.inf).amax(-1, keepdim=True)


class Selection(Protocol):
    """Which tokens queries keep; tokens of the window need not be among them."""

    def keep(self, scored: Scored) -> torch.Tensor:
        """bool of the shape of ``scored.exact``; what no query sees does not count."""
        ...


@dataclass(frozen=True)
class ByProducts:
    """A rule of ``naive`` on the exact products."""

    rule: Rule

    def keep(self, scored: Scored) -> torch.Tensor:
        return self.rule.keep(scored.exact, scored.scale)


@dataclass(frozen=True)
class Recent:
    """The last ``count`` tokens that a query sees."""

    count: int

    def keep(self, scored: Scored) -> torch.Tensor:
        return (scored.columns > scored.positions - self.count).expand_as(scored.exact)


@dataclass(frozen=True)
class Scan:
    """What the index cannot rule out under DIPR: a superset of DIPR's tokens, all of which the scan kernel attends to.

    A token stays if the most that its score may be reaches ``best - beta``; ``best`` is the greatest score of the
    window, or of the lower bounds seen so far if that is greater. maximum: ``window`` uses the window's alone,
    ``running`` raises it tile by tile in each of ``splits`` parts of the context, ``global`` knows it beforehand.
    """

    beta: float
    index: Index = DEFAULT_INDEX
    maximum: str = "running"
    splits: int = 16

    def keep(self, scored: Scored) -> torch.Tensor:
        estimated, bound = scored.estimate(self.index)
        body = scored.body(self.index.group)
        best = scored.window_most(self.index.group)
        if self.maximum != "window":
            lower = (estimated - bound).nan_to_num_(nan=-torch.inf).masked_fill_(~body, -torch.inf)
            best = torch.maximum(best, self._seen(lower))
        return ~(estimated + bound < best - self.beta)

    def _seen(self, lower: torch.Tensor) -> torch.Tensor:
        """For every token the greatest lower bound that the scan has seen when it decides on it."""
        if self.maximum == "global":
            return lower.amax(-1, keepdim=True)
        tiles = torch.unflatten(lower, -1, (-1, TILE)).amax(-1)
        parts = torch.split(tiles, -(-tiles.shape[-1] // self.splits), dim=-1)
        return torch.cat([part.cummax(-1).values for part in parts], -1).repeat_interleave(TILE, -1)


@dataclass(frozen=True)
class Estimated:
    """DIPR on the index's products taken at face value: about as many tokens as DIPR keeps, but not all of DIPR's."""

    beta: float
    index: Index = DEFAULT_INDEX

    def keep(self, scored: Scored) -> torch.Tensor:
        estimated, _ = scored.estimate(self.index)
        body = scored.body(self.index.group)
        seen = torch.where(body & ~estimated.isnan(), estimated, scored.exact)
        return ~(seen < seen.amax(-1, keepdim=True) - self.beta)


@dataclass(frozen=True)
class TopPages:
    """``naive.TopPages``: the groups with the greatest scores, at least ``tokens`` of the body."""

    tokens: int
    index: Index = DEFAULT_INDEX
    spread: float = RANK_SPREAD

    def keep(self, scored: Scored) -> torch.Tensor:
        group = self.index.group
        middle, reach = scored.outline(self.index)
        above = middle + self.spread * reach - scored.window_most(group)
        above = above.nan_to_num_(torch.inf, torch.inf, -torch.inf).amax(2, keepdim=True)
        body = torch.unflatten(scored.body(group), -1, (-1, group)).any(-1)
        chosen = greatest(above.masked_fill_(~body, -torch.inf), -(-self.tokens // group))
        return chosen.repeat_interleave(group, -1).expand_as(scored.exact)


class Attended(NamedTuple):
    """Attention of a batch of queries.

    output: ``[batch, num_kv_heads, repeats, num_queries, head_size]``
    own:    bool as products: what each head keeps by itself, the window included
    kept:   bool as products: what it attends to, after its group has been joined
    kept_weight: attention weight of the tokens attended to ``[batch, num_kv_heads, repeats, num_queries]``
    """

    output: torch.Tensor
    own: torch.Tensor
    kept: torch.Tensor
    kept_weight: torch.Tensor


def attend(
    scored: Scored,
    value: torch.Tensor,
    selection: Selection,
    *,
    tail: str = "none",
    index: Index | None = None,
    by_group: bool = True,
) -> Attended:
    """Attention of every query over the tokens that ``selection`` keeps and its window.

    value: ``[batch, num_kv_heads, num_columns, head_size]``. tail: tokens of the body that are not kept count with the
    mean value of their group and their weight: ``exact``, estimated by the ``index``, or that of a key in the
    ``middle`` of the group; ``none`` leaves them out.
    by_group: a token that one head of a group keeps is attended to by all.
    """
    index = index or DEFAULT_INDEX
    body, value = scored.body(index.group), value.float()
    own = (selection.keep(scored) | ~body) & scored.visible
    kept = own.any(2, keepdim=True).expand_as(own) if by_group else own
    logits = scored.exact * scored.scale
    top = logits.amax(-1, keepdim=True)
    weights = torch.exp(logits - top)
    attended = weights * kept
    total = attended.sum(-1)
    kept_weight = total / weights.sum(-1)
    output = _weighted(attended, value)
    if tail != "none":
        seen = weights if tail == "exact" else _estimated_weights(scored, index, weights, top, tail == "middle")
        rest = torch.where(kept, 0.0, seen)  # an estimate may be infinite where nothing was coded
        rest = torch.unflatten(rest, -1, (-1, index.group)).sum(-1)
        output = output + _weighted(rest, torch.unflatten(value, -2, (-1, index.group)).mean(-2))
        total = total + rest.sum(-1)
    return Attended(output / total[..., None], own, kept, kept_weight)


def _estimated_weights(
    scored: Scored, index: Index, weights: torch.Tensor, top: torch.Tensor, middle: bool
) -> torch.Tensor:
    if middle:
        estimated = scored.outline(index)[0].repeat_interleave(index.group, -1)
    else:
        estimated, _ = scored.estimate(index)
    found = torch.exp(estimated * scored.scale - top)
    return torch.where(estimated.isnan() | ~scored.visible, weights, found)


def _weighted(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.unflatten(weights.flatten(2, 3) @ value, 2, weights.shape[2:4])


def padded(tokens: torch.Tensor) -> torch.Tensor:
    """Keys or values ``[..., seq_len, head_size]`` with zeros up to a multiple of ``COLUMNS`` tokens."""
    return torch.nn.functional.pad(tokens, (0, 0, 0, -tokens.shape[-2] % COLUMNS))


def columns_of(seq_len: int, device: torch.device) -> torch.Tensor:
    """``columns`` of one context of ``seq_len`` tokens after ``padded``."""
    there = torch.arange(seq_len, device=device)
    return torch.nn.functional.pad(there, (0, -seq_len % COLUMNS), value=NOWHERE)[None]

#!/usr/bin/env python3
"""Keys, values and queries of the Llama-3.1-8B shape (32 query heads, 8 KV heads, head size 128) with the scores of a
real model, for benchmarks of decode kernels.

    dipr_data.py [--dump kv.pt] [--lengths 8192,32768,131072] [--batch 4] [--combine twice|pairs]

From a dump of ``dipr_measure.py --dump`` (a model of head size 64): each of the 8 KV heads is a KV head of one of
the dumped layers, with four of its query heads. ``twice`` (default) lays every channel of head size 64 out twice
and divides the queries by sqrt(2): scores and the index's error bound, as logits, are then exactly the model's.
``pairs`` joins the channels of two heads of different layers: bounds grow as they would with 128 independent
channels, so a scan keeps more. A context longer than a stretch of the dump continues to the left with the tokens of
other stretches, without their first 128 (each stretch begins with attention sinks, a context has them once), keys
rotated to the positions that they take. Four query heads keep fewer tokens together than the model's seven: the
queries are scaled by one factor, found at the dump's own length, at which they keep the share that all heads of the
model's groups keep.

Without a dump, from random numbers: keys that are alike within a group of 16, scores with a heavy tail, and a sink
whose product is set so that the share of tokens within beta of it is the one asked for.

Run as a program it prints, a length, the shares that are kept and that a scan reads, and exits with 1 where they
are not the measured ones. ``Llama(...)`` is for other benchmarks.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from attention import selection
from attention.trial import read_trial

from vllm_relational.sparse.naive import Window

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 32, 8, 128
SCALE = HEAD_SIZE**-0.5
ALPHA = 4e-3
SINKS = 128
WINDOW = Window()
MEASURED_UNION_32K = 0.019  # at ALPHA, teacher-forced, two texts; it halves when the length doubles
CANDIDATES_A_TOKEN = 2.2  # tokens that a scan reads for one that is kept
TOLERANCE = {"union": 0.1, "candidates": 0.25}


class Context(NamedTuple):
    """A batch of contexts: query ``[batch, 32, 128]``, key and value ``[batch, 8, length, 128]``; softmax scale
    ``SCALE``. The query stands at the last position."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


class Shares(NamedTuple):
    """Of the body's tokens: what a query head keeps, what its group keeps, what a scan reads for the group."""

    own: float
    union: float
    candidates: float


def shares(context: Context, scale: float = SCALE, alpha: float = ALPHA) -> Shares:
    """Mean over the batch; one context at a time, to bound memory."""
    found = []
    for query, key in zip(context.query, context.key, strict=True):
        length = key.shape[1]
        grouped = query.view(1, len(key), -1, 1, query.shape[-1])
        at = torch.tensor([[length - 1]], device=key.device)
        columns = selection.columns_of(length, key.device)
        scored = selection.Scored(grouped, selection.padded(key[None]), columns, at, scale, WINDOW)
        body = scored.body(16)
        trials = [read_trial(f"{rule}:{alpha}") for rule in ("dipr", "scan")]
        exact, scan = (trial.select(scale, length).keep(scored) & body for trial in trials)
        sizes = [exact.float().mean((1, 2)), exact.any(2).float().mean(1), scan.any(2).float().mean(1)]
        found.append(torch.stack([size.sum() for size in sizes]) / body.sum())
    return Shares(*torch.stack(found).mean(0).tolist())


# ------------------------------------------------------------------------------------------------- from a real model
def rotated(key: torch.Tensor, shift: int, theta: float) -> torch.Tensor:
    """Keys ``[..., head_size]`` after rotary embedding, moved by ``shift`` positions."""
    half = key.shape[-1] // 2
    angle = shift * theta ** (-torch.arange(half, device=key.device, dtype=torch.float64) / half)
    cos, sin = angle.cos().float(), angle.sin().float()
    first, second = key.float().split(half, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(key.dtype)


@dataclass
class Dump:
    """What ``dipr_measure.py --dump`` wrote, and the factor of the queries."""

    content: dict
    device: str
    combine: str = "twice"
    factor: float = 1.0

    def __post_init__(self) -> None:
        self.stretches = self.content["stretches"]
        self.length = self.stretches[0]["seq_len"]
        first = self.stretches[0]["layers"]
        self.heads = [(layer, head) for layer in first for head in range(first[layer]["key"].shape[0])]
        self.num_queries = next(iter(first.values()))["query"].shape[1]

    def _part(self, stretch: int, head: tuple[int, int], name: str) -> torch.Tensor:
        layer, kv_head = head
        there = self.stretches[stretch % len(self.stretches)]["layers"][layer]
        part = there[name].to(self.device)
        return part.unflatten(0, (there["key"].shape[0], -1))[kv_head] if name == "query" else part[kv_head]

    def head(self, stretch: int, head: tuple[int, int], at: int, length: int) -> tuple[torch.Tensor, ...]:
        """A KV head of the model over a context of ``length`` tokens: all its queries ``[repeats, head_size]``, keys
        and values ``[length, head_size]``; the query is the stretch's ``at``-th from behind."""
        end, theta = self.length - at, self.content["rope_theta"]
        query = self._part(stretch, head, "query")[:, self.num_queries - 1 - at]
        key, value = (self._part(stretch, head, name)[:end] for name in ("key", "value"))
        pieces, missing, shift = [], length - SINKS, 0
        sinks = rotated(key[:SINKS], end - length, theta), value[:SINKS]
        while missing > 0:
            took = min(missing, len(key) - SINKS)
            pieces.append((rotated(key[len(key) - took :], shift, theta), value[len(value) - took :]))
            missing, shift = missing - took, shift - took - (self.length - len(key))
            stretch += 1
            key, value = (self._part(stretch, head, name) for name in ("key", "value"))
        keys, values = zip(sinks, *reversed(pieces), strict=True)
        return query, torch.cat(keys), torch.cat(values)

    def context(self, length: int, batch: int, seed: int = 0, repeats: int = NUM_HEADS // NUM_KV_HEADS) -> Context:
        """A batch of contexts of the Llama shape; requests begin in different stretches, with different queries."""
        random = torch.Generator().manual_seed(seed)
        requests = []
        for request in range(batch):
            at = int(torch.randint(self.num_queries, (), generator=random))
            heads = [self._llama_head(request, number, at, length, repeats, random) for number in range(NUM_KV_HEADS)]
            requests.append([torch.stack(parts) for parts in zip(*heads, strict=True)])
        query, key, value = (torch.stack(parts) for parts in zip(*requests, strict=True))
        return Context(query.flatten(1, 2), key, value)

    def _llama_head(self, request: int, number: int, at: int, length: int, repeats: int, random) -> tuple:
        chosen = self.heads[number % len(self.heads)]
        query, key, value = self.head(request, chosen, at, length)
        some = torch.randperm(len(query), generator=random)[:repeats].sort().values.to(self.device)
        other: tuple[torch.Tensor, ...] = (query, key, value)
        if self.combine == "pairs":
            other = self.head(request, self.heads[(number + 3) % len(self.heads)], at, length)
        joined = [torch.cat(pair, -1) for pair in zip((query, key, value), other, strict=True)]
        smaller = self.factor if self.combine == "pairs" else self.factor / math.sqrt(2)
        return (joined[0][some].float() * smaller).to(key.dtype), joined[1], joined[2]

    def measured(self, batch: int, seed: int = 0) -> Shares:
        """Of the model itself, all query heads of a group, at the dump's length."""
        random, found = torch.Generator().manual_seed(seed), []
        for request in range(batch):
            at = int(torch.randint(self.num_queries, (), generator=random))
            for head in self.heads[:NUM_KV_HEADS]:
                query, key, value = self.head(request, head, at, self.length - at)
                there = Context(query[None], key[None, None], value[None, None])
                found.append(torch.tensor(shares(there, self.stretches[0]["scale"])))
        return Shares(*torch.stack(found).mean(0).tolist())

    def calibrate(self, batch: int) -> None:
        """Find the factor at which the union of four heads is that of all heads of the model's groups."""
        target, low, high = self.measured(batch).union, 0.25, 4.0
        self.factor = 1.0
        context = self.context(self.length - self.num_queries, batch)
        for _ in range(16):
            self.factor = math.sqrt(low * high)
            scaled = context._replace(query=context.query.float() * self.factor)
            low, high = (low, self.factor) if shares(scaled).union < target else (self.factor, high)


# ----------------------------------------------------------------------------------------------- from random numbers
@dataclass
class Synthetic:
    """Random contexts with the shares asked for. ``alike`` is the part of a key's variance that its group shares."""

    device: str
    union_32k: float = MEASURED_UNION_32K
    candidates: float = CANDIDATES_A_TOKEN
    alike: float = 0.9

    def union(self, length: int) -> float:
        """Share of the body that a group keeps: it halves when the length doubles."""
        return min(self.union_32k * 32768 / length, 0.5)

    def context(self, length: int, batch: int, seed: int = 0) -> Context:
        random = torch.Generator(self.device).manual_seed(seed)
        requests = [self._request(length, random) for _ in range(batch)]
        return Context(*(torch.stack(parts) for parts in zip(*requests, strict=True)))

    def _normal(self, random: torch.Generator, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=self.device)

    def _request(self, length: int, random: torch.Generator) -> tuple[torch.Tensor, ...]:
        groups, repeats = -(-length // 16), NUM_HEADS // NUM_KV_HEADS
        together = self._normal(random, NUM_KV_HEADS, 1, HEAD_SIZE)
        query = (together + self._normal(random, NUM_KV_HEADS, repeats, HEAD_SIZE)) * math.sqrt(0.5)
        centre = self._normal(random, NUM_KV_HEADS, groups, 1, HEAD_SIZE) * math.sqrt(self.alike)
        noise = self._normal(random, NUM_KV_HEADS, groups, 16, HEAD_SIZE) * math.sqrt(1 - self.alike)
        weight = torch.exp(0.25 * self._normal(random, NUM_KV_HEADS, groups, 1, 1))  # a heavier tail than normal
        key = (1.5 * weight * (centre + noise)).flatten(1, 2)[:, :length].bfloat16()
        query = query.bfloat16()
        key[:, 0] = self._sink(query.float(), key.float()).bfloat16()
        value = self._normal(random, NUM_KV_HEADS, length, HEAD_SIZE).bfloat16()
        return query.flatten(0, 1), key, value

    def _sink(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """The key whose product with each query is beta above that of the last token to be kept."""
        start, end = WINDOW.body(key.shape[1])
        body = (query @ key[:, start:end].transpose(1, 2)).amax(1)
        kept = max(int(self.union(key.shape[1]) * body.shape[1]), 1)
        product = body.topk(kept, -1).values[:, -1] - math.log(ALPHA) / SCALE
        wanted = product[:, None, None].expand(-1, query.shape[1], 1)
        return (torch.linalg.pinv(query) @ wanted)[..., 0]

    def calibrate(self, length: int = 16384) -> None:
        """Find ``alike`` so that a scan reads so many tokens for each that is kept."""
        low, high = 0.0, 0.9999
        for _ in range(12):
            self.alike = (low + high) / 2
            found = shares(self.context(length, 1, seed=1))
            low, high = (low, self.alike) if found.candidates < self.candidates * found.union else (self.alike, high)


class Llama:
    """Contexts of the Llama-3.1-8B shape: from a dump where there is one, else from random numbers."""

    def __init__(self, dump: Path | None = None, device: str = "cuda", combine: str = "twice") -> None:
        if dump is None:
            self.source: Dump | Synthetic = Synthetic(device)
            self.source.calibrate()
        else:
            self.source = Dump(torch.load(dump, weights_only=True), device, combine)
            self.source.calibrate(len(self.source.stretches))

    def context(self, length: int, batch: int, seed: int = 0) -> Context:
        """``batch`` contexts of ``length`` tokens, in bfloat16, deterministic."""
        return self.source.context(length, batch, seed)

    def expected(self) -> tuple[int, Shares]:
        """A length, and the measured shares there."""
        if isinstance(self.source, Dump):
            source = self.source
            return source.length - source.num_queries, source.measured(len(source.stretches))
        union = self.source.union(32768)
        return 32768, Shares(math.nan, union, self.source.candidates * union)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--lengths", default="8192,32768,131072")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--combine", choices=["twice", "pairs"], default="twice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    llama = Llama(args.dump, args.device, args.combine)
    settings = {name: setting for name, setting in vars(llama.source).items() if isinstance(setting, float)}
    print(f"{type(llama.source).__name__}, {settings}: shares of the body at alpha {ALPHA}")
    length, right = llama.expected()
    source = llama.source
    found = shares(llama.context(length, len(source.stretches) if isinstance(source, Dump) else args.batch))
    print(f"{length:7} measured  own {right.own:.4f}  union {right.union:.4f}  candidates {right.candidates:.4f}")
    for each in [length, *map(int, args.lengths.split(","))]:
        here = found if each == length else shares(llama.context(each, args.batch))
        print(f"{each:7} made      own {here.own:.4f}  union {here.union:.4f}  candidates {here.candidates:.4f}")
    off = {name: getattr(found, name) / getattr(right, name) - 1 for name in TOLERANCE}
    wrong = [name for name, part in off.items() if abs(part) > TOLERANCE[name]]
    print(", ".join(f"{name} off by {part:+.1%}" for name, part in off.items()), "TOO MUCH" if wrong else "")
    return 1 if wrong and args.combine == "twice" else 0


if __name__ == "__main__":
    sys.exit(main())

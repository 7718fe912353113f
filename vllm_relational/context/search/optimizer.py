"""Which search a query gets, by what each would cost (AlayaDB's optimizer, arXiv 2504.10326, section 7.3).

A plan is for one KV head of one layer and one new token. Ways to answer: ``full`` attends to every token; the indexes
find the tokens within beta, or the best k, which are then attended to. What a way takes was measured on this machine
for some lengths (``calibrate.py``); its share of building an index that is not there yet comes on top. A way is out
where its memory does not fit, where it may miss tokens and must not, or where it misses more than is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from vllm_relational.context.errors import ContextError

IndexKind = Literal["full", "flat", "int4", "clusters", "graph"]
KINDS: tuple[IndexKind, ...] = ("full", "flat", "int4", "clusters", "graph")
EXACT = ("full", "flat", "int4")
MIN_GRAPH_RANGE = 0.5
"""A graph walks in vain where fewer of its keys than this share are in range: neighbours lead out of it."""


@dataclass(frozen=True)
class WayCost:
    """What one way takes for the query heads of a KV head.

    fixed_us:     whatever the length.
    key_us:       for each key in range; whole_key_us: for each key of the context, in range or not, such as means.
    build_key_us: to build the index, for each key.
    index_bytes:  of the index, for each key.
    resident:     share of the keys' bytes that a search reads, which must stay in memory for it to take that time.
    recall:       share of the tokens within beta that it finds.
    measured:     (keys, microseconds) of some lengths, ascending, in place of fixed_us and key_us: a scan takes more
                  for a key where the keys no longer fit into the processor's cache.
    """

    fixed_us: float
    key_us: float
    whole_key_us: float = 0.0
    build_key_us: float = 0.0
    index_bytes: float = 0.0
    resident: float = 1.0
    recall: float = 1.0
    measured: tuple[tuple[int, float], ...] = ()

    def search_us(self, in_range: int, num_tokens: int) -> float:
        """Of a search in so many keys in range of a context of so many."""
        whole = self.whole_key_us * num_tokens
        if not self.measured:
            return whole + self.fixed_us + self.key_us * in_range
        return whole + _on_the_line(self.measured, in_range)


def _on_the_line(points: tuple[tuple[int, float], ...], at: int) -> float:
    """Between the points that lie around; before the first by the first two, behind the last in proportion."""
    if at >= points[-1][0] or len(points) == 1:
        return points[-1][1] * at / points[-1][0]
    (left, low), (right, high) = next(pair for pair in pairwise(points) if at < pair[1][0])
    return max(low + (high - low) * (at - left) / (right - left), low * at / left if at < left else 0.0)


@dataclass(frozen=True)
class SearchCosts:
    """ways: by kind, those that were measured. hit_us: to attend to a listed token, with all query heads. hit_share,
    hits: of a range of n tokens some ``hits + hit_share * n`` are within beta for some query head."""

    ways: Mapping[str, WayCost]
    hit_us: float
    hit_share: float = 0.02
    hits: float = 50.0
    machine: str = ""

    def listed(self, num_tokens: int) -> float:
        """Tokens within beta to be expected."""
        return min(float(num_tokens), self.hits + self.hit_share * num_tokens)


@dataclass(frozen=True)
class SearchRules:
    """What may be done to answers.

    beta:          DIPR's, on unscaled scores; None: everything is attended to.
    exact:         only ways that find all tokens within beta.
    min_recall:    of the others.
    dense_layers:  first layers that get exact ways only: their attention is spread, and clusters and links say little.
    reuse_tokens:  tokens that are decoded on a context each time it is used: what an index is built for.
    """

    beta: float | None = 50.0
    exact: bool = False
    min_recall: float = 0.95
    dense_layers: int = 1
    reuse_tokens: int = 128

    def __post_init__(self) -> None:
        if self.beta is not None and not self.beta >= 0:
            raise ContextError(f"beta must be 0 or greater, not {self.beta}")
        if not 0 <= self.min_recall <= 1 or self.dense_layers < 0 or self.reuse_tokens < 1:
            raise ContextError(f"search rules make no sense: {self}")


@dataclass(frozen=True)
class Situation:
    """What is asked for one KV head.

    num_tokens:   stored tokens; [start, stop): those that the query may see (stop None: all).
    layer, uses:  the layer, and how many more times the context will be used.
    memory_bytes: for this KV head's keys, values and index; None: as much as it takes.
    token_bytes:  of a token's key, and as much again of its value.
    built:        kinds of indexes that are there already.
    """

    num_tokens: int
    layer: int = 0
    uses: int = 1
    memory_bytes: int | None = None
    start: int = 0
    stop: int | None = None
    token_bytes: int = 128
    built: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= self.num_tokens or self.uses < 0:
            raise ContextError(
                f"tokens [{self.start}, {self.end}) used {self.uses} times are not of this context: {self}"
            )

    @property
    def end(self) -> int:
        """Behind the last token in range."""
        return self.num_tokens if self.stop is None else self.stop

    @property
    def in_range(self) -> int:
        """Tokens that the query may see."""
        return self.end - self.start


@dataclass(frozen=True)
class Considered:
    """One way: microseconds for a token, building included; or why not."""

    kind: IndexKind
    us: float
    bytes: float
    refused: str = ""


@dataclass(frozen=True)
class SearchPlan:
    """kind: the way. beta, or k where the memory holds only so many tokens: what is kept; neither for ``full``.

    us: expected for a token. considered: all ways, in the order of ``KINDS``.
    """

    kind: IndexKind
    beta: float | None
    k: int | None
    us: float
    why: str
    considered: tuple[Considered, ...] = field(repr=False, default=())

    def explain(self) -> str:
        """What was chosen, and why not the others, a line each."""
        lines = [f"{self.kind}: {self.why}"]
        for way in self.considered:
            if way.kind != self.kind:
                lines.append(f"  not {way.kind}: {way.refused or f'{way.us:,.0f} us a token, building included'}")
        return "\n".join(lines)


class Optimizer:
    """Chooses between the ways of a cost table."""

    def __init__(self, table: SearchCosts, rules: SearchRules | None = None) -> None:
        self.table, self.rules = table, rules or SearchRules()
        if not set(table.ways) & set(EXACT):
            raise ContextError(f"a cost table needs one of {', '.join(EXACT)}: it has {sorted(table.ways)}")

    def choose(self, asked: Situation) -> SearchPlan:
        """The cheapest way that is allowed; where none fits into the memory, the best k tokens that do."""
        considered = tuple(self._consider(kind, asked) for kind in KINDS if kind in self.table.ways)
        able = [way for way in considered if not way.refused]
        if not able:
            return self._best_that_fit(asked, considered)
        best = min(able, key=lambda way: way.us)
        beta = None if best.kind == "full" else self.rules.beta
        k = None if best.kind == "full" else self._k_that_fits(asked, best)
        why = (
            f"{best.us:,.0f} us a token over {asked.in_range:,} tokens, the least of {len(able)} ways that are allowed"
        )
        if k is not None:
            why += f"; its tokens within beta do not fit into {asked.memory_bytes:,} bytes, so the best {k:,} of them"
        return SearchPlan(best.kind, None if k is not None else beta, k, best.us, why, considered)

    def explain(self, asked: Situation) -> str:
        """``choose``'s reasons."""
        return self.choose(asked).explain()

    # ------------------------------------------------------------------------------------------------------- one way
    def _consider(self, kind: IndexKind, asked: Situation) -> Considered:
        us, size = self._us(kind, asked), self._bytes(kind, asked)
        return Considered(kind, us, size, self._refusal(kind, asked, size))

    def _us(self, kind: IndexKind, asked: Situation) -> float:
        cost = self.table.ways[kind]
        us = cost.search_us(asked.in_range, asked.num_tokens)
        if kind != "full":
            us += self.table.hit_us * self.table.listed(asked.in_range)
        if kind in asked.built:
            return us
        return us + cost.build_key_us * asked.num_tokens / (max(asked.uses, 1) * self.rules.reuse_tokens)

    def _bytes(self, kind: IndexKind, asked: Situation) -> float:
        """That must be in memory beside what is attended to."""
        cost = self.table.ways[kind]
        keys = cost.resident * asked.token_bytes * asked.in_range
        values = asked.token_bytes * asked.in_range if kind == "full" else 0.0
        return keys + values + cost.index_bytes * asked.num_tokens

    def _refusal(self, kind: IndexKind, asked: Situation, size: float) -> str:
        rules, cost = self.rules, self.table.ways[kind]
        if rules.beta is None and kind != "full":
            return "everything is to be attended to"
        if asked.memory_bytes is not None and size > asked.memory_bytes:
            return f"it needs {size:,.0f} bytes, there are {asked.memory_bytes:,}"
        if kind in EXACT:
            return ""
        if rules.exact:
            return "it may miss tokens, and answers must be exact"
        if asked.layer < rules.dense_layers:
            return f"layer {asked.layer} is one of the first {rules.dense_layers}, which get exact ways"
        if cost.recall < rules.min_recall:
            return f"it finds {cost.recall:.2f} of the tokens within beta, less than {rules.min_recall:.2f}"
        if kind == "graph" and asked.in_range < MIN_GRAPH_RANGE * asked.num_tokens:
            return f"only {asked.in_range:,} of {asked.num_tokens:,} tokens are in range: most links lead out of it"
        return ""

    # --------------------------------------------------------------------------------------------------------- memory
    def _k_that_fits(self, asked: Situation, way: Considered) -> int | None:
        """How many tokens' keys and values fit beside the way; None where those within beta do."""
        if asked.memory_bytes is None:
            return None
        room = int((asked.memory_bytes - way.bytes) // (2 * asked.token_bytes))
        return None if room >= self.table.listed(asked.in_range) else max(room, 1)

    def _best_that_fit(self, asked: Situation, considered: tuple[Considered, ...]) -> SearchPlan:
        """The way that needs the least memory of those that only memory rules out; its data come from the disk."""
        exact = [way for way in considered if way.kind in EXACT and (self.rules.beta is not None or way.kind == "full")]
        if not exact:
            raise ContextError("everything is to be attended to (beta None), and the cost table has no way 'full'")
        least = min(exact, key=lambda way: way.bytes)
        why = f"no way fits into {asked.memory_bytes:,} bytes; it needs the least, and reads what is stored elsewhere"
        if least.kind == "full":
            return SearchPlan("full", None, None, least.us, why, considered)
        k = max(int((asked.memory_bytes or 0) // (2 * asked.token_bytes)), 1)
        return SearchPlan(least.kind, None, k, least.us, f"{why}; the best {k:,} tokens", considered)

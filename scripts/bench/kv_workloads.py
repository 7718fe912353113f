"""Requests for the benchmarks of the scheduler: random token ids, an answer of one token, the same in every run.

A workload is what is sent and when; ``kv.py`` sends it to vLLM, ``scheduler_hits.py`` to vLLM's scheduler alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

Prompts = list[list[int]]

VOCABULARY = (100, 1100)
SHARED, OWN = 250, 30
LAG = 250  # rows: more than the KV cache of the benchmarks holds, less than wait
SELECTIVITY = 0.3


@dataclass(frozen=True)
class Workload:
    """What is sent to an engine.

    rate:   requests a second at which prompts arrive; None: all wait before the first step.
    window: at most so many requests in the engine at a time, refilled as they end; None: any number.
    then:   prompts that are sent as soon as the prompt of that number has its answer.
    """

    prompts: Prompts
    rate: float | None = None
    window: int | None = None
    then: Mapping[int, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts) + len(self.then)

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts)) + sum(map(len, self.then.values()))


class _Source:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(*VOCABULARY) for _ in range(count)]

    def shuffled(self, prompts: Prompts) -> Workload:
        self.random.shuffle(prompts)
        return Workload(prompts)


def nested(num_rows: int) -> Workload:
    """90 tokens shared by all rows, 150 by 10 rows, 36 of each row's own; in random order."""
    source = _Source(0)
    header, groups = source.tokens(90), [source.tokens(150) for _ in range(max(1, num_rows // 10))]
    return source.shuffled([header + groups[i % len(groups)] + source.tokens(36) for i in range(num_rows)])


def shared(num_rows: int) -> Workload:
    """250 tokens shared by 10 rows, 30 of each row's own; in random order."""
    source = _Source(0)
    prefixes = [source.tokens(SHARED) for _ in range(max(1, num_rows // 10))]
    return source.shuffled([prefixes[i % len(prefixes)] + source.tokens(OWN) for i in range(num_rows)])


def distinct(num_rows: int) -> Workload:
    """No two rows alike: nothing to gain."""
    source = _Source(0)
    return Workload([source.tokens(SHARED + OWN) for _ in range(num_rows)])


def twice(num_rows: int) -> Workload:
    """A question about each of rows / 2 documents of 250 tokens, then another about each, in the same order."""
    source = _Source(0)
    documents, questions = [source.tokens(SHARED) for _ in range(num_rows // 2)], [source.tokens(OWN) for _ in "12"]
    return Workload([document + question for question in questions for document in documents])


def queries(num_rows: int) -> Workload:
    """The same documents and questions, sent in turn: the second question 250 documents behind the first."""
    source = _Source(1)
    documents = [source.tokens(SHARED) for _ in range(num_rows // 2)]
    first, second = source.tokens(OWN), source.tokens(OWN)
    prompts = []
    for i in range(len(documents) + LAG):
        prompts += [documents[i] + first] if i < len(documents) else []
        prompts += [documents[i - LAG] + second] if i >= LAG else []
    return Workload(prompts)


def filter_project(num_rows: int) -> Workload:
    """A filter asks every document; three of ten pass and are asked again once their answer is there."""
    source = _Source(2)
    first, second = source.tokens(OWN), source.tokens(OWN)
    documents = [source.tokens(SHARED) for _ in range(num_rows)]
    passing = [i for i in range(num_rows) if source.random.random() < SELECTIVITY]
    return Workload([document + first for document in documents], then={i: documents[i] + second for i in passing})


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "nested": nested,
    "shared": shared,
    "twice": twice,
    "queries": queries,
    "filter": filter_project,
    "distinct": distinct,
}


def make_workload(name: str, num_rows: int) -> Workload:
    """By name: ``nested``; ``nested:2500`` has so many rows, ``nested@300`` arrives at 300 requests a second,
    ``nested/768`` comes through a window of 768 requests, ``nested:2500/768`` has both."""
    name, _, rate = name.partition("@")
    name, _, window = name.partition("/")
    name, _, rows = name.partition(":")
    made = WORKLOADS[name](int(rows or num_rows))
    return replace(made, rate=float(rate) if rate else None, window=int(window) if window else None)

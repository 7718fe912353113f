"""Stand-in, to be dropped: exact dependencies between single columns, by counting pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_relational.records import PlanInput


@dataclass(frozen=True)
class Dependency:
    """determinants determine each other and dependents; share: the least share of rows that agree."""

    determinants: tuple[int, ...]
    dependents: tuple[int, ...]
    share: float


def find_dependencies(batch: PlanInput, least_share: float = 0.99) -> tuple[Dependency, ...]:
    """Dependencies between the columns of ``batch``."""
    sizes = [len(np.unique(codes)) for codes in batch.codes]
    found = []
    for a in range(batch.num_columns):
        if not 1 < sizes[a] < batch.num_rows:
            continue
        implied = {}
        for b in range(batch.num_columns):
            if a == b or sizes[b] < 2:
                continue
            pairs, counts = np.unique(batch.codes[[a, b]], axis=1, return_counts=True)
            best = np.zeros(len(batch.cell_tokens[a]), np.int64)
            np.maximum.at(best, pairs[0], counts)
            share = best.sum() / batch.num_rows
            if share >= least_share:
                implied[b] = share
        twins = [b for b in implied if sizes[b] == sizes[a] and implied[b] == 1.0]
        if implied and not any(b < a for b in twins):
            rest = tuple(b for b in implied if b not in twins)
            found.append(Dependency((a, *twins), rest, float(min(implied.values()))))
    return tuple(found)

"""Several LLM predicates: the one that costs least for what it drops goes first.

With conditions that are independent, the expected cost of a conjunction is least when they are evaluated by ascending
cost / (1 - selectivity) (predicate migration, Hellerstein and Stonebraker 1993). Both are measured on a sample of the
rows; its answers are kept. Without a sample only the numbers of inputs are known. Putting a predicate first costs its
inputs at most, where the others drop all rows, so it goes first only where it has far fewer than they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A predicate goes before another that has so many times its inputs: asking it first costs a quarter more at worst.
FEWER = 4


@dataclass(frozen=True)
class Estimate:
    """Of one predicate: tokens to compute a row, the share of rows that pass, and the rows that this was seen on."""

    cost: float
    selectivity: float
    rows: int = 0

    @property
    def rank(self) -> float:
        """Predicates with a low rank go first; one that drops nothing goes last."""
        dropped = 1 - self.selectivity
        return self.cost / dropped if dropped > 0 else float("inf")


def by_rank(estimates: Sequence[Estimate]) -> list[int]:
    """The places of the predicates in the order in which to ask them; equals stay as written."""
    return sorted(range(len(estimates)), key=lambda place: (estimates[place].rank, place))


def by_inputs(counts: Sequence[int]) -> list[int]:
    """The places of the predicates, those with far fewer inputs (see ``FEWER``) before others; else as they come."""
    places: list[int] = []
    for place, count in enumerate(counts):
        before = len(places)
        while before and count * FEWER <= counts[places[before - 1]] != count:
            before -= 1
        places.insert(before, place)
    return places

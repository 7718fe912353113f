"""The counters of the kernels have a place each, and a name where they are reported."""

from __future__ import annotations

from vllm_relational.sparse.statistics import (
    BODY_TOKENS,
    DENSE_SPLITS,
    FIRST_BIN,
    LISTED_TOKENS,
    NUM_BINS,
    NUM_COUNTERS,
)
from vllm_relational.vllm_ext.attention.statistics import COUNTS, ESTIMATED, NAMES


def test_every_counter_has_its_own_place():
    bins = range(FIRST_BIN, FIRST_BIN + NUM_BINS)
    assert sorted([BODY_TOKENS, LISTED_TOKENS, DENSE_SPLITS, *bins]) == list(range(NUM_COUNTERS))


def test_names_stand_in_the_order_of_the_counters():
    assert len(NAMES) == NUM_COUNTERS and NAMES[FIRST_BIN:] == ESTIMATED
    assert [COUNTS[place].split()[1] for place in (BODY_TOKENS, LISTED_TOKENS, DENSE_SPLITS)] == [
        "body",
        "candidate",
        "dense",
    ]

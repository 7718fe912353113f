"""Batches one after the other through one cache, against the reference cache fed with the prompts themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.kv.replay import joined, replay, replay_last
from vllm_relational.kv.simulate import PrefixCache, planned_prompts
from vllm_relational.records import EncodedTable, Plan, PromptBatch, PromptSegments, TokenSegments


@st.composite
def batches(draw: st.DrawFn) -> PromptBatch:
    """A few rows over tokens of two kinds, so that prefixes agree often; columns and rows may lack."""
    num_columns, num_rows = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    tokens = st.lists(st.integers(1, 2), max_size=5).map(lambda ids: np.array(ids, np.int32))
    cells, codes = [], []
    for _ in range(num_columns):
        values = draw(st.lists(tokens, min_size=1, max_size=3))
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
        cells.append(TokenSegments(np.concatenate(values), offsets))
        codes.append(draw(st.lists(st.integers(0, len(values) - 1), min_size=num_rows, max_size=num_rows)))
    orders = [draw(st.permutations(range(num_columns))) for _ in range(num_rows)]
    plan = Plan(
        "random",
        np.array(draw(st.permutations(range(num_rows))), np.int64),
        np.array(orders, np.int32).reshape(num_rows, num_columns),
    )
    segments = PromptSegments(draw(tokens), tuple(cells), draw(tokens))
    table = EncodedTable((), np.empty((0, 0), np.int32), ())
    return PromptBatch(table, segments, np.array(codes, np.int32).reshape(num_columns, num_rows), plan, True)


def prompts(batch: PromptBatch) -> list[list[int]]:
    return list(planned_prompts(batch.segments, batch.codes, batch.plan))


@given(asked=st.lists(batches(), min_size=1, max_size=4), block_size=st.integers(1, 4), capacity=st.integers(0, 9))
def test_the_last_batch_finds_what_those_before_left(asked, block_size, capacity):
    cache = PrefixCache(block_size, capacity)
    for batch in asked:
        hits = [cache.request(prompt) for prompt in prompts(batch)]
    found = replay_last(asked, block_size, capacity)
    assert found.hit_tokens == sum(hits)
    assert found.prompt_tokens == sum(map(len, prompts(asked[-1])))


@given(asked=st.lists(batches(), min_size=1, max_size=4))
def test_joined_batches_have_the_prompts_of_each(asked):
    segments, codes, plan = joined(asked)
    assert list(planned_prompts(segments, codes, plan)) == [prompt for batch in asked for prompt in prompts(batch)]


@given(batch=batches(), capacity=st.integers(0, 5))
def test_a_batch_after_nothing_is_a_replay(batch, capacity):
    alone = replay(batch.segments, batch.codes, batch.plan, 2, capacity, ["lru"])["lru"]
    assert replay_last([batch], 2, capacity) == alone


def test_the_policy_that_knows_one_batch_counts_as_lru():
    one = PromptSegments(np.array([1, 2, 3], np.int32), (), np.array([4], np.int32))
    plan = Plan("one", np.zeros(1, np.int64), np.empty((1, 0), np.int32))
    table = EncodedTable((), np.empty((0, 0), np.int32), ())
    batch = PromptBatch(table, one, np.empty((0, 1), np.int32), plan, True)
    assert replay_last([batch, batch], 1, 4, "batch") == replay_last([batch, batch], 1, 4, "lru")
    assert replay_last([batch, batch], 1, 4).hit_tokens == 3
    with pytest.raises(ValueError, match="policy"):
        replay_last([batch], 1, 4, "none")

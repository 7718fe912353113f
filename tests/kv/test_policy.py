"""Eviction policies: Belady's is the optimum, and leaves go before their parents."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational import native
from vllm_relational.kv.policy import NEVER, POLICIES, BlockUse, fifo, sort_key
from vllm_relational.kv.policy import batch as batch_key
from vllm_relational.kv.replay import replay
from vllm_relational.kv.simulate import PolicyCache, PrefixCache, block_paths, next_uses
from vllm_relational.records import CacheForecast, Plan, PromptSegments, TokenSegments

TAIL = 9
prompts_of_whole_blocks = st.lists(
    st.lists(st.sampled_from([1, 2]), max_size=3).map(lambda cells: [*np.repeat(cells, 2).tolist(), TAIL]), max_size=9
)
"""Blocks of two tokens and one token more, so that every block that is found is also used."""


def hits(name, prompts, capacity):
    paths = block_paths(prompts, 2, capacity)
    blocks = PolicyCache(POLICIES[name], paths, capacity)
    found = []
    for number in range(len(paths)):
        found.append(blocks.request(number))
        assert len(blocks) <= capacity
    return found


def max_hits(prompts, capacity):
    """By trying every set of blocks that a cache could keep after each request, parents before children or not."""
    paths = block_paths(prompts, 2, capacity)

    @cache
    def best(number, cached):
        if number == len(paths):
            return 0
        path = paths[number]
        found = next((i for i, block in enumerate(path) if block not in cached), len(path))
        others, room = cached - set(path), capacity - len(path)
        kept = [others] if len(others) <= room else map(frozenset, combinations(sorted(others), room))
        return found + max(best(number + 1, frozenset(path) | others_kept) for others_kept in kept)

    return best(0, frozenset())


@given(prompts_of_whole_blocks, st.integers(1, 6))
def test_belady_is_the_optimum(prompts, capacity):
    assert sum(hits("belady", prompts, capacity)) == max_hits(prompts, capacity)


@pytest.mark.parametrize("policy", POLICIES)
@given(prompts=prompts_of_whole_blocks, capacity=st.integers(1, 6))
def test_no_policy_beats_the_optimum(policy, prompts, capacity):
    assert sum(hits(policy, prompts, capacity)) <= max_hits(prompts, capacity)


@given(prompts_of_whole_blocks, st.integers(1, 6))
def test_sort_key_of_lru_is_the_order_of_the_list(prompts, capacity):
    blocks = PrefixCache(2, capacity)
    assert [2 * found for found in hits("lru", prompts, capacity)] == [blocks.request(prompt) for prompt in prompts]


@given(st.integers(0, 2**32), st.integers(1, 400))
def test_belady_serves_most_of_larger_batches(seed, capacity):
    segments, codes, plan = batch(np.random.default_rng(seed))
    served = {
        name: forecast.hit_tokens for name, forecast in replay(segments, codes, plan, 2, capacity, POLICIES).items()
    }
    assert served["belady"] == max(served.values())


def batch(random, num_rows=150, num_columns=4):
    cells = TokenSegments(np.repeat([1, 2, 3], 4).astype(np.int32), np.arange(0, 13, 4))
    codes = random.integers(0, 3, size=(num_columns, num_rows), dtype=np.int32)
    fields = np.array([random.permutation(num_columns) for _ in range(num_rows)], dtype=np.int32)
    segments = PromptSegments(np.array([7, 7], np.int32), (cells,) * num_columns, np.array([TAIL], np.int32))
    return segments, codes, Plan("test", random.integers(0, num_rows, num_rows), fields)


@given(prompts_of_whole_blocks, st.integers(1, 6))
def test_batch_has_the_hits_of_belady_on_a_known_queue(prompts, capacity):
    assert hits("batch", prompts, capacity) == hits("belady", prompts, capacity)


def test_batch_lets_the_least_recently_used_go_among_blocks_that_nobody_waits_for():
    old, recent = (BlockUse(1, inserted=0, last_use=use) for use in (3, 4))
    needed = BlockUse(1, inserted=0, last_use=1, next_use=9)
    assert batch_key(old) < batch_key(recent) < batch_key(needed)


@pytest.mark.parametrize("name", POLICIES)
def test_a_key_that_reads_the_queue_says_so(name):
    """Without, an engine keeps no index of it, and the policy would be another one there."""
    keys = {POLICIES[name](BlockUse(2, inserted=1, last_use=3, next_use=at)) for at in (4, 9, NEVER)}
    assert (len(keys) > 1) == POLICIES[name].reads_queue


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if policy.serves])
def test_a_key_compares_blocks_with_each_other_only(name):
    """Clocks run apart: an engine's shows other numbers of the same order, and the order of blocks must be the same."""
    blocks = [BlockUse(1, 0, 5, 7), BlockUse(2, 0, 5, 7), BlockUse(1, 2, 3, NEVER), BlockUse(1, 4, 4, 9)]
    other = [BlockUse(b.depth, 10 * b.inserted + 1, 10 * b.last_use + 50, b.next_use) for b in blocks]
    key = POLICIES[name]
    order = sorted(range(4), key=lambda place: key(blocks[place]))
    assert sorted(range(4), key=lambda place: key(other[place])) == order


def test_a_parent_waits_for_its_children():
    """1 is older than 2 and 3, but 2 hangs from it."""
    blocks = PolicyCache(fifo, [[1], [1, 2], [3], [1], [4], [1]], capacity_blocks=2)
    assert [blocks.request(number) for number in range(6)] == [0, 1, 0, 1, 0, 0]  # 2 goes for 3, then 1 for 4


@given(prompts_of_whole_blocks, st.integers(5, 9))
def test_fifo_is_lru_where_every_prompt_ends_with_a_block_of_its_own(prompts, capacity):
    distinct = [[*prompt[:-1], 100 + i, 100 + i, TAIL] for i, prompt in enumerate(prompts)]
    assert hits("fifo", distinct, capacity) == hits("lru", distinct, capacity)


def test_next_uses():
    assert next_uses([[1, 2], [3], [1], [1, 2]]) == [[2, 3], [NEVER], [3], [NEVER, NEVER]]


def test_keys_of_blocks_of_one_request_put_the_deepest_first():
    shallow, deep = (BlockUse(depth, inserted=3, last_use=4, next_use=5) for depth in (1, 2))
    assert all(key(deep) < key(shallow) for key in POLICIES.values())


def test_unknown_policy_names_those_there_are():
    with pytest.raises(ValueError, match=f"'mru': use one of {', '.join(POLICIES)}"):
        sort_key("mru")


def test_replay_sums_up():
    segments, codes, plan = batch(np.random.default_rng(0))
    forecasts = replay(segments, codes, plan, 2, 50)
    assert list(forecasts) == ["lru", "belady"]
    served, lengths = native.simulate_prefix_cache(segments, codes, plan, 2, 50)
    assert forecasts["lru"] == CacheForecast(int(lengths.sum()), int(served.sum()))
    assert forecasts["lru"].hit_tokens < forecasts["belady"].hit_tokens

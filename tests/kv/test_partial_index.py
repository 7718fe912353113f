"""The index of partly matching blocks against a scan over all blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vllm_relational.kv.partial_index import PartialIndex, token_bytes

BLOCK_SIZE = 5
TOKENS = st.sampled_from([0, 1, 2, 255, 256, 151_935, 2**31 - 1])
BLOCKS = st.integers(0, 12)
PREFIXES = st.sampled_from([b"", b"a", (b"a", ("lora", "x", "y"))])
WHOLE = st.lists(TOKENS, min_size=BLOCK_SIZE, max_size=BLOCK_SIZE)
QUERY = st.lists(TOKENS, min_size=0, max_size=BLOCK_SIZE)


def shared_tokens(one: list[int], other: list[int]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


class AgainstAScan(RuleBasedStateMachine):
    """Any mix of additions, removals and lookups."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PartialIndex()
        self.held: dict[int, tuple[object, list[int]]] = {}

    @rule(prefix=PREFIXES, tokens=WHOLE, block=BLOCKS)
    def add(self, prefix, tokens, block):
        self.index.add(prefix, token_bytes(tokens), block)
        self.held[block] = (prefix, tokens)

    @rule(block=BLOCKS)
    def remove(self, block):
        self.index.remove(block)
        self.held.pop(block, None)

    @rule()
    def clear(self):
        self.index.clear()
        self.held.clear()

    @rule(prefix=PREFIXES, query=QUERY)
    def look_up(self, prefix, query):
        lengths = {block: shared_tokens(tokens, query) for block, (at, tokens) in self.held.items() if at == prefix}
        best = max(lengths.values(), default=0)

        block, shared = self.index.longest(prefix, token_bytes(query))

        assert shared == best
        assert lengths[block] == best if best else block == -1

    @invariant()
    def holds_what_was_added(self):
        assert len(self.index) == len(self.held)
        assert all(block in self.index for block in self.held)
        assert sum(map(len, self.index._children.values())) == len(self.held)
        assert all(self.index._children.values()), "a prefix without blocks is kept for ever"


TestAgainstAScan = AgainstAScan.TestCase


def test_equal_blocks_stand_in_for_each_other():
    index = PartialIndex()
    for block in (7, 3):
        index.add(b"p", token_bytes([1, 2]), block)

    index.remove(index.longest(b"p", token_bytes([1, 2]))[0])

    assert index.longest(b"p", token_bytes([1, 9]))[1] == 1
    assert len(index) == 1


@given(query=WHOLE)
def test_another_prefix_is_never_matched(query):
    index = PartialIndex()
    tokens = token_bytes(query)
    index.add((b"a", ("cache_salt", "one")), tokens, 0)

    assert index.longest((b"a", ("cache_salt", "two")), tokens) == (-1, 0)
    assert index.longest(b"a", tokens) == (-1, 0)


@given(rows=st.lists(WHOLE, max_size=4))
def test_bytes_of_many_blocks_are_those_of_each(rows):
    together = token_bytes([token for row in rows for token in row])

    assert together == b"".join(map(token_bytes, rows))
    assert sorted(rows) == sorted(rows, key=token_bytes)

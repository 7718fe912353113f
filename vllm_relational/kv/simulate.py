"""A prefix cache of KV blocks, and the replay of a planned batch: the reference of ``csrc/replay/prefix_cache.cc``.

Clear rather than fast: call it through ``vllm_relational.native``. The rules are those of vLLM 0.32
(``v1/core/kv_cache_manager.py`` and ``v1/core/block_pool.py``):

- A prompt is cut in blocks of ``block_size`` tokens; only full blocks are cached. A block is known by its own tokens
  and by the block before it, so equal tokens after different prefixes are different blocks.
- A request reuses its leading cached blocks, at most ``(prompt_tokens - 1) // block_size`` of them: the last token is
  always computed, because its logits start the answer.
- A finished request frees its blocks last block first, and the block freed first is evicted first. So all its blocks
  become most recent, the deepest the least recent among them, and a block never outlives the block before it.
- Blocks of the request at hand are not evicted. A prompt larger than the cache keeps its first blocks.

So much for ``lru``, what vLLM does. Under another policy of ``kv/policy.py`` the third rule reads: when a request has
ended, leaves go in the order of the policy's sort key until the rest fits. The other rules stay.

What is left out: requests run one after the other rather than many at a time; generated tokens and the partly filled
last block take no room; and the block that vLLM computes again although it is cached, when the whole prompt is, is
not held twice. vLLM sets one block of its pool aside, so its capacity is ``num_gpu_blocks - 1``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from vllm_relational.kv.policy import NEVER, BlockUse, SortKey, sort_key
from vllm_relational.records import Plan, PromptSegments

_BlockKey = tuple[int, tuple[int, ...]]  # number of the block before it (0: none), own tokens
_NO_BLOCK = 0


class PrefixCache:
    """Least-recently-used set of KV blocks.

    block_size:      tokens per block, 1 or more.
    capacity_blocks: 0 means without limit.
    Raises ``ValueError`` for other values.
    """

    def __init__(self, block_size: int, capacity_blocks: int = 0) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be 1 token or more, not {block_size}")
        if capacity_blocks < 0:
            raise ValueError(f"capacity_blocks must be 0 (no limit) or more, not {capacity_blocks}")
        self.block_size = block_size
        self.capacity_blocks = capacity_blocks
        self._blocks: OrderedDict[_BlockKey, int] = OrderedDict()  # least recent first; value: the block's number
        self._num_made = 0

    def __len__(self) -> int:
        """Blocks in the cache."""
        return len(self._blocks)

    def request(self, prompt: Sequence[int]) -> int:
        """Serve one prompt of token ids; returns how many of its leading tokens the cache held."""
        path, num_hits = self._walk(prompt)
        for key in reversed(path):
            self._blocks.move_to_end(key)
        while self.capacity_blocks and len(self._blocks) > self.capacity_blocks:
            self._blocks.popitem(last=False)
        reusable = max(len(prompt) - 1, 0) // self.block_size
        return min(num_hits, reusable) * self.block_size

    def _walk(self, prompt: Sequence[int]) -> tuple[list[_BlockKey], int]:
        """The prompt's full blocks, root first, now all cached; and how many were cached before."""
        path: list[_BlockKey] = []
        parent, num_hits = _NO_BLOCK, 0
        for start in range(0, len(prompt) - self.block_size + 1, self.block_size):
            key = (parent, tuple(prompt[start : start + self.block_size]))
            if key in self._blocks:
                num_hits += 1
            else:
                self._num_made += 1
                self._blocks[key] = self._num_made
            parent = self._blocks[key]
            path.append(key)
        return path, num_hits


class PolicyCache:
    """Set of KV blocks under any policy, with the blocks of all requests known beforehand.

    Blocks are known by number. A request is its path: the numbers of its full blocks, root first, at most
    ``capacity_blocks`` of them (0: without limit). Time: all blocks of the cache for each that goes.
    """

    def __init__(self, key: SortKey, paths: Sequence[Sequence[int]], capacity_blocks: int) -> None:
        self._key, self._paths, self._capacity = key, paths, capacity_blocks
        self._next_uses = next_uses(paths)
        self._parents = {
            block: parent for path in paths for parent, block in zip((_NO_BLOCK, *path), path, strict=False)
        }
        self._blocks: dict[int, BlockUse] = {}

    def __len__(self) -> int:
        """Blocks in the cache."""
        return len(self._blocks)

    def request(self, number: int) -> int:
        """Serve the request of that number, counted from 0 and in order; returns how many blocks the cache held."""
        path = self._paths[number]
        num_hits = sum(block in self._blocks for block in path)
        for depth, (block, next_use) in enumerate(zip(path, self._next_uses[number], strict=True), start=1):
            use = self._blocks.setdefault(block, BlockUse(depth, inserted=number, last_use=number))
            use.last_use, use.next_use = number, next_use
        while self._capacity and len(self._blocks) > self._capacity:
            self._evict(held=set(path))
        return num_hits

    def _evict(self, held: set[int]) -> None:
        inner = {self._parents[block] for block in self._blocks}
        leaves = [block for block in self._blocks if block not in inner and block not in held]
        del self._blocks[min(leaves, key=lambda block: self._key(self._blocks[block]))]


def next_uses(paths: Sequence[Sequence[int]]) -> list[list[float]]:
    """Per request and block of its path: the next request that holds the block, ``NEVER`` if none does."""
    later: dict[int, float] = {}
    uses = []
    for number in reversed(range(len(paths))):
        uses.append([later.get(block, NEVER) for block in paths[number]])
        later.update(dict.fromkeys(paths[number], number))
    return uses[::-1]


def block_paths(prompts: Iterable[Sequence[int]], block_size: int, capacity_blocks: int) -> list[list[int]]:
    """The full blocks of each prompt, root first, numbered from 1; at most ``capacity_blocks`` (0: all)."""
    numbers: dict[_BlockKey, int] = {}
    paths = []
    for prompt in prompts:
        num_blocks = len(prompt) // block_size
        path = [_NO_BLOCK]
        for i in range(min(num_blocks, capacity_blocks) if capacity_blocks else num_blocks):
            key = (path[-1], tuple(prompt[i * block_size : (i + 1) * block_size]))
            path.append(numbers.setdefault(key, len(numbers) + 1))
        paths.append(path[1:])
    return paths


def simulate_prefix_cache(
    segments: PromptSegments,
    codes: np.ndarray,
    plan: Plan,
    block_size: int,
    capacity_blocks: int,
    policy: str = "lru",
) -> tuple[np.ndarray, np.ndarray]:
    """Replay ``plan``: ``(hit_tokens, prompt_tokens)``, both int32 ``[len(plan.rows)]``, in the order asked.

    codes: int32 ``[num_columns, num_rows]``. capacity_blocks: 0 means without limit. policy: see ``kv/policy.py``.
    Raises ``ValueError`` for a shape, code, row or field out of range, or a policy that there is not.
    """
    key, cache = sort_key(policy), PrefixCache(block_size, capacity_blocks)
    _check(segments, codes, plan)
    prompts = planned_prompts(segments, codes, plan)
    served = _replay_lru(cache, prompts) if policy == "lru" else _replay(key, prompts, block_size, capacity_blocks)
    hits, lengths = zip(*served, strict=True) if len(plan.rows) else ((), ())
    return np.array(hits, dtype=np.int32), np.array(lengths, dtype=np.int32)


def _replay_lru(cache: PrefixCache, prompts: Iterable[Sequence[int]]) -> Iterable[tuple[int, int]]:
    """Hits and length of each prompt; holds one prompt at a time."""
    return ((cache.request(prompt), len(prompt)) for prompt in prompts)


def _replay(
    key: SortKey, prompts: Iterable[Sequence[int]], block_size: int, capacity_blocks: int
) -> Iterable[tuple[int, int]]:
    kept = list(prompts)
    cache = PolicyCache(key, block_paths(kept, block_size, capacity_blocks), capacity_blocks)
    for number, prompt in enumerate(kept):
        reusable = max(len(prompt) - 1, 0) // block_size
        yield min(cache.request(number), reusable) * block_size, len(prompt)


def planned_prompts(segments: PromptSegments, codes: np.ndarray, plan: Plan) -> Iterable[list[int]]:
    """The token ids of each prompt, in the order asked."""
    for row, fields in zip(plan.rows, plan.fields, strict=True):
        parts = [segments.header]
        for column in fields:
            cells, code = segments.cells[column], codes[column, row]
            parts.append(cells.tokens[cells.offsets[code] : cells.offsets[code + 1]])
        yield [int(token) for part in (*parts, segments.tail) for token in part]


def _check(segments: PromptSegments, codes: np.ndarray, plan: Plan) -> None:
    """NumPy would take a negative index from the end, and count wrongly without a word."""
    num_columns, num_rows = codes.shape
    if len(segments.cells) != num_columns:
        raise ValueError(f"codes has {num_columns} columns, segments.cells {len(segments.cells)}")
    if plan.fields.shape != (len(plan.rows), num_columns):
        raise ValueError(f"fields must be [{len(plan.rows)}, {num_columns}], not {list(plan.fields.shape)}")
    for column, cells in enumerate(segments.cells):
        _check_cells(f"cell_offsets[{column}]", cells.offsets, len(cells.tokens))
        _check_range(f"codes[{column}, %d]", codes[column], len(cells.offsets) - 1)
    _check_range("rows[%d]", plan.rows, num_rows)
    for i, fields in enumerate(plan.fields):
        if sorted(fields) != list(range(num_columns)):
            raise ValueError(f"fields[{i}] must name each of the {num_columns} columns once, not {list(fields)}")


def _check_cells(name: str, offsets: np.ndarray, num_tokens: int) -> None:
    if not len(offsets) or offsets[0] < 0 or offsets[-1] > num_tokens or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name} must rise from 0 or more to at most {num_tokens}, the number of tokens")


def _check_range(name: str, values: np.ndarray, limit: int) -> None:
    for i in np.flatnonzero((values < 0) | (values >= limit)):
        raise ValueError(f"{name % i} = {values[i]} is not in 0..{limit - 1}")

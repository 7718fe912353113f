"""The one place that chooses between the native loops (csrc/) and their references in NumPy and Python.

Both give the same results; native code is faster (``plan_tree`` and ``sort_values`` have no reference). The references
run when the package was built without native code, and when ``VLLM_RELATIONAL_NO_NATIVE=1`` is set as this module is
imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_relational.records import Plan, PlanInput, PromptSegments, RelationalError, ValueOverlaps

if TYPE_CHECKING:
    from vllm_relational.kv.future_use import FutureUse
    from vllm_relational.kv.prefix_queue import PrefixQueue


def _load() -> ModuleType | None:
    if os.environ.get("VLLM_RELATIONAL_NO_NATIVE") == "1":
        return None
    try:
        return import_module("vllm_relational._native")
    except ModuleNotFoundError:  # not built; a module that is there but broken raises ImportError, and should
        return None


_NATIVE = _load()

AVAILABLE: bool = _NATIVE is not None
"""True when native code runs, False when the references do."""

NO_LIMITS: Mapping[str, int] = {}
"""Sizes at which native code changes its way (csrc/native_limits.h), by name: none, so that all are the default. Tests
set them small, to see both sides of each."""


class NativeError(RelationalError, ValueError):
    """A native loop refused its arguments or failed: what it was, and how to go on without it."""


def _call(name: str, **arguments: Any) -> Any:
    """Every call of a native loop: what it throws becomes a ``NativeError``; Ctrl-C stays KeyboardInterrupt."""
    try:
        return getattr(_NATIVE, name)(**arguments)
    except MemoryError as error:
        raise NativeError(
            f"{name}: there is not enough memory for this table: ask fewer rows at a time, or fields in one order for "
            "all rows (order 'fixed')"
        ) from error
    except (ValueError, RuntimeError, IndexError, OverflowError) as error:
        raise NativeError(f"{name}: {error}") from error


FREE_QUEUE: Any = _NATIVE.FreeQueue if _NATIVE is not None else object
"""Base of ``vllm_ext.free_queue.NativeFreeQueue``; ``object`` when native code is not there."""


# The references are imported when called: the packages they live in import this module.
def future_use() -> FutureUse:
    """A new index of what waiting requests need; native ones take block hashes that are bytes."""
    if _NATIVE is None:
        from vllm_relational.kv import future_use as reference

        return reference.FutureUse()
    made: FutureUse = _NATIVE.FutureUse()
    return made


def prefix_queue() -> PrefixQueue:
    """A new queue in prefix order; native ones take block hashes that are bytes."""
    if _NATIVE is None:
        from vllm_relational.kv import prefix_queue as reference

        return reference.PrefixQueue()
    made: PrefixQueue = _NATIVE.PrefixQueue()
    return made


def partial_sources(blocks: list[Any], block_size: int) -> Any:
    """The native ``vllm_ext.partial_sources.PartialSources``; ``None`` when native code is not there."""
    return None if _NATIVE is None else _NATIVE.PartialSources(blocks, block_size)


def context_search() -> Any:
    """The loops of csrc/context, which ``context.search.loops`` calls; ``None`` when native code is not there."""
    return None if _NATIVE is None else _NATIVE.context


def is_native() -> bool:
    """Whether native code runs now: ``AVAILABLE``, but for tests of the references."""
    return _NATIVE is not None


def limit_names() -> dict[str, int]:
    """The names of all limits, each with the least it can be; empty when native code is not there."""
    return {} if _NATIVE is None else dict(_NATIVE.limit_names())


def sort_rows(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Stable lexicographic order of dictionary-encoded rows.

    Args:
        codes: int32 ``[num_columns, num_rows]``, every code >= 0; fewer than 2^31 rows.
        order: int32, the columns to compare, the one that weighs most first. Other columns do not count.

    Returns:
        int64 ``[num_rows]``: the row numbers in ascending order; rows with equal codes keep their order.

    Raises:
        NativeError: a negative code, or an entry of ``order`` that is no column; the message names it.
    """
    if _NATIVE is None:
        from vllm_relational.plan import row_sort

        return row_sort.sort_rows(codes, order)
    sorted_rows: np.ndarray = _call("sort_rows", codes=_packed(codes, np.int32), order=_packed(order, np.int32))
    return sorted_rows


def simulate_prefix_cache(
    segments: PromptSegments,
    codes: np.ndarray,
    plan: Plan,
    block_size: int,
    capacity_blocks: int,
    policy: str = "lru",
    limits: Mapping[str, int] = NO_LIMITS,
) -> tuple[np.ndarray, np.ndarray]:
    """Replay a planned batch against vLLM's prefix cache; the rules are in ``kv/simulate.py``.

    Args:
        segments: the token ids that the prompts are made of.
        codes: int32 ``[num_columns, num_rows]``, the code of each cell in ``segments.cells``.
        plan: the rows to ask, in order, and the field order of each; ``plan.fields`` may be a broadcast view.
        block_size: tokens a KV block, 1 or more.
        capacity_blocks: KV blocks in the cache; 0 means without limit.
        policy: which block goes when the cache is full, one of ``kv.policy.POLICIES``; ``lru`` is stock vLLM. One
            without a C++ replay is replayed by the reference.
        limits: for tests, see ``NO_LIMITS``; the references know none.

    Returns:
        ``(hit_tokens, prompt_tokens)``, both int32 ``[len(plan.rows)]``, in the order asked.

    Raises:
        NativeError: a shape, code, offset, row or field out of range; the message names the argument and the index.
            Or a policy that there is not; the message names those there are.
    """
    from vllm_relational.kv import policy as policies
    from vllm_relational.kv import simulate

    known = policies.sort_key(policy)
    if _NATIVE is None or not known.replay:
        return simulate.simulate_prefix_cache(segments, codes, plan, block_size, capacity_blocks, policy)
    hit_tokens, prompt_tokens = _call(
        "simulate_prefix_cache",
        header=_packed(segments.header, np.int32),
        cell_tokens=[_packed(column.tokens, np.int32) for column in segments.cells],
        cell_offsets=[_packed(column.offsets, np.int64) for column in segments.cells],
        tail=_packed(segments.tail, np.int32),
        codes=_packed(codes, np.int32),
        rows=_packed(plan.rows, np.int64),
        fields=np.asarray(plan.fields, dtype=np.int32),  # as it is: a broadcast view stays one row of memory
        block_size=block_size,
        capacity_blocks=capacity_blocks,
        policy=getattr(_NATIVE.EvictionPolicy, known.replay),
        limits=dict(limits),
    )
    return hit_tokens, prompt_tokens


def pair_dependencies(
    codes: np.ndarray, num_values: np.ndarray, max_wrong: float, max_unexplained: float, max_distinct: float
) -> np.ndarray:
    """Which columns follow from which other column; the limits are explained in ``plan/dependencies.py``.

    Args:
        codes: int32 ``[num_columns, num_rows]``, every code >= 0; fewer than 2^31 rows.
        num_values: int64 ``[num_columns]``, more than the greatest code of the column; fewer than 2^31.
        max_wrong: share of the rows that may break a dependency.
        max_unexplained: the same as a share of the rows that differ from the dependent's commonest value.
        max_distinct: distinct values of a determinant as a share of the rows.

    Returns:
        int64 ``[num_columns, num_columns]``: rows in which the second column does not follow from the first; -1 where
        a limit is passed, and on the diagonal.

    Raises:
        NativeError: a code or number out of range; the message names the argument and the index.
    """
    if _NATIVE is None:
        from vllm_relational.plan import pair_dependencies as reference

        return reference.pair_dependencies(codes, num_values, max_wrong, max_unexplained, max_distinct)
    determinants, dependents, num_wrong = _call(
        "find_pair_dependencies",
        codes=_packed(codes, np.int32),
        num_values=_packed(num_values, np.int64),
        max_wrong=max_wrong,
        max_unexplained=max_unexplained,
        max_distinct=max_distinct,
    )
    result = np.full((len(codes), len(codes)), -1, dtype=np.int64)
    result[determinants, dependents] = num_wrong
    return result


def sort_values(tokens: np.ndarray, offsets: np.ndarray) -> ValueOverlaps:
    """How values begin alike; value v is ``tokens[offsets[v]:offsets[v + 1]]`` (int32; int64).

    Raises ``ValueError`` for offsets that do not fit the tokens, ``RuntimeError`` when native code is not there.
    """
    if _NATIVE is None:
        raise RuntimeError("sort_values needs native code")
    return ValueOverlaps(*_call("sort_values", tokens=_packed(tokens, np.int32), offsets=_packed(offsets, np.int64)))


def plan_tree(
    batch: PlanInput,
    budget_seconds: float,
    seed: int,
    others: Sequence[Plan] = (),
    num_threads: int = 0,
    min_gain: float = 0.0,
    limits: Mapping[str, int] = NO_LIMITS,
) -> tuple[np.ndarray, np.ndarray]:
    """The tree planner (csrc/planner/tree_planner.h). There is no reference in Python: ask ``AVAILABLE`` first.

    Args:
        batch: every code below the number of values of its column; lengths from 0 to 2^30 - 1.
        budget_seconds: how much work to spend on local search, as seconds on one core; 0 for none.
        seed: of the local search. The same arguments give the same plan on every machine.
        others: plans of the same batch; the result saves no less than any of them.
        num_threads: 0 for all cores; the plan does not depend on it.
        min_gain: the local search ends early where it gains fewer tokens than this a second of the budget.
        limits: for tests, see ``NO_LIMITS``.

    Returns:
        ``(rows int64 [num_rows], fields int32 [num_rows, num_columns])``; ``fields[i]`` belongs to ``rows[i]``.

    Raises:
        NativeError: a shape, code, length, column or block size out of range; the message names the argument and the
            index. Or too many rows or cells, or too little memory.
        KeyboardInterrupt: within a fraction of a second of Ctrl-C, when called in the main thread.
        RuntimeError: native code is not there.
    """
    if _NATIVE is None:
        raise RuntimeError("plan_tree needs native code")
    rows, fields = _call(
        "plan_tree",
        codes=_packed(batch.codes, np.int32),
        cell_tokens=[_packed(lengths, np.int64) for lengths in batch.cell_tokens],
        pinned=np.array(sorted(batch.pinned), dtype=np.int32),
        before=np.array(batch.before, dtype=np.int32).reshape(-1, 2),
        ranks=[_packed(overlaps.rank, np.int32) for overlaps in batch.overlaps],
        shared=[_packed(overlaps.shared, np.int64) for overlaps in batch.overlaps],
        others=[_fields_by_row(plan) for plan in others],
        header_tokens=batch.header_tokens,
        block_size=batch.block_size,
        budget_seconds=budget_seconds,
        seed=seed,
        num_threads=num_threads,
        min_gain=min_gain,
        limits=dict(limits),
    )
    return rows, fields.reshape(batch.num_rows, batch.num_columns)


def _fields_by_row(plan: Plan) -> np.ndarray:
    """int32 ``[num_rows, num_columns]``: the field order of each row by row number; a plan has them as asked."""
    fields = np.empty(plan.fields.shape, dtype=np.int32)
    fields[plan.rows] = plan.fields
    return fields


def _packed(array: np.ndarray, dtype: type[np.integer]) -> np.ndarray:
    """C-contiguous, of that type; copied only where it is not already so."""
    return np.ascontiguousarray(array, dtype=dtype)

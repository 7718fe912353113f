"""Token-exact prefix reuse: a request starts at the token where it leaves the cache, not at the block before it.

vLLM 0.32.0 can start a request inside a block (copy-on-write, made for hybrid models) once the cache lookup returns one
block more than are whole, and a number of tokens that ends in it. Its single-group lookup never does. ``install`` wraps
that lookup and adds the block; from there on vLLM's own code reserves one block more, holds source and copy, redirects
the request to the copy (``SingleTypeKVCacheManager._apply_cow``) and sends the copies along
(``SchedulerOutput.kv_cache_block_copies``), which both model runners execute before the forward pass
(``copy_kv_cache_blocks_inplace``). Nothing of vLLM's files is changed.

Why the copied tokens are right:
1. The source holds them. A block is entered in the index when the *next* scheduling step begins, so it was filled in a
   step that was sent to the workers before. Workers run steps in the order sent, on one stream, and copy at the start
   of a step: earlier steps, also those still in flight under asynchronous scheduling, have been computed by then. What
   a request cached in a step that preempted it was never computed, and is taken out of the cache.
2. Whole cached blocks are never written again: their owners only write after them.
3. The source is not reused too early. vLLM holds a reference on source and copy until the step is put together, so no
   allocation of this step can hand them out. From then on the source may be evicted; whoever gets it writes in a later
   step, and all of that step runs after this copy. A source is never the copy of another request in the same step: a
   copy is a fresh block without a hash, and the index knows only hashed ones.
4. The rest of the copy does not matter: the request writes those positions itself before it attends to them.
5. The prefix is the same: blocks are looked up by the hash of the block before, which covers all tokens and extra keys
   (LoRA, cache salt), and by the extra keys of this block. Causal attention makes the first keys and values of a block
   independent of its later tokens. Requests with images, embeddings or streamed input neither give nor take.
Drop this file when vLLM's UnitaryKVCacheCoordinator matches inside a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys
from vllm.v1.kv_cache_layout import KVCacheLayout

from vllm_relational.vllm_ext.contract import replaced_by
from vllm_relational.vllm_ext.scheduler.partial_sources import make_partial_sources
from vllm_relational.vllm_ext.scheduler.partial_support import unsupported

logger = init_logger("vllm.relational.partial_reuse")  # below vLLM's logger: its level and format


@dataclass
class PartialReuseCounters:
    """What token-exact reuse did since it was installed; all numbers only grow.

    lookups: requests admitted after a lookup in the prefix cache, again after a preemption. hits: those that started
    inside a block, each with one block copied. tokens_saved: prompt tokens they did not compute beyond whole blocks.
    declined: lookups that fell back to whole blocks, as the pool had no block to spare or the step copies enough.
    """

    lookups: int = 0
    hits: int = 0
    tokens_saved: int = 0
    declined: int = 0


def install(scheduler: Any, max_copy_mebibytes: float = 256) -> PartialReuse | None:
    """Give a scheduler token-exact reuse; to be called once, at the end of its ``__init__``.

    Returns the handle that carries ``counters``, or ``None`` where stock behaviour stays: a model or configuration it
    was not made for, which is logged in one line.

    max_copy_mebibytes: memory that the copies of one step may take on the accelerator while they run, at least one.
    vLLM gathers all sources of a layer first (of all layers, in layouts with the block outermost) and does not
    set memory aside for that. Rows beyond it fall back to whole blocks.
    """
    if reason := unsupported(scheduler):
        logger.info("Token-exact prefix reuse is off: %s", reason)
        return None
    return PartialReuse(scheduler.kv_cache_manager, _max_copies(scheduler, max_copy_mebibytes))


def _max_copies(scheduler: Any, max_copy_mebibytes: float) -> int:
    (group,) = scheduler.kv_cache_config.kv_cache_groups
    layout = scheduler.cache_config.kv_cache_layout
    apart = layout is not None and not KVCacheLayout[layout].is_block_outermost
    size = group.kv_cache_spec.page_size_bytes * (1 if apart else len(group.layer_names))
    return max(1, int(max_copy_mebibytes * 2**20 // size))


@dataclass(eq=False)
class PartialReuse:
    """Token-exact reuse on one ``KVCacheManager``, whose methods it wraps on the instance (see ``install``)."""

    manager: Any
    max_copies: int  # in one step
    counters: PartialReuseCounters = field(default_factory=PartialReuseCounters)

    def __post_init__(self) -> None:
        manager, pool = self.manager, self.manager.block_pool
        self._pool = pool
        self._block_size: int = pool.hash_block_size
        self._sources = make_partial_sources(pool.blocks, self._block_size)
        # Blocks that were given hashes in this step, so not yet sources: request, blocks, number of the first one.
        self._new: list[tuple[Any, list[Any], int]] = []
        self._scheduling = False
        self._stock: dict[str, Any] = {}
        for owner, names in replaced_by("scheduler.partial_reuse").items():
            for name in names:
                self._replace({"KVCacheManager": manager, "BlockPool": pool}[owner], name)

    def _replace(self, owner: Any, name: str) -> None:
        """Put the method below of this name, after an underscore, in the place of vLLM's."""
        self._stock[name] = getattr(owner, name)
        setattr(owner, name, getattr(self, f"_{name}"))

    # -- blocks come and go ---------------------------------------------------------------------------------------

    def _cache_full_blocks(
        self, request: Any, blocks: Any, num_cached_blocks: int, num_full_blocks: int, *args: Any, **kwargs: Any
    ) -> None:
        self._stock["cache_full_blocks"](request, blocks, num_cached_blocks, num_full_blocks, *args, **kwargs)
        if num_full_blocks > num_cached_blocks:
            self._new.append((request, blocks[num_cached_blocks:num_full_blocks], num_cached_blocks))

    def _new_step_starts(self) -> None:
        """What the steps before this one cached are sources from now on."""
        enter = self._sources.enter
        for request, blocks, first in self._new:
            if _may_share(request):
                prefixes = self._prefixes(request, first, first + len(blocks))
                enter(blocks, first, request.block_hashes, prefixes, request._all_token_ids)
        self._new.clear()
        self._scheduling = True
        self._stock["new_step_starts"]()

    def _take_kv_cache_block_copies(self) -> Any:
        """The last thing that a scheduling step asks of the manager."""
        self._scheduling = False
        return self._stock["take_kv_cache_block_copies"]()

    def _free(self, request: Any) -> None:
        if self._scheduling:
            self._withdraw(request.request_id)
        self._stock["free"](request)

    def _withdraw(self, request_id: str) -> None:
        """A request is preempted in the step that scheduled it: what it cached in this step will not be computed.

        Happens under priority scheduling. vLLM 0.32.0 leaves such blocks in the cache, where the same request or
        another finds them and reads whatever was in memory (vllm#43569). They leave the cache here, whole blocks too.
        """
        lost = {
            block.block_id for request, blocks, _ in self._new if request.request_id == request_id for block in blocks
        }
        if lost:
            self._new = [new for new in self._new if new[0].request_id != request_id]
            self._pool.evict_blocks(lost)

    def _reset_prefix_cache(self) -> bool:
        done = bool(self._stock["reset_prefix_cache"]())
        if done:
            self._sources.clear()
            self._new.clear()
        return done

    # -- lookups --------------------------------------------------------------------------------------------------

    def _get_computed_blocks(self, request: Any) -> tuple[Any, int, int]:
        found = self._stock["get_computed_blocks"](request)
        if request.skip_reading_prefix_cache or not _may_share(request):
            return found  # type: ignore[no-any-return]
        blocks, num_tokens, boundary = found
        block_id, shared = self._longest(request, num_tokens)
        if not shared:
            return found  # type: ignore[no-any-return]
        hit = [*blocks.blocks[0], self._pool.blocks[block_id]]
        if self._num_copies() >= self.max_copies or not self._fits(request, hit):
            self.counters.declined += 1
            return found  # type: ignore[no-any-return]
        return self.manager.create_kv_cache_blocks((hit,)), num_tokens + shared, boundary

    def _longest(self, request: Any, num_tokens: int) -> tuple[int, int]:
        """The block that continues the hit of ``num_tokens``, and for how many tokens; the last token is left over."""
        size, tokens = self._block_size, request._all_token_ids
        index, end = num_tokens // size, min(num_tokens + size, len(tokens) - 1)
        if request.lora_request is None and request.cache_salt is None:
            prefix = request.block_hashes[index - 1] if index else b""
        else:
            (prefix,) = self._prefixes(request, index, index + 1)
        return self._sources.longest(prefix, tokens, num_tokens, end)

    def _num_copies(self) -> int:
        """Copies that this step makes so far."""
        return len(self.manager.coordinator.single_type_managers[0]._pending_cow_copies)

    def _fits(self, request: Any, hit: list[Any]) -> bool:
        """Whether the whole request and the copy's source find room, as vLLM will count it.

        Without this a request that needs nearly the whole pool would wait for ever for the one block more.
        """
        free = self._pool.get_num_free_blocks() - self.manager.watermark_blocks
        total = -(-min(request.num_tokens, self.manager.max_model_len) // self._block_size)
        if total + 1 <= free:
            return True
        idle = sum(block.ref_cnt == 0 for block in hit)
        return bool(total - (len(hit) - 1) + idle <= free)

    def _record_prefix_cache_stats(self, request: Any, num_hits: int) -> None:
        """Called when a request is admitted, with the tokens it found: a rest of a block is our doing."""
        saved = num_hits % self._block_size
        self.counters.lookups += 1
        self.counters.hits += saved > 0
        self.counters.tokens_saved += saved
        self._stock["record_prefix_cache_stats"](request, num_hits)

    def _prefixes(self, request: Any, first: int, end: int) -> list[bytes]:
        """What blocks ``first`` to ``end`` of a request continue: equal only after equal tokens and extra keys."""
        hashes: list[bytes] = request.block_hashes
        before = hashes[first - 1 : end - 1] if first else [b"", *hashes[: end - 1]]
        if request.lora_request is None and request.cache_salt is None:
            return before
        keys = [repr(self._extra_keys(request, index)) for index in range(first, end)]
        return [sha256(prefix + key.encode()).digest() for prefix, key in zip(before, keys, strict=True)]

    def _extra_keys(self, request: Any, index: int) -> Any:
        start = index * self._block_size
        return generate_block_hash_extra_keys(request, start, start + self._block_size, 0)[0]


def _may_share(request: Any) -> bool:
    """Text only: keys and values that depend on nothing but tokens, adapter and salt."""
    return not (
        request.mm_features
        or request.prompt_embeds is not None
        or request.prompt_token_ids is None
        or request.resumable
    )

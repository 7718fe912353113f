"""Scratch memory and launches of the kernels: one object serves all layers of an engine, one after the other.

What changes from batch to batch are arguments, not constants, but for two powers of two: a kernel is compiled a few
times in the life of an engine, not once a batch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_relational.sparse.kernels.gather import gather_kernel
from vllm_relational.sparse.kernels.merge import merge_kernel
from vllm_relational.sparse.kernels.prepare import prepare_kernel
from vllm_relational.sparse.kernels.scan import compact_kernel, scan_kernel
from vllm_relational.sparse.kernels.select import list_kernel, select_kernel
from vllm_relational.sparse.kernels.v_skip import v_skip_kernel
from vllm_relational.sparse.naive import RANK_SPREAD, Window
from vllm_relational.sparse.pages import Pages
from vllm_relational.sparse.settings import DiprSettings
from vllm_relational.sparse.statistics import NUM_COUNTERS


@dataclass(frozen=True)
class Tuning:
    """How work is cut; found by measuring. Changes results by rounding, and by ``lists``, ``max_lists`` and
    ``max_tokens`` which parts of a context are attended to densely because too many of their tokens might matter.

    programs:      programs that the card runs at once, over which the splits of ``v_skip`` are spread
    max_splits:   parts of a context at most, for ``v_skip``
    lists:         lists of a batch in all
    max_lists:    lists of a request and KV head at most
    group_programs:   programs over which ``prepare`` spreads groups
    gather_programs:  programs over which ``gather`` spreads tiles
    gather_stages:    how far it reads ahead
    gather_registers: registers of its threads at most, so that its programs run at once
    scan_programs: programs of one warp over which a scan is spread
    scan_stages:   how far it reads ahead
    group_tile:    groups that ``prepare`` reads at once
    gather_tile:   listed tokens that ``gather`` reads at once
    tail_tile:     groups whose mean values it reads at once
    list_tile:     groups that ``list`` reads at once
    window_tile:   tokens of the window that a program of ``prepare`` reads
    compact_tile:  words of marks that ``compact`` reads at once
    merge_tile, merge_warps: dealt partials that ``merge`` reads at once, and its warps; after ``v_skip`` it has four,
                   for one was not tried there
    dense_tile, dense_warps, dense_stages: tokens that ``v_skip`` reads at once, its warps, how far it reads ahead
    chained:       start a kernel while the one before ends: programmatic dependent launch; None where there is such
    max_tokens:   tokens of sparse requests together that there is scratch for; requests beyond are attended to densely
    """

    programs: int = 528
    max_splits: int = 128
    lists: int = 1024
    max_lists: int = 32
    group_programs: int = 1056
    gather_programs: int = 396
    gather_stages: int = 4
    gather_registers: int = 168
    scan_programs: int = 2112
    scan_stages: int = 3
    group_tile: int = 64
    gather_tile: int = 32
    tail_tile: int = 32
    list_tile: int = 32
    window_tile: int = 64
    compact_tile: int = 128
    merge_tile: int = 64
    merge_warps: int = 1
    dense_tile: int = 64
    dense_warps: int = 4
    dense_stages: int = 3
    chained: bool | None = None
    max_tokens: int = 2**21


@dataclass(frozen=True)
class Batch:
    """What a launch attends: see ``SparseDecoder.decode``."""

    query: torch.Tensor
    pages: Pages
    block_table: torch.Tensor
    lens: torch.Tensor
    rows: torch.Tensor
    output: torch.Tensor


class Kernels:
    """Launches for one shape: heads of queries and of keys, channels of a head, the softmax scale, the largest batch
    and context, and tokens of a group of the index.

    Scratch memory per KV head and per token of the largest batch (at most ``Tuning.max_tokens``): ``(12 * heads + 4) /
    group`` bytes, heads rounded up to a power of two, at least 4; one bit or, in groups of 16, two; and 4 bytes times
    ``max_candidates``, or 4 bytes for ``topk_pages``. Also ``4 * (head_size + 3)`` bytes per head's partial softmax.
    """

    def __init__(
        self,
        settings: DiprSettings,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_size: int,
        scale: float,
        max_reqs: int,
        max_seq_len: int,
        group: int,
        device: torch.device | str,
        tuning: Tuning | None = None,
    ) -> None:
        self.settings, self.tuning, self.scale = settings, tuning or Tuning(), scale
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.max_seq_len, self.group = max_seq_len, group
        self._chained = _can_chain(device) if self.tuning.chained is None else self.tuning.chained
        self._channels = triton.next_power_of_2(head_size)
        self._sinks = -(-settings.sinks // group) * group
        self._window_tiles = triton.cdiv(self._sinks + settings.recent + group, self.tuning.window_tile)
        self.statistics = torch.zeros(NUM_COUNTERS, dtype=torch.int64, device=device)
        self.heads = num_heads // num_kv_heads
        self._reqs = triton.next_power_of_2(max_reqs)
        self._compact = max(4, triton.next_power_of_2(self.heads))
        self._words = max(8, triton.next_power_of_2(head_size // 8))
        batches = range(1, max_reqs + 1)
        partials = max(self._num_partials(reqs) for reqs in batches)
        self._acc, self._m, self._l, self._tail = (
            torch.empty(partials * width, dtype=torch.float32, device=device) for width in (self._channels, 1, 1, 1)
        )
        counts = max(max(self.splits(reqs), self.num_lists(reqs)) * reqs for reqs in batches) * num_kv_heads
        self.counts = torch.zeros(counts, dtype=torch.int32, device=device)
        self._spans = torch.empty(2 * max_reqs * num_kv_heads + 1, dtype=torch.int32, device=device)
        self._max_reqs, self._tokens = max_reqs, min(max_reqs * max_seq_len, self.tuning.max_tokens)
        self._groups = triton.cdiv(self._tokens, group) + max(reqs * (1 + self.num_lists(reqs)) for reqs in batches)
        self._base, self._bound, self._weight = (
            torch.empty(num_kv_heads * self._groups * self._compact, dtype=torch.float32, device=device)
            for _ in range(3)
        )
        self._mark_words = triton.cdiv(group, 32)  # int32 a group
        self._marks = torch.empty(num_kv_heads * self._groups * self._mark_words, dtype=torch.int32, device=device)
        self._order = torch.empty(num_kv_heads * self._groups, dtype=torch.int32, device=device)
        self._limit = torch.empty(max_reqs * num_kv_heads * 2, dtype=torch.int32, device=device)
        whole_groups = settings.method == "topk_pages"
        self._room = group if whole_groups else max(1, int(group * settings.max_candidates))  # tokens a group
        self.lists = torch.empty(num_kv_heads * self._groups * self._room, dtype=torch.int32, device=device)

    # ------------------------------------------------------------------------------------------- how work is cut
    def splits(self, num_reqs: int) -> int:
        """Parts of a context that the programs of ``v_skip`` share, for a batch of ``num_reqs``."""
        return max(1, min(self.tuning.max_splits, self.tuning.programs // (num_reqs * self.num_kv_heads)))

    def max_requests(self, longest: int) -> int:
        """Requests of a batch that all have scratch where the longest context has so many tokens; at least one."""
        return max(1, min(self._max_reqs, self._tokens // max(longest, 1)))

    def num_lists(self, num_reqs: int) -> int:
        """Lists of a request and KV head, a power of two; so many groups of scratch has a request beyond its own, for
        all lists are cut alike."""
        most = min(self.tuning.max_lists, self.tuning.lists // (num_reqs * self.num_kv_heads))
        return 1 << max(most.bit_length() - 1, 0)

    def _num_partials(self, num_reqs: int) -> int:
        """Partial softmaxes of heads: see ``merge.py``."""
        dealt = (self.tuning.gather_programs + num_reqs * self.num_kv_heads) * self.heads
        return num_reqs * self.num_heads * max(self.splits(num_reqs), self._window_tiles) + dealt

    # ------------------------------------------------------------------------------------- what the last scan did
    @property
    def scratch(self) -> tuple[torch.Tensor, ...]:
        """Memory that needs no initial value."""
        scratch = (self._base, self._bound, self._weight, self._marks, self._order, self._limit, self._tail, self.lists)
        return (self._acc, self._m, self._l, self._spans, self.counts, *scratch)

    def listed(self, lens: list[int], request: int) -> list[list[int]]:
        """For every KV head the tokens of a request's body that the last scan or choice of groups, of requests with
        these lengths, attended to exactly."""
        num_reqs, group, splits = len(lens), self.group, self.num_lists(len(lens))
        start, end = Window(self._sinks, self.settings.recent, group).body(lens[request])
        share = triton.cdiv((end - start) // group, splits)
        place = sum(triton.cdiv(length, group) + splits for length in lens[:request])
        counts = self.counts[: num_reqs * self.num_kv_heads * splits].view(num_reqs, self.num_kv_heads, splits)
        lists = self.lists.view(self.num_kv_heads, -1)
        found: list[list[int]] = []
        for head in range(self.num_kv_heads):
            found.append([])
            for split, count in enumerate(counts[request, head].tolist()):
                first, room = start + split * share * group, (place + split * share) * self._room
                whole = list(range(first, min(first + share * group, end)))
                found[-1] += whole if count < 0 else lists[head, room : room + count].tolist()
        return found

    # ---------------------------------------------------------------------------------------------------- launches
    def scan(self, batch: Batch) -> None:
        """Window and groups, codes, lists, listed tokens, merge: five launches."""
        self._prepare(batch)
        self._scan(batch)
        self._compact_marks(batch)
        self._gather(batch)
        self._merge(batch, self._window_tiles, is_dealt=True)

    def topk_pages(self, batch: Batch) -> None:
        """Window and groups, the groups' limit, lists, listed tokens, merge: five launches."""
        assert self._room == self.group, "made for another method: there is no room for whole groups"
        self._prepare(batch, outline=True)
        self._select(batch)
        self._list(batch)
        self._gather(batch)
        self._merge(batch, self._window_tiles, is_dealt=True)

    def _prepare(self, batch: Batch, outline: bool = False) -> None:
        num_reqs, pages = batch.lens.shape[0], batch.pages
        assert num_reqs <= self._max_reqs, "made for smaller batches"
        programs = triton.cdiv(self.max_seq_len, self.group * self.tuning.group_tile)
        programs = max(1, min(programs, self.tuning.group_programs // (num_reqs * self.num_kv_heads)))
        prepare_kernel[(self._window_tiles + programs, self.num_kv_heads, num_reqs)](
            batch.query, pages.key, pages.zero_point, pages.scale, batch.block_table, batch.lens, batch.rows,
            self._acc, self._m, self._l, self._base, self._bound,
            self.scale, num_reqs, batch.query.stride(0), *pages.key.stride()[:3], *pages.zero_point.stride()[:2],
            *pages.scale.stride()[:2], batch.block_table.stride(0), self._groups,
            self.num_lists(num_reqs), **self._common(batch), COMPACT=self._compact, CHANNELS=self._channels,
            REQS=self._reqs, WINDOW_TILES=self._window_tiles, WINDOW_TILE=self.tuning.window_tile,
            GROUP_TILE=self.tuning.group_tile, NUMBER=_number(batch.query.dtype), CHAINED=self._chained,
            OUTLINE=outline, SPREAD=RANK_SPREAD, num_warps=4,
        )  # fmt: skip

    def _scan(self, batch: Batch) -> None:
        num_reqs, pages = batch.lens.shape[0], batch.pages
        beta, alpha_length = self._beta()
        programs = max(1, self.tuning.scan_programs // (num_reqs * self.num_kv_heads))
        scan_kernel[(programs, self.num_kv_heads, num_reqs)](
            batch.query, pages.words, pages.scale_words, batch.block_table, batch.lens, batch.rows, self._m,
            self._base, self._bound, self._weight, self._marks,
            self.scale, beta, alpha_length, num_reqs, batch.query.stride(0), *pages.words.stride()[:2],
            *pages.scale_words.stride()[:2], batch.block_table.stride(0), self._groups,
            self.num_lists(num_reqs), **self._common(batch, self._compact), **self._windows(),
            COLUMNS=max(8, self._compact), WORDS=self._words, MARKS=self._mark_words,
            TAIL=self.settings.counts_the_rest, STAGES=self.tuning.scan_stages,
            BY_LENGTH=self.settings.alpha_length is not None, NUMBER=_number(batch.query.dtype),
            num_warps=max(1, self._words // 16), **self._chain(),
        )  # fmt: skip

    def _compact_marks(self, batch: Batch) -> None:
        num_reqs = batch.lens.shape[0]
        compact_kernel[(self.num_lists(num_reqs), self.num_kv_heads, num_reqs)](
            batch.lens, self._marks, self.lists, self.counts, num_reqs, self._groups, self._groups * self._room,
            GROUP=self.group, MARKS=self._mark_words, SINKS=self._sinks, RECENT=self.settings.recent, REQS=self._reqs,
            ROOM=self._room, TILE=self.tuning.compact_tile, num_warps=4, **self._chain(),
        )  # fmt: skip

    def _select(self, batch: Batch) -> None:
        num_reqs = batch.lens.shape[0]
        max_groups = max(128, triton.next_power_of_2(triton.cdiv(self.max_seq_len, self.group)))
        select_kernel[(self.num_kv_heads, num_reqs)](
            self._bound, self._m, batch.lens, self._order, self._limit,
            num_reqs, self._groups, self.num_lists(num_reqs),
            triton.cdiv(self.settings.top_tokens, self.group), HEADS=self.heads, COMPACT=self._compact,
            GROUP=self.group,
            SINKS=self._sinks, RECENT=self.settings.recent, WINDOW_TILES=self._window_tiles,
            WINDOW_PADDED=triton.next_power_of_2(self._window_tiles), REQS=self._reqs, MAX_GROUPS=max_groups,
            num_warps=max(4, min(32, max_groups // 512)), num_stages=1, **self._chain(),
        )  # fmt: skip

    def _list(self, batch: Batch) -> None:
        num_reqs = batch.lens.shape[0]
        list_kernel[(self.num_lists(num_reqs), self.num_kv_heads, num_reqs)](
            batch.lens, self._base, self._m, self._order, self._limit, self._weight, self.lists, self.counts,
            self.scale, num_reqs, self._groups, self._groups * self._room,
            HEADS=self.heads, PADDED=self._compact, GROUP=self.group, SINKS=self._sinks, RECENT=self.settings.recent,
            **self._windows(), ROOM=self._room, TILE=self.tuning.list_tile, TAIL=self.settings.counts_the_rest,
            num_warps=4, **self._chain(),
        )  # fmt: skip

    def _gather(self, batch: Batch) -> None:
        num_reqs, pages = batch.lens.shape[0], batch.pages
        lists = self.num_lists(num_reqs)
        gather_kernel[(self.tuning.gather_programs,)](
            batch.query, pages.key, pages.value_mean, batch.block_table, batch.lens, batch.rows, self._acc,
            self._m, self._l, self._tail, self._weight, self.lists, self.counts, self._spans, self.statistics,
            self.scale, num_reqs, self.num_kv_heads, batch.query.stride(0), *pages.key.stride()[:3],
            *pages.value_mean.stride()[:2], batch.block_table.stride(0), self._groups, self._groups * self._room, lists,
            **self._common(batch), **self._windows(), CHANNELS=self._channels, COMPACT=self._compact,
            PAIRS=triton.next_power_of_2(num_reqs * self.num_kv_heads), LISTS=lists, TILE=self.tuning.gather_tile,
            TAIL_TILE=self.tuning.tail_tile, STAGES=self.tuning.gather_stages, ROOM=self._room,
            TAIL=self.settings.counts_the_rest, num_warps=4, **self._chain(),
            **self._few_registers(),
        )  # fmt: skip

    def v_skip(self, batch: Batch) -> None:
        """All keys, and the values that matter: two launches."""
        num_reqs = batch.lens.shape[0]
        assert num_reqs <= self._max_reqs, "made for smaller batches"
        splits, pages = self.splits(num_reqs), batch.pages
        beta, alpha_length = self._beta()
        v_skip_kernel[(splits, self.num_kv_heads, num_reqs)](
            batch.query, pages.key, pages.value_mean, batch.block_table, batch.lens, batch.rows,
            self._acc, self._m, self._l, self.counts,
            self.scale, beta, alpha_length, batch.query.stride(0), *pages.key.stride()[:3],
            *pages.value_mean.stride()[:2], batch.block_table.stride(0), splits,
            **self._common(batch), CHANNELS=self._channels, TILE=self.tuning.dense_tile,
            TAIL=self.settings.counts_the_rest, BY_LENGTH=self.settings.alpha_length is not None,
            num_warps=self.tuning.dense_warps, num_stages=self.tuning.dense_stages,
        )  # fmt: skip
        self._merge(batch, splits, is_dealt=False)

    def _merge(self, batch: Batch, num_fixed: int, is_dealt: bool) -> None:
        chunk, num_reqs = min(32, self._channels), batch.lens.shape[0]
        merge_kernel[(self._channels // chunk, self.num_heads, num_reqs)](
            batch.output, batch.lens, batch.rows, self._acc, self._m, self._l, self._tail, self._spans,
            self.statistics, self.scale, batch.output.stride(0), num_fixed,
            HEADS=self.heads, HEAD_SIZE=self.head_size, CHANNELS=self._channels,
            FIXED=triton.next_power_of_2(num_fixed), DEALT=self.tuning.merge_tile if is_dealt else 0,
            CHUNK=chunk, CERTIFICATE=self.settings.certificate and is_dealt,
            num_warps=self.tuning.merge_warps if is_dealt else 4, **self._chain(),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- constants
    def _common(self, batch: Batch, padded: int = 0) -> dict[str, int]:
        return {
            "HEADS": self.heads,
            "PADDED": padded or max(16, triton.next_power_of_2(self.heads)),
            "HEAD_SIZE": self.head_size,
            "BLOCK_SIZE": batch.pages.layout.block_size,
            "GROUP": self.group,
            "SINKS": self._sinks,
            "RECENT": self.settings.recent,
        }

    def _windows(self) -> dict[str, int]:
        return {
            "REQS": self._reqs,
            "WINDOW_TILES": self._window_tiles,
            "WINDOW_PADDED": triton.next_power_of_2(self._window_tiles),
        }

    def _few_registers(self) -> dict[str, int]:
        """For ``gather``, where that needs no memory in their place."""
        fits = self._channels <= 128 and torch.version.hip is None
        return {"maxnreg": self.tuning.gather_registers} if fits else {}

    def _chain(self) -> dict[str, bool]:
        """For kernels that follow one of ours."""
        return {"CHAINED": True, "launch_pdl": True} if self._chained else {"CHAINED": False}

    def _beta(self) -> tuple[float, float]:
        length = self.settings.alpha_length
        return self.settings.beta(self.scale, self.max_seq_len), length if length is not None else 1.0


def _number(dtype: torch.dtype) -> tl.dtype:
    """What products with codes are computed from: float16 holds bfloat16 queries and codes exactly."""
    return tl.float32 if dtype == torch.float32 else tl.float16


def _can_chain(device: torch.device | str) -> bool:
    """Whether a kernel may start while the one before ends: from compute capability 9 on."""
    device = torch.device(device)
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)

"""Scratch memory and launches of the kernels: one object serves all layers of an engine, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_relational.sparse.kernels.gather import gather_kernel
from vllm_relational.sparse.kernels.merge import CERTIFICATE_BINS, merge_kernel
from vllm_relational.sparse.kernels.scan import scan_kernel
from vllm_relational.sparse.kernels.v_skip import v_skip_kernel
from vllm_relational.sparse.kernels.window import window_kernel
from vllm_relational.sparse.naive import Window
from vllm_relational.sparse.pages import GROUP, Pages
from vllm_relational.sparse.settings import DiprSettings


@dataclass(frozen=True)
class Tuning:
    """How work is cut; found by measuring, changes no result but for rounding.

    programs:     programs that the card runs at once, over which splits are spread.
    scan_groups:  groups of 16 tokens that a scan reads at once, a power of two of at least 16.
    gather_tile, window_tile, dense_tile: tokens that the others read at once.
    list_bytes:   most memory for lists of tokens, of all requests together; a split with no room for its list is
                  attended to densely.
    """

    programs: int = 528
    scan_groups: int = 16
    scan_warps: int = 4
    scan_stages: int = 2
    scan_registers: int | None = None
    gather_tile: int = 64
    window_tile: int = 128
    dense_tile: int = 64
    dense_warps: int = 4
    dense_stages: int = 3
    most_splits: int = 128
    list_bytes: int = 64 * 2**20


STATISTICS = 3 + CERTIFICATE_BINS
"""Whole numbers that the kernels add to: tokens of bodies, tokens of them that were listed, splits that were attended
to densely (each a KV head, request and layer), then requests and heads by the attention mass that is only estimated:
bin ``i`` is a share from ``2 ** -(i + 1)`` up to ``2 ** -i``, the last one all smaller ones."""


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
    """Launches for one shape: heads of queries and of keys, channels of a head, the softmax scale, and the largest
    batch and context.

    Memory: ``list_bytes`` of the tuning at most, and ``4 * (head_size + 2)`` a partial softmax of a head.
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
        device: torch.device | str,
        tuning: Tuning | None = None,
    ) -> None:
        self.settings, self.tuning, self.scale = settings, tuning or Tuning(), scale
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.max_seq_len = max_seq_len
        self._channels = triton.next_power_of_2(head_size)
        self._sinks = -(-settings.sinks // GROUP) * GROUP
        self._window_tiles = triton.cdiv(self._sinks + settings.recent + GROUP, self.tuning.window_tile)
        self.statistics = torch.zeros(STATISTICS, dtype=torch.int64, device=device)
        most = max(self.num_partials(reqs) * reqs for reqs in range(1, max_reqs + 1))
        self._partial = torch.empty(most * num_heads * self._channels, dtype=torch.float32, device=device)
        self._most = torch.empty(most * num_heads, dtype=torch.float32, device=device)
        self._total = torch.empty(most * num_heads, dtype=torch.float32, device=device)
        most_splits = max(self.splits(reqs) * reqs for reqs in range(1, max_reqs + 1))
        self.counts = torch.zeros(most_splits * num_kv_heads, dtype=torch.int32, device=device)
        lists = max(self.capacity(reqs) * self.splits(reqs) * reqs for reqs in range(1, max_reqs + 1))
        self.lists = torch.empty(lists * num_kv_heads, dtype=torch.int32, device=device)

    # ------------------------------------------------------------------------------------------- how work is cut
    def splits(self, num_reqs: int) -> int:
        """Parts of a context that programs share, for a batch of ``num_reqs``."""
        return max(1, min(self.tuning.most_splits, self.tuning.programs // (num_reqs * self.num_kv_heads)))

    def gathers(self, num_reqs: int) -> int:
        """Programs that share the listed tokens of a request and KV head."""
        return self.splits(num_reqs)

    def num_partials(self, num_reqs: int) -> int:
        """Partial softmaxes a request and head."""
        return self._window_tiles + self.splits(num_reqs) + self.gathers(num_reqs)

    def capacity(self, num_reqs: int) -> int:
        """Tokens that a split may list."""
        tile = GROUP * self.tuning.scan_groups
        share = triton.cdiv(self.max_seq_len, self.splits(num_reqs) * tile) * tile
        room = self.tuning.list_bytes // (4 * num_reqs * self.num_kv_heads * self.splits(num_reqs))
        return max(GROUP, min(int(share * self.settings.most_candidates), room) // GROUP * GROUP)

    # ------------------------------------------------------------------------------------- what the last scan did
    @property
    def scratch(self) -> tuple[torch.Tensor, ...]:
        """Memory that needs no initial value."""
        return (self._partial, self._most, self._total, self.counts, self.lists)

    def listed(self, num_reqs: int, request: int, seq_len: int) -> list[list[int]]:
        """For every KV head the tokens of the body that the last scan of ``num_reqs`` requests attended to exactly."""
        splits, capacity = self.splits(num_reqs), self.capacity(num_reqs)
        start, end = Window(self._sinks, self.settings.recent).body(seq_len)
        tile = GROUP * self.tuning.scan_groups
        share = triton.cdiv(triton.cdiv(end - start, tile), splits) * tile
        counts = self.counts[: num_reqs * self.num_kv_heads * splits].view(num_reqs, self.num_kv_heads, splits)
        lists = self.lists[: counts.numel() * capacity].view(*counts.shape, capacity)
        found: list[list[int]] = []
        for head in range(self.num_kv_heads):
            found.append([])
            for split, count in enumerate(counts[request, head].tolist()):
                first = start + split * share
                whole = list(range(first, min(first + share, end)))
                found[-1] += whole if count < 0 else lists[request, head, split, :count].tolist()
        return found

    # ---------------------------------------------------------------------------------------------------- launches
    def scan(self, batch: Batch) -> None:
        """Window, index, listed tokens, merge: four launches."""
        num_reqs = batch.lens.shape[0]
        splits, gathers = self.splits(num_reqs), self.gathers(num_reqs)
        pages, num_partials = batch.pages, self.num_partials(num_reqs)
        capacity = self.capacity(num_reqs)
        common, window = self._common(batch), {"SINKS": self._sinks, "RECENT": self.settings.recent}
        partials = (self._partial, self._most, self._total)
        keys = (pages.key.stride(0), pages.key.stride(1), pages.key.stride(2), batch.block_table.stride(0))
        beta, alpha_length = self._beta()
        window_kernel[(self._window_tiles, self.num_kv_heads, num_reqs)](
            batch.query, pages.key, batch.block_table, batch.lens, batch.rows, *partials,
            self.scale, batch.query.stride(0), *keys, num_partials,
            **common, **window, CHANNELS=self._channels, TILE=self.tuning.window_tile, num_warps=4,
        )  # fmt: skip
        scan_kernel[(splits, self.num_kv_heads, num_reqs)](
            batch.query, pages.words, pages.origin, pages.step_words, pages.value_mean, batch.block_table, batch.lens,
            batch.rows, *partials, self.lists, self.counts,
            self.scale, beta, alpha_length, batch.query.stride(0), pages.words.stride(0), pages.words.stride(1),
            pages.origin.stride(0), pages.origin.stride(1), pages.step_words.stride(0), pages.step_words.stride(1),
            batch.block_table.stride(0), num_partials, capacity,
            **{**common, "PADDED": max(4, triton.next_power_of_2(common["HEADS"]))}, **window,
            CHANNELS=self._channels, WORDS=max(8, triton.next_power_of_2(self.head_size // 8)),
            GROUPS=self.tuning.scan_groups, SPLITS=splits, WINDOW_TILES=self._window_tiles,
            WINDOW_PADDED=triton.next_power_of_2(self._window_tiles), TAIL=self.settings.tail,
            BY_LENGTH=self.settings.alpha_length is not None, NUMBER=_number(batch.query.dtype),
            num_warps=self.tuning.scan_warps, num_stages=self.tuning.scan_stages, maxnreg=self.tuning.scan_registers,
        )  # fmt: skip
        gather_kernel[(gathers, self.num_kv_heads, num_reqs)](
            batch.query, pages.key, batch.block_table, batch.lens, batch.rows, *partials, self.lists, self.counts,
            self.statistics, self.scale, batch.query.stride(0), *keys, num_partials, self._window_tiles + splits,
            capacity,
            **common, **window, CHANNELS=self._channels, GROUPS=self.tuning.scan_groups, SPLITS=splits,
            SPLITS_PADDED=triton.next_power_of_2(splits), TILE=self.tuning.gather_tile, num_warps=4,
        )  # fmt: skip
        self._merge(batch, num_partials, self._window_tiles, splits)

    def v_skip(self, batch: Batch) -> None:
        """All keys, and the values that matter: two launches."""
        num_reqs = batch.lens.shape[0]
        splits, pages = self.splits(num_reqs), batch.pages
        beta, alpha_length = self._beta()
        v_skip_kernel[(splits, self.num_kv_heads, num_reqs)](
            batch.query, pages.key, pages.value_mean, batch.block_table, batch.lens, batch.rows,
            self._partial, self._most, self._total, self.counts,
            self.scale, beta, alpha_length, batch.query.stride(0), pages.key.stride(0), pages.key.stride(1),
            pages.key.stride(2), pages.origin.stride(0), pages.origin.stride(1), batch.block_table.stride(0), splits,
            **self._common(batch), SINKS=self._sinks, RECENT=self.settings.recent, CHANNELS=self._channels,
            SPLITS=splits, TILE=self.tuning.dense_tile, TAIL=self.settings.tail,
            BY_LENGTH=self.settings.alpha_length is not None,
            num_warps=self.tuning.dense_warps, num_stages=self.tuning.dense_stages,
        )  # fmt: skip
        self._merge(batch, splits, 0, 0)

    def _merge(self, batch: Batch, num_partials: int, first_estimate: int, num_estimates: int) -> None:
        chunk = min(32, self._channels)
        merge_kernel[(self._channels // chunk, self.num_heads, batch.lens.shape[0])](
            batch.output, batch.lens, batch.rows, self._partial, self._most, self._total, self.statistics,
            self.scale, batch.output.stride(0), num_partials, first_estimate, num_estimates,
            HEAD_SIZE=self.head_size, CHANNELS=self._channels, PARTIALS=triton.next_power_of_2(num_partials),
            CHUNK=chunk, CERTIFICATE=self.settings.certificate and num_estimates > 0, num_warps=4,
        )  # fmt: skip

    def _common(self, batch: Batch) -> dict[str, int]:
        heads = self.num_heads // self.num_kv_heads
        return {
            "HEADS": heads,
            "PADDED": max(16, triton.next_power_of_2(heads)),
            "HEAD_SIZE": self.head_size,
            "BLOCK_SIZE": batch.pages.layout.block_size,
            "GROUP": GROUP,
        }

    def _beta(self) -> tuple[float, float]:
        length = self.settings.alpha_length
        return self.settings.beta(self.scale, self.max_seq_len), length if length is not None else 1.0


def _number(dtype: torch.dtype) -> tl.dtype:
    """What products with codes are computed from: float16 holds bfloat16 queries and codes exactly."""
    return tl.float32 if dtype == torch.float32 else tl.float16

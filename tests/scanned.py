"""What a scan of our kernels attended to, and its result, for tests that hold it against someone else's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from paged import Paged

from vllm_relational.sparse import naive
from vllm_relational.sparse.kernels.launch import Batch, Kernels, Tuning
from vllm_relational.sparse.settings import DiprSettings


@dataclass
class Scanned:
    """A batch, its attention ``[num_reqs, num_heads, head_size]``, and the kernels with the lists of the scan."""

    batch: Paged
    output: torch.Tensor
    kernels: Kernels

    def context(self, request: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query ``[num_heads, head_size]``, key and value ``[num_kv_heads, seq_len, head_size]``."""
        pages, length = self.batch.pages, int(self.batch.lens[request])
        key, value = (naive.gather(part, self.batch.block_table[request], length) for part in (pages.key, pages.value))
        return self.batch.query[self.batch.rows[request].long()], key, value

    def parts(self, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of the window and those of the lists: bool ``[num_kv_heads, seq_len]`` each."""
        length, device = int(self.batch.lens[request]), self.batch.query.device
        window = torch.ones((self.kernels.num_kv_heads, length), dtype=torch.bool, device=device)
        settings = self.kernels.settings
        start, end = naive.Window(settings.sinks, settings.recent, self.kernels.group).body(length)
        window[:, start:end] = False
        listed = torch.zeros_like(window)
        for head, tokens in enumerate(self.kernels.listed(self.batch.lens.tolist(), request)):
            listed[head, tokens] = True
        return window, listed


def scanned(batch: Paged, dipr: DiprSettings, method: str = "scan") -> Scanned:
    """``method`` over the batch."""
    made = Kernels(
        dipr,
        num_heads=batch.query.shape[1],
        num_kv_heads=batch.pages.num_kv_heads,
        head_size=batch.query.shape[2],
        scale=batch.scale,
        max_reqs=len(batch.lens),
        max_seq_len=int(batch.lens.max()),
        group=batch.pages.layout.group,
        device=batch.query.device,
        tuning=Tuning(programs=12),
    )
    output = torch.full_like(batch.query, torch.nan)
    getattr(made, method)(Batch(batch.query, batch.pages, batch.block_table, batch.lens, batch.rows, output))
    return Scanned(batch, output[batch.rows.long()], made)

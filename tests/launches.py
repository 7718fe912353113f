"""Launches of kernels over batches of ``paged``, and what their references say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from paged import Paged

from vllm_relational.sparse import naive
from vllm_relational.sparse.decoder import reference
from vllm_relational.sparse.kernels.launch import Batch, Kernels, Tuning
from vllm_relational.sparse.settings import DiprSettings

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
TOLERANCE = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
WINDOW = {"sinks": 32, "recent": 64}


def kernels_for(batch: Paged, dipr: DiprSettings, programs: int = 12, more_reqs: int = 0, **tuning: Any) -> Kernels:
    """Poisoned scratch for the batch and ``more_reqs`` requests; tuning: instead of what ``programs`` makes it."""
    small = Tuning(
        programs=programs,
        lists=programs,
        gather_programs=programs,
        group_programs=2 * programs,
        scan_programs=5 * programs,
        compact_tile=16,
    )
    num_reqs, num_heads, head_size = len(batch.lens), batch.query.shape[1], batch.query.shape[2]
    made = Kernels(
        dipr,
        num_heads=num_heads,
        num_kv_heads=batch.pages.num_kv_heads,
        head_size=head_size,
        scale=batch.scale,
        max_reqs=num_reqs + more_reqs,
        max_seq_len=max(int(batch.lens.max()), 1),
        group=batch.pages.layout.group,
        device=DEVICE,
        tuning=dataclasses.replace(small, **tuning),
    )
    for scratch in made.scratch:
        scratch.view(torch.uint8).fill_(0xFF)
    return made


def run(batch: Paged, dipr: DiprSettings, method: str, programs: int = 12) -> tuple[torch.Tensor, Kernels]:
    made = kernels_for(batch, dipr, programs)
    output = torch.full_like(batch.query, torch.nan)
    getattr(made, method)(Batch(batch.query, batch.pages, batch.block_table, batch.lens, batch.rows, output))
    return output, made


def expected(batch: Paged, dipr: DiprSettings) -> torch.Tensor:
    output = torch.full_like(batch.query, torch.nan)
    reference(dipr, batch.scale, batch.query, batch.pages, batch.block_table, batch.lens, batch.rows, output)
    return output


def parts(batch: Paged, made: Kernels, request: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a request's window and those of its lists: bool ``[num_kv_heads, seq_len]`` each."""
    length = int(batch.lens[request])
    window = torch.ones((batch.pages.num_kv_heads, length), dtype=torch.bool)
    start, end = naive.Window(made.settings.sinks, made.settings.recent, made.group).body(length)
    window[:, start:end] = False
    listed = torch.zeros_like(window)
    for head, tokens in enumerate(made.listed(batch.lens.tolist(), request)):
        assert len(tokens) == len(set(tokens))
        listed[head, tokens] = True
    return window, listed


def attended(batch: Paged, made: Kernels, request: int) -> torch.Tensor:
    """The tokens that window and list of a request hold: bool ``[num_kv_heads, seq_len]``."""
    window, listed = parts(batch, made, request)
    return window | listed


def context(batch: Paged, request: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query ``[num_heads, head_size]``, key and value ``[num_kv_heads, seq_len, head_size]``."""
    length = int(batch.lens[request])
    key, value = (
        naive.gather(part, batch.block_table[request], length) for part in (batch.pages.key, batch.pages.value)
    )
    return batch.query[batch.rows[request].long()], key, value


SHAPES = [
    pytest.param(4, 2, 64, 16, torch.float32, id="heads 4"),
    pytest.param(1, 3, 64, 32, torch.float16, id="one head, blocks of 32"),
    pytest.param(7, 1, 96, 64, torch.float16, id="heads 7, size 96, blocks of 64"),
    pytest.param(16, 1, 64, 16, torch.bfloat16, id="heads 16, bfloat16"),
    pytest.param(4, 1, 128, 48, torch.bfloat16, id="size 128, blocks of 48"),
    pytest.param(2, 1, 256, 16, torch.float16, id="size 256"),
    pytest.param(3, 1, 80, 16, torch.float32, id="size 80"),
]

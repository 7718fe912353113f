"""Lists made of marks, and tiles dealt out over programs: whatever their number, the same attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import DEVICE, WINDOW, expected, kernels_for
from paged import Paged, paged_batch

from vllm_relational.sparse.kernels.launch import Batch, Kernels
from vllm_relational.sparse.settings import DiprSettings

DIPR = DiprSettings(alpha=0.3, **WINDOW)


def cut(batch: Paged, dipr: DiprSettings, **tuning: int) -> Kernels:
    return kernels_for(batch, dipr, more_reqs=3, **tuning)


def attend(batch: Paged, dipr: DiprSettings, **tuning: int) -> tuple[torch.Tensor, Kernels]:
    made, output = cut(batch, dipr, **tuning), torch.full_like(batch.query, torch.nan)
    made.scan(Batch(batch.query, batch.pages, batch.block_table, batch.lens, batch.rows, output))
    return output, made


TILES = {"gather_tile": 16, "tail_tile": 16, "scan_programs": 12, "group_programs": 12, "lists": 12}


@pytest.fixture(scope="module")
def uneven() -> Paged:
    """Some requests without a body or without tokens, one with many times the others' tokens."""
    return paged_batch([40, 300, 0, 130, 64], spread=2.0, device=DEVICE)


def compare(batch: Paged, dipr: DiprSettings, programs: int, merge_tile: int) -> Kernels:
    """One cut against another; both made for larger batches, too."""
    output, made = attend(batch, dipr, gather_programs=programs, merge_tile=merge_tile, **TILES)
    right, other = attend(batch, dipr, gather_programs=5, **TILES)
    touched = batch.rows[batch.lens > 0].long()
    assert torch.allclose(output[touched], right[touched], atol=1e-5)
    assert output[touched].isfinite().all()
    assert made.statistics.tolist() == other.statistics.tolist() and made.statistics[1] > 0
    lens = batch.lens.tolist()
    assert all(made.listed(lens, request) == other.listed(lens, request) for request in range(len(lens)))
    return made


@pytest.mark.parametrize(("programs", "merge_tile"), [(3, 64), (50, 1)])
def test_any_number_of_programs_shares_the_tiles_of_all(uneven, programs, merge_tile):
    """10 pairs of request and KV head: programs with parts of several, and several programs with parts of one."""
    compare(uneven, DIPR, programs, merge_tile)


def test_parts_that_count_whole_are_dealt_out():
    batch = paged_batch([450, 100], spread=0.1, device=DEVICE)
    assert compare(batch, dataclasses.replace(DIPR, alpha=0.01, max_candidates=0.05), 7, 4).statistics[2] > 0


def test_without_a_tail_only_listed_tokens_are_dealt_out(uneven):
    compare(uneven, dataclasses.replace(DIPR, tail=False), 7, 4)


def test_the_certificate_counts_every_head_once_however_many_partials_it_has(uneven):
    made = compare(uneven, dataclasses.replace(DIPR, certificate=True), 40, 2)
    assert made.statistics[3:].sum() == 8 * int((uneven.lens > 0).sum())


def test_a_batch_without_bodies_leaves_windows_only():
    batch = paged_batch([40, 17, 90], device=DEVICE)
    output, made = attend(batch, DIPR)
    dense = expected(batch, DiprSettings(alpha=0.0, tail=False, **WINDOW))
    assert torch.allclose(output[batch.rows.long()], dense[batch.rows.long()], atol=1e-4)
    assert made.statistics[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("block_size", [16, 32, 64])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.sampled_from([0.0, 0.02, 0.3, 1.0]), num_lists=st.sampled_from([1, 2, 8]))
def test_lists_hold_the_marked_tokens_in_order(block_size, seed, share, num_lists):
    """Marks at random, the highest bit of a word among them, against ``nonzero``."""
    lens = [700, 0, 333]
    batch = paged_batch(lens, block_size=block_size, device=DEVICE)
    made = cut(batch, dataclasses.replace(DIPR, max_candidates=1.0), lists=num_lists * 6)
    group, words = made.group, made._mark_words
    marked = torch.rand((2, made._groups * group), generator=torch.Generator().manual_seed(seed)) < share
    bits = marked.view(2, -1, words, group // words).long() << torch.arange(group // words)
    made._marks.copy_(bits.sum(-1).flatten().to(torch.int32))
    output = torch.empty_like(batch.query)
    made._compact_marks(Batch(batch.query, batch.pages, batch.block_table, batch.lens, batch.rows, output))
    for request, place in ((0, 0), (2, -(-700 // group) + 2 * made.num_lists(3))):
        start, end = made._sinks, max((lens[request] - WINDOW["recent"]) // group * group, made._sinks)
        for head, tokens in enumerate(made.listed(lens, request)):
            here = marked[head, place * group :][:end].clone()
            here[:start] = False
            assert tokens == here.nonzero()[:, 0].tolist()

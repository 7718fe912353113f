"""Pages of a file at the front of private memory."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from vllm_relational.context.mapping import Arena, can_map, pages


@pytest.fixture
def file(tmp_path):
    """Three pages of numbers, open for reading."""
    path = tmp_path / "pages"
    path.write_bytes(np.arange(3 * mmap.PAGESIZE // 4, dtype=np.uint32).tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    yield path, descriptor
    os.close(descriptor)


def numbers(arena: Arena) -> np.ndarray:
    return np.frombuffer(arena.memory, np.uint32)


def test_what_is_laid_and_what_is_behind_it_are_one_stretch(file):
    path, descriptor = file
    before, page = path.read_bytes(), mmap.PAGESIZE // 4
    arena = Arena(2, 4 * mmap.PAGESIZE)
    arena.lay(1, descriptor, mmap.PAGESIZE, mmap.PAGESIZE + 40)
    own = numbers(arena).reshape(2, 4 * page)
    assert not own[0].any()
    assert own[1, : page + 10].tolist() == list(range(page, 2 * page + 10))
    own[1, page + 10 :] = 7  # the rest of the second page, and memory that no file stands behind
    assert own[1, : page + 10].tolist() == list(range(page, 2 * page + 10))
    assert (own[1, page + 10 :] == 7).all()
    assert path.read_bytes() == before


def test_memory_lives_as_long_as_what_refers_to_it(file):
    path, descriptor = file
    arena = Arena(1, 3 * mmap.PAGESIZE)
    arena.lay(0, descriptor, 0, 3 * mmap.PAGESIZE)
    view = numbers(arena)
    del arena
    path.unlink()
    assert view[-1] == len(view) - 1


def test_nothing_to_lay():
    arena = Arena(1, mmap.PAGESIZE)
    arena.lay(0, -1, 0, 0)
    assert not numbers(arena).any()
    assert len(Arena(0, 0).memory) == mmap.PAGESIZE


@pytest.mark.parametrize("offset", [1, 4095])
def test_what_cannot_be_laid(file, offset):
    _, descriptor = file
    arena = Arena(1, mmap.PAGESIZE)
    for wrong in ((descriptor, offset), (-1, 0)):
        with pytest.raises(OSError, match="mapping 10 bytes"):
            arena.lay(0, *wrong, 10)
    assert not can_map(offset)


def test_where_regions_can_be_laid(monkeypatch):
    assert can_map(0) and can_map(mmap.PAGESIZE)
    assert (pages(0), pages(1), pages(mmap.PAGESIZE)) == (0, mmap.PAGESIZE, mmap.PAGESIZE)
    monkeypatch.setattr("sys.platform", "darwin")
    assert not can_map(0)

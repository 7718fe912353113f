"""A worker that keeps a digest of the tokens up to every position, in pages of bytes as vLLM's: they can be stored and
loaded, and it fails when a request would attend to anything but its own prefix."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import xxhash
from fake_worker import BLOCK_SIZE, Worker

PAGE = 256  # bytes: of 4 tokens, one head of 8 channels, keys and values in float32


class Digests:
    """A page: a digest of 16 bytes a position."""

    def __init__(self, page: torch.Tensor) -> None:
        self.rows = page.view(BLOCK_SIZE, -1)

    def __len__(self) -> int:
        return BLOCK_SIZE

    def __getitem__(self, position: int) -> bytes:
        if position >= BLOCK_SIZE:
            raise IndexError
        return bytes(self.rows[position, :16].tolist())

    def __setitem__(self, position: int, digest: bytes) -> None:
        self.rows[position, :16] = torch.tensor(list(digest), dtype=torch.uint8)


class Pages:
    """All pages, as bytes."""

    def __init__(self, num_blocks: int) -> None:
        self.bytes = torch.zeros((num_blocks, PAGE), dtype=torch.uint8)

    def __getitem__(self, block: int) -> Digests:
        return Digests(self.bytes[block])

    def __setitem__(self, block: int, digests: list[bytes]) -> None:
        for position, digest in enumerate(digests):
            self[block][position] = digest


class PageWorker(Worker):
    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.store = Pages(num_blocks + 1)

    def _fingerprint(self, name: str, position: int) -> bytes:
        return xxhash.xxh3_128_digest(repr(super()._fingerprint(name, position)).encode())


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.kv") if "damaged" not in path.parts)


def tokens(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(7) for _ in range(count)]

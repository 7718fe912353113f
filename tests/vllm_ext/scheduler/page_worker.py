"""A worker that keeps a digest of the tokens up to every position, in pages of bytes as vLLM's: they can be stored and
loaded, and it fails when a request would attend to anything but its own prefix."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import xxhash
from fake_worker import BLOCK_SIZE, Worker, make_request

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


class SharedPrefixes:
    """24 rows that begin like one of three stems, and what is done to the files that they leave.

    shortest: tokens of a stem, and of what a row takes of one.
    """

    def __init__(self, seed: int, shortest: tuple[int, int]) -> None:
        draw = self.draw = random.Random(seed)
        stems = [tokens(seed * 10 + place, draw.randint(shortest[0], 30)) for place in range(3)]
        self.rows = [
            draw.choice(stems)[: draw.randint(shortest[1], 30)] + tokens(100 + place, draw.randint(1, 9))
            for place in range(24)
        ]

    def play(self, engine: Any) -> Any:
        """The engine, when it has answered all rows."""
        for place, row in enumerate(self.rows):
            engine.add(make_request(f"r{place}", row, 6, priority=place % 3, arrival_time=place))
        engine.run()
        return engine

    def damage(self, folder: Path, count: int) -> None:
        """Empty or remove so many files."""
        for file in self.draw.sample(files(folder), count):
            file.write_bytes(b"") if self.draw.random() < 0.5 else file.unlink()

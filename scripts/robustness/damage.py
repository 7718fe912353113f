"""Ways in which a file on a disk is damaged, drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable

SECTOR = 512


def flipped_bits(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice([1, 1, 2, 8])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def other_byte(data: bytearray, draw: random.Random) -> bytearray:
    """A digit where digits stand, so that what is damaged still looks right."""
    digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    data[draw.choice(digits or [0])] = draw.choice(b"0123456789")
    return data


def zeroed_sector(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data)) // SECTOR * SECTOR
    data[start : start + SECTOR] = bytes(len(data[start : start + SECTOR]))
    return data


def random_sector(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data)) // SECTOR * SECTOR
    data[start : start + SECTOR] = draw.randbytes(len(data[start : start + SECTOR]))
    return data


def swapped_sectors(data: bytearray, draw: random.Random) -> bytearray:
    one, other = (draw.randrange(max(len(data) // SECTOR, 1)) * SECTOR for _ in range(2))
    if max(one, other) + SECTOR <= len(data):
        data[one : one + SECTOR], data[other : other + SECTOR] = data[other : other + SECTOR], data[one : one + SECTOR]
    return data


def cut_off(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data))]


def taken_out(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data))
    del data[start : start + draw.randrange(1, 200)]
    return data


def doubled(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data))
    part = data[start : start + draw.randrange(1, 600)]
    data[draw.randrange(len(data)) : 0] = part
    return data


def joined_lines(data: bytearray, draw: random.Random) -> bytearray:
    ends = [place for place, byte in enumerate(data) if byte == ord("\n")]
    if ends:
        del data[draw.choice(ends)]
    return data


def swapped_lines(data: bytearray, draw: random.Random) -> bytearray:
    lines = bytes(data).split(b"\n")
    one, other = (draw.randrange(len(lines)) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]
    return bytearray(b"\n".join(lines))


def something_else(data: bytearray, draw: random.Random) -> bytearray:
    return bytearray(draw.choice([b"", b"\n", b"my notes\n", b"{}", b"[1]\n", bytes(4096), draw.randbytes(2000)]))


DAMAGES: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    flipped_bits, flipped_bits, other_byte, zeroed_sector, random_sector, swapped_sectors, cut_off, taken_out, doubled,
    joined_lines, swapped_lines, something_else,
)  # fmt: skip


def damaged(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """What was done, and the damaged content."""
    way = draw.choice(DAMAGES)
    return way.__name__, bytes(way(bytearray(data), draw)) if data else data

"""Lines of a checkpoint, each with a checksum: a damaged line is known by itself, and so is one of another job.

    {"format": 2, "job": {...}, "sum": "8c1f0a6be0b1d3a7"}
    [141, "yes", false, "5be1a3b2c4d58790"]     key, answer, whether max_tokens cut it short, checksum

A checksum covers the bytes before it. That of an answer starts from the digest of its job, so that an answer keeps its
owner where the first line is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import xxhash

FORMAT = 2
HEADER = f'{{"format": {FORMAT}, "job": '.encode()  # how the first line begins
_SUM = b', "sum": "'
_ANSWER = re.compile(rb', (true|false), "[0-9a-f]{16}"\]\n$')


class Answer(NamedTuple):
    """One line: the answer to the group of rows that begins with row ``key``; cut: it ends at max_tokens."""

    key: int
    text: str
    cut: bool


def job_digest(job: Mapping[str, Any]) -> int:
    """64 bits of what makes two jobs the same. job: JSON values."""
    return xxhash.xxh3_64_intdigest(json.dumps(job, sort_keys=True).encode())


def header_line(job: Mapping[str, Any]) -> bytes:
    """The first line of a checkpoint."""
    body = HEADER + json.dumps(job).encode()
    return body + _SUM + _checksum(body, 0) + b'"}\n'


def read_header(line: bytes) -> dict[str, Any] | None:
    """The job of a first line; None where it is damaged, or no such line."""
    body, found, tail = line.rpartition(_SUM)
    if not found or tail != _checksum(body, 0) + b'"}\n':
        return None
    job = json.loads(body[len(HEADER) :])
    return job if isinstance(job, dict) else None


def answer_line(answer: Answer, digest: int) -> bytes:
    """An answer of the job with that digest as a line."""
    body = json.dumps(list(answer)).encode()[:-1]
    return body + b', "' + _checksum(body, digest) + b'"]\n'


def read_answer(line: bytes, digest: int) -> Answer | None:
    """The answer of a line; None where it is damaged, or of another job."""
    body, _, tail = line.rpartition(b', "')
    if tail != _checksum(body, digest) + b'"]\n':
        return None
    key, text, cut = json.loads(body + b"]")
    return Answer(int(key), str(text), bool(cut))


def looks_like_answer(line: bytes) -> bool:
    """Whether a line has the form of an answer of this version, whatever its job."""
    return _ANSWER.search(line) is not None


def _checksum(data: bytes, seed: int) -> bytes:
    return xxhash.xxh3_64_hexdigest(data, seed).encode()

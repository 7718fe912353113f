"""Where the parameters of a text stand: ``?``, ``$1`` and ``$name``, as DuckDB reads them."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import duckdb
from duckdb import token_type

_UP_TO_A_MARKER = re.compile(r"[^\s$?]*[$?]")


@dataclass(frozen=True)
class Marker:
    """``?``, ``$1`` or ``$name`` in a text: where it stands, and what it is called; '' for ``?``."""

    start: int
    end: int
    name: str


def markers(text: str) -> list[Marker]:
    """The parameters of a text, in order."""
    tokens = _tokens(text)
    found = []
    for (start, kind), (after, _) in pairwise([*tokens, (len(text), None)]):
        if kind != token_type.operator or text[start] not in "?$":
            continue
        end = start + 1
        while end < len(text) and (text[end].isalnum() or text[end] == "_"):
            end += 1
        if text[start] == "?" or (end > start + 1 and after == start + 1):
            found.append(Marker(start, end, text[start + 1 : end]))
    return found


def _tokens(text: str) -> list[tuple[int, Any]]:
    """DuckDB's words of a text; it counts bytes."""
    tokens: list[tuple[int, Any]] = duckdb.tokenize(text)
    if text.isascii():
        return tokens
    starts = list(accumulate((len(character.encode()) for character in text), initial=0))
    return [(bisect_left(starts, place), kind) for place, kind in tokens]


def runs_on(text: str, marker: Marker) -> bool:
    """Whether sqlglot takes what stands from a ``$1`` to the next one, as in ``$1,$2``, for the start of a quote."""
    return _UP_TO_A_MARKER.match(text, marker.end) is not None


def set_apart(text: str) -> tuple[str, list[int]]:
    """The text with a space behind ``$1`` in ``$1,$2``, and the places of these spaces in it."""
    pieces, position, places = list[str](), 0, list[int]()
    for marker in markers(text):
        if text[marker.start] == "$" and runs_on(text, marker):
            places.append(marker.end + len(places))
            pieces += [text[position : marker.end], " "]
            position = marker.end
    return "".join([*pieces, text[position:]]), places

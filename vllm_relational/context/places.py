"""Where contexts are kept unless a folder is named, and how large a size in words is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vllm_relational.context.errors import ContextError

VARIABLE = "VLLM_RELATIONAL_CONTEXTS"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(i?)B?)", re.IGNORECASE)


def default_folder() -> Path:
    """The folder that the environment names, else one in the user's cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-relational" / "contexts"


def bytes_of(size: str) -> int:
    """ "200GB", "1.5 GiB" or a number of bytes. Raises ``ContextError``."""
    match = _SIZE.fullmatch(size.strip())
    unit = match[2].upper() if match is not None else ""
    if match is None or (match[3] and not unit):
        raise ContextError(f"{size!r} is no size: write 200GB, 1.5GiB or a number of bytes")
    return int(float(match[1]) * (_BINARY[unit] if match[3] else _UNITS[unit]))


def size_in_words(num_bytes: int) -> str:
    """ "201 MB"."""
    for unit, size in reversed(_UNITS.items()):
        if num_bytes >= size:
            number = num_bytes / size
            return f"{number:.1f} {unit}B" if unit and number < 10 else f"{number:.0f} {unit}B"
    return "0 B"

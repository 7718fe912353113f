"""Private memory whose slots may begin with pages of a file: what a file holds and what comes after it, side by side.

Anonymous memory is reserved without being backed; the pages of a file's region are laid over the front of a slot
(MAP_FIXED, MAP_PRIVATE). They are read when they are used, are shared with every other process that maps them, and a
write to one makes a copy of that page: the file stays as it is. Linux only; elsewhere see ``split.py``.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

_MAP_FIXED = 0x10  # Linux, any architecture that Python has wheels for
_FLAGS = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0) if sys.platform != "win32" else 0
_FAILED = ctypes.c_void_p(-1).value


def can_map(offset: int) -> bool:
    """Whether a region at this offset of a file can be laid over memory: pages may be larger than 4 KiB."""
    return sys.platform == "linux" and offset % mmap.PAGESIZE == 0


def pages(nbytes: int) -> int:
    """``nbytes`` rounded up to whole pages."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


class Arena:
    """``slots`` slots of ``stride`` bytes (whole pages) in a row, zero until written.

    ``memory`` is a buffer of all of them; it is unmapped, with all that was laid over it, when nothing refers to it any
    more. Raises ``OSError`` where the system gives no memory or no further mappings.
    """

    def __init__(self, slots: int, stride: int) -> None:
        self.stride = stride
        self.memory = mmap.mmap(-1, max(slots * stride, mmap.PAGESIZE), flags=_FLAGS | mmap.MAP_ANONYMOUS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def lay(self, slot: int, descriptor: int, offset: int, nbytes: int) -> None:
        """Show ``nbytes`` of a file, from ``offset``, at the start of a slot. The file may be closed afterwards."""
        if nbytes == 0:
            return
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        place, length = self._address + slot * self.stride, pages(nbytes)
        if _mmap()(place, length, protection, _FLAGS | _MAP_FIXED, descriptor, offset) == _FAILED:
            error = ctypes.get_errno()
            raise OSError(error, f"mapping {nbytes:,} bytes of a context failed (errno {error})")


@cache
def _mmap() -> Any:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return function

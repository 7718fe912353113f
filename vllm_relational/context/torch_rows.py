"""Keys and values of one layer, for one or several rows of a batch: a stored prefix, which all rows share, and what
each row has behind it.

``MappedRows`` shows both as one contiguous stretch of memory, without copying the prefix. ``SplitRows`` keeps the
middle of the prefix where it is stored and the rest on the model's device; attention over the two is merged.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Protocol

import torch

from vllm_relational.context.files import LayerFile, StoredKind
from vllm_relational.context.mapping import Arena, can_map, pages

ROOM = 4096  # tokens that memory is reserved for behind what a row holds; it costs address space, not memory


@dataclass(frozen=True)
class Part:
    """Keys and values ``[batch or 1, num_kv_heads, tokens, head_size]`` and the positions of these tokens, in order."""

    keys: torch.Tensor
    values: torch.Tensor
    positions: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RowShape:
    """Of the keys of one token, which is that of its values; ``device`` is that of new ones."""

    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device


class LayerRows(Protocol):
    """What a layer's keys and values are kept in. A failed ``append`` leaves everything as it was."""

    shape: RowShape
    batch: int
    length: int
    num_stored: int

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add tokens, ``[batch, num_kv_heads, new tokens, head_size]``."""
        ...

    def parts(self) -> list[Part]:
        """All tokens; views, valid until the next ``append``."""
        ...

    def take(self, rows: torch.Tensor) -> LayerRows:
        """New rows: copies of those with the given numbers."""
        ...

    def reorder(self, rows: torch.Tensor) -> None:
        """The same, of as many rows as there are, in their place."""
        ...

    def crop(self, length: int) -> None:
        """Forget all tokens from ``length`` on: not below ``num_stored``."""
        ...


class GrowingTensors:
    """Keys and values ``[batch, num_kv_heads, length, head_size]`` with room for more."""

    def __init__(self, shape: RowShape, batch: int, room: int = 0) -> None:
        self.shape, self.batch, self.length = shape, batch, 0
        self._both = self._new(room)

    def _new(self, room: int) -> torch.Tensor:
        size = (2, self.batch, self.shape.num_kv_heads, room, self.shape.head_size)
        return torch.empty(size, dtype=self.shape.dtype, device=self.shape.device)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = self.length + keys.shape[2]
        if end > self._both.shape[3]:
            larger = self._new(end + max(end // 2, 64))
            larger[..., : self.length, :] = self.both()
            self._both = larger
        self._both[0, :, :, self.length : end] = keys
        self._both[1, :, :, self.length : end] = values
        self.length = end

    def both(self) -> torch.Tensor:
        """``[2, batch, num_kv_heads, length, head_size]``."""
        return self._both[..., : self.length, :]


class MappedRows:
    """Rows in memory of which the front is mapped from the layer's file. On a CPU, under Linux."""

    def __init__(self, stored: LayerFile | None, num_stored: int, shape: RowShape, batch: int = 1) -> None:
        """``OSError`` where the system refuses to map; see ``can_be_mapped``."""
        self.shape, self.batch, self.num_stored, self.length = shape, batch, num_stored, num_stored
        self._stored = stored
        self._both = self._memory(num_stored + ROOM)

    def _memory(self, capacity: int) -> torch.Tensor:
        """``[2, batch, num_kv_heads, capacity, head_size]``, the stored tokens in front; a head's are contiguous."""
        heads, size, dtype = self.shape.num_kv_heads, self.shape.head_size, self.shape.dtype
        stride = pages(capacity * size * dtype.itemsize)
        arena = Arena(2 * self.batch * heads, stride)
        if self._stored is not None:
            self._lay(arena, self._stored)
        of_head = stride // dtype.itemsize
        strides = (self.batch * heads * of_head, heads * of_head, of_head, size, 1)
        return torch.frombuffer(arena.memory, dtype=dtype).as_strided((2, self.batch, heads, capacity, size), strides)

    def _lay(self, arena: Arena, stored: LayerFile) -> None:
        heads, bytes_of_token = self.shape.num_kv_heads, self.shape.head_size * self.shape.dtype.itemsize
        for slot in range(2 * self.batch * heads):
            kind: StoredKind = "keys" if slot < self.batch * heads else "values"
            offset, _ = stored.region(kind, slot % heads)
            arena.lay(slot, stored.fileno(), offset, self.num_stored * bytes_of_token)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add tokens, ``[batch, num_kv_heads, new tokens, head_size]``."""
        end = self.length + keys.shape[2]
        if end > self._both.shape[3]:
            larger = self._memory(max(end, 2 * self.length - self.num_stored) + ROOM)
            larger[..., self.num_stored : self.length, :] = self._new_tokens()
            self._both = larger
        self._both[0, :, :, self.length : end] = keys
        self._both[1, :, :, self.length : end] = values
        self.length = end

    def _new_tokens(self) -> torch.Tensor:
        return self._both[..., self.num_stored : self.length, :]

    def parts(self) -> list[Part]:
        """One part."""
        both = self._both[..., : self.length, :]
        return [Part(both[0], both[1], ((0, self.length),))]

    def take(self, rows: torch.Tensor) -> LayerRows:
        """New rows: copies of those with the given numbers; the prefix is mapped again."""
        taken = open_rows(self._stored, self.num_stored, self.shape, (0, self.num_stored), batch=len(rows))
        new = self._new_tokens()[:, rows]
        taken.append(new[0], new[1])
        return taken

    def reorder(self, rows: torch.Tensor) -> None:
        """The same, of as many rows as there are, in their place: nothing is mapped again."""
        self._new_tokens().copy_(self._new_tokens()[:, rows])

    def crop(self, length: int) -> None:
        """Forget all tokens from ``length`` on: not below ``num_stored``."""
        self.length = length


def can_be_mapped(stored: LayerFile | None, device: torch.device) -> bool:
    """Whether ``MappedRows`` are possible."""
    return device.type == "cpu" and can_map(0 if stored is None else stored.region("keys", 0)[0])


class SplitRows:
    """The stored tokens ``far`` stay in the file's pages, in host memory, shared by all rows; all others are on the
    device: those in front of them, those behind them, new ones."""

    def __init__(
        self, stored: LayerFile | None, num_stored: int, shape: RowShape, far: tuple[int, int], batch: int = 1
    ) -> None:
        self.shape, self.batch, self.num_stored, self.length = shape, batch, num_stored, num_stored
        self._stored = stored
        self._far = (min(far), max(far)) if stored is not None and far[0] < far[1] else (num_stored, num_stored)
        self._near = GrowingTensors(shape, batch)
        if stored is not None:
            self._whole = stored_tensors(stored)
            for start, stop in ((0, self._far[0]), (self._far[1], num_stored)):
                keys, values = self._whole[:, None, :, start:stop].expand(-1, batch, -1, -1, -1)
                self._near.append(keys, values)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add tokens, ``[batch, num_kv_heads, new tokens, head_size]``."""
        self._near.append(keys, values)
        self.length += keys.shape[2]

    def parts(self) -> list[Part]:
        """The tokens on the device, and those that are not, if any."""
        start, stop = self._far
        keys, values = self._near.both()
        near = Part(keys, values, ((0, start), (stop, self.length)))
        if start == stop:
            return [near]
        far = self._whole[:, None, :, start:stop]
        return [near, Part(far[0], far[1], (self._far,))]

    def take(self, rows: torch.Tensor) -> SplitRows:
        """New rows: copies of those with the given numbers; the far tokens are shared."""
        taken = SplitRows(self._stored, self.num_stored, self.shape, self._far, len(rows))
        kept = taken._near.length
        new = self._near.both()[:, rows.to(self.shape.device), :, kept:]
        taken.append(new[0], new[1])
        return taken

    def reorder(self, rows: torch.Tensor) -> None:
        """The same, of as many rows as there are, in their place."""
        both = self._near.both()
        both.copy_(both[:, rows.to(self.shape.device)])

    def crop(self, length: int) -> None:
        """Forget all tokens from ``length`` on: not below ``num_stored``."""
        self._near.length -= self.length - length
        self.length = length


def open_rows(
    stored: LayerFile | None,
    num_stored: int,
    shape: RowShape,
    far: tuple[int, int],
    *,
    batch: int = 1,
    contiguous: bool = True,
) -> LayerRows:
    """``MappedRows`` where they are wanted and possible, else ``SplitRows``, which give the same up to rounding."""
    if contiguous and can_be_mapped(stored, shape.device):
        try:
            return MappedRows(stored, num_stored, shape, batch)
        except OSError:  # no address space, or no mappings left: a process may have 65,530
            pass
    return SplitRows(stored, num_stored, shape, far, batch)


def outside(part: Part, span: tuple[int, int]) -> list[Part]:
    """The tokens of a part whose positions are not in ``[start, stop)``, as views."""
    kept, place = [], 0
    for start, stop in part.positions:
        for first, last in ((start, min(stop, span[0])), (max(start, span[1]), stop)):
            if first < last:
                here = slice(place + first - start, place + last - start)
                kept.append(Part(part.keys[:, :, here], part.values[:, :, here], ((first, last),)))
        place += stop - start
    return kept


def stored_tensors(stored: LayerFile) -> torch.Tensor:
    """``[2, num_kv_heads, num_tokens, head_size]`` in the file's pages: read when used, not to be written to."""
    shape = stored.shape
    dtype: torch.dtype = getattr(torch, shape.dtype)
    private = mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_COPY)  # torch takes no read-only memory
    flat = torch.frombuffer(private, dtype=dtype)
    offset, values_offset = (stored.region(kind, 0)[0] // dtype.itemsize for kind in ("keys", "values"))
    strides = (values_offset - offset, shape.stride // dtype.itemsize, shape.head_size, 1)
    return flat.as_strided((2, shape.num_kv_heads, shape.num_tokens, shape.head_size), strides, offset)

"""The token ids of a session's text: those whose keys and values are there, and those that are known to follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_relational.context.errors import ContextError


class SessionMisuseError(ContextError):
    """What would give wrong answers: a session used with other tokens, at other positions, or half a forward pass."""


@dataclass(frozen=True, eq=False)
class Text:
    """``ids``: int64 ``[rows, tokens]``; ``seen``: bool, false for padding, of the same shape. Never changed."""

    ids: np.ndarray
    seen: np.ndarray

    @classmethod
    def of(cls, ids: Any, seen: Any = None) -> Text:
        """Of ids ``[tokens]`` or ``[rows, tokens]``, all of them seen unless it is said."""
        array = np.asarray(ids)
        if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
            raise ContextError(
                f"token ids must be whole numbers, [tokens] or [rows, tokens]: {array.dtype} {array.shape}"
            )
        array = np.atleast_2d(array).astype(np.int64)
        return cls(array, np.ones(array.shape, bool) if seen is None else np.broadcast_to(seen, array.shape))

    @property
    def rows(self) -> int:
        """How many texts."""
        return len(self.ids)

    def __len__(self) -> int:
        return int(self.ids.shape[1])

    def __getitem__(self, places: slice) -> Text:
        return Text(self.ids[:, places], self.seen[:, places])

    def select(self, rows: np.ndarray) -> Text:
        """The rows with these numbers."""
        return Text(self.ids[rows], self.seen[rows])

    def then(self, other: Text) -> Text:
        """One behind the other; a single row goes with each of several."""
        rows = max(self.rows, other.rows)
        if not {self.rows, other.rows} <= {1, rows}:
            raise SessionMisuseError(f"{other.rows} rows of tokens for a session of {self.rows} rows")
        ids, seen = (
            np.concatenate([np.broadcast_to(a, (rows, a.shape[1])), np.broadcast_to(b, (rows, b.shape[1]))], 1)
            for a, b in ((self.ids, other.ids), (self.seen, other.seen))
        )
        return Text(ids, seen)

    def followed(self, new: Text, start: int) -> Text:
        """With ``new`` from ``start`` on. Raises ``SessionMisuseError`` where other tokens are known to stand there."""
        known = self[start:][: len(new)]
        expected, given = np.broadcast_arrays(known.ids, new.ids[:, : len(known)]) if len(known) else (known.ids,) * 2
        if not np.array_equal(expected, given):
            row, place = np.argwhere(expected != given)[0]
            raise SessionMisuseError(
                f"token {start + place} of the session's text is {expected[row, place]}, but the model was given "
                f"{given[row, place]}: this is another text than the session was made for. Make a session for it with "
                "db.create_session, or call session.expect(None) if the text shall go on differently"
            )
        return self[:start].then(new).then(self[start + len(new) :])

"""What goes wrong in a way that a user can mend."""

from __future__ import annotations


class RelationalError(Exception):
    """Something a user can mend: the message says what happened, where, and how to fix it."""


class EngineDiedError(RelationalError):
    """The engine stopped answering: the job ends, what was answered so far stays in the checkpoint."""


class RowFailedError(RelationalError):
    """A row failed and the caller asked for ``on_error='raise'``."""

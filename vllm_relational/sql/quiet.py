"""sqlglot's log, which speaks of its classes: users read what this package and DuckDB say of their SQL."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_ours = ContextVar("_is_ours", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """While inside, sqlglot logs nothing in this thread. Its log stays as it is for a program with uses of its own."""
    before = _is_ours.set(True)
    try:
        yield
    finally:
        _is_ours.reset(before)


logging.getLogger("sqlglot").addFilter(lambda record: not _is_ours.get())

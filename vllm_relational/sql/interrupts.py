"""Ctrl-C while DuckDB computes: Python's handler has to wait until DuckDB returns, which may be long."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import duckdb

from vllm_relational.records import RelationalError

# What DuckDB says of it: of a query, and of a function of ours that a query calls.
_SIGNS = ("Query interrupted", "INTERRUPT Error", "executing the UDF: KeyboardInterrupt")
_DONE = b"\0"  # no signal has this number


class Interrupted(Protocol):
    """A connection, or what stands for one."""

    def interrupt(self) -> None:
        """End the query that is running."""


@contextmanager
def interrupts() -> Iterator[None]:
    """Within, Ctrl-C is a ``KeyboardInterrupt``: DuckDB makes another error of one that comes during its calls."""
    try:
        yield
    except (RuntimeError, duckdb.Error, RelationalError) as error:
        if any(sign in str(error) for sign in _SIGNS):
            raise KeyboardInterrupt from error
        raise


@contextmanager
def interruptible(connection: Interrupted) -> Iterator[None]:
    """Within, Ctrl-C ends the connection's query and is a ``KeyboardInterrupt``. Only for queries."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader, connection), daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        with interrupts():
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, _DONE)
        watcher.join()
        os.close(reader)
        os.close(writer)


def _watch(reader: int, connection: Interrupted) -> None:
    """Python writes the number of a signal as it arrives, whatever its main thread does."""
    while (number := os.read(reader, 1)) != _DONE:
        if number[0] == signal.SIGINT:
            connection.interrupt()

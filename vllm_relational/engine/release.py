"""An engine that nobody holds any more is stopped, so that its memory is free for the next one.

A notebook cell that makes a ``RelationalLLM`` and is run again drops the one before; its engine process must go with
it. Three moments need care:
- In a forked child, dropping the object must not stop the parent's engine.
- Inside of a garbage collection, which may begin at any allocation, a lock that stopping needs may be held by the very
  code that was interrupted. A thread of its own stops the engine then, and the next start waits for it.
- At the interpreter's end no thread can be started, and none is needed.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

# How long a start, or the interpreter's end, waits for engines that are being stopped.
WAIT_SECONDS = 30.0

_collecting_thread: int | None = None
_being_stopped: list[threading.Event] = []


def stop_when_dropped(owner: Any, stop: Callable[[], None]) -> weakref.finalize[..., Any]:
    """Call ``stop`` when ``owner`` is gone or the interpreter ends; ``detach()`` the result to take that back.

    stop: must not refer to ``owner``.
    """
    return weakref.finalize(owner, _stop_once, stop, os.getpid())


def wait_for_stopped() -> None:
    """Wait until the engines that are being stopped are gone."""
    for stopped in list(_being_stopped):
        stopped.wait(WAIT_SECONDS)


def _stop_once(stop: Callable[[], None], pid: int) -> None:
    if os.getpid() != pid:
        return
    stopped = threading.Event()
    if _collecting_thread == threading.get_ident() and not sys.is_finalizing():
        _being_stopped.append(stopped)
        # Not threading.Thread: its start() takes a lock that the interrupted code may hold.
        _thread.start_new_thread(_stop, (stop, stopped))
    else:
        _stop(stop, stopped)


def _stop(stop: Callable[[], None], stopped: threading.Event) -> None:
    try:
        with contextlib.suppress(Exception):  # nobody is there to hear of it, and the process may be dead already
            stop()
    finally:
        stopped.set()
        if stopped in _being_stopped:
            _being_stopped.remove(stopped)


def _note_collection(phase: str, _: dict[str, int]) -> None:
    global _collecting_thread
    _collecting_thread = threading.get_ident() if phase == "start" else None


gc.callbacks.append(_note_collection)
atexit.register(wait_for_stopped)

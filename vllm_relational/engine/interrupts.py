"""Ctrl-C belongs to the process that the user talks to, not to its engine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def children_without_interrupts() -> Iterator[None]:
    """Processes started inside never receive SIGINT; this process still does.

    A terminal sends Ctrl-C to the whole process group. An engine that received it would die at once, and answers
    under way with it, while this process is still putting the job away. Children inherit the mask of blocked signals,
    and it outlives the signal handlers that vLLM installs in them. Meanwhile another thread of this process takes
    the signal, so that loading a large model can be interrupted.
    """
    resource_tracker.ensure_running()  # it would unblock SIGINT when started later
    done = threading.Event()
    receiver = threading.Thread(target=done.wait, name="interrupt-receiver", daemon=True)
    receiver.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()

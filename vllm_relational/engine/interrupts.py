"""Ctrl-C belongs to the process that the user talks to, not to its engine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

POLL_SECONDS = 0.2


@contextmanager
def starting_engine() -> Iterator[None]:
    """Start an engine inside: its processes never receive SIGINT, and Ctrl-C still ends the start.

    A terminal sends Ctrl-C to the whole process group. An engine that received it would die at once, and the answers
    under way with it, while this process is still putting the job away. Children inherit the mask of blocked signals,
    and it outlives the signal handlers that vLLM installs in them.

    vLLM 0.32.0 swallows a KeyboardInterrupt that comes while it waits for its engine (``zmq_socket_ctx``) and goes on
    waiting. So an interrupt is only noted, the engine processes begun so far are killed, which ends the wait, and
    KeyboardInterrupt is raised at the end. Outside the main thread, Python allows no handlers: there only the mask is
    set.
    """
    resource_tracker.ensure_running()  # it would unblock SIGINT when started later
    watch = _Watch()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    except BaseException as error:
        if watch.interrupted.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        watch.stop()
    if watch.interrupted.is_set():
        raise KeyboardInterrupt


class _Watch:
    """Notes SIGINT at once, whatever the main thread waits for, and kills the children begun since."""

    def __init__(self) -> None:
        self.interrupted = threading.Event()
        self._done = threading.Event()
        self._elders = {child.pid for child in multiprocessing.active_children()}
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            # Python runs handlers in the main thread, which may be inside a long call; the wakeup file is written by
            # the C handler itself.
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._old_handler = signal.signal(signal.SIGINT, self._note)
            threading.Thread(target=self._listen, name="interrupt-watch", daemon=True).start()

    def stop(self) -> None:
        if self._in_main:
            signal.set_wakeup_fd(self._old_wakeup)
            signal.signal(signal.SIGINT, self._old_handler)
            self._done.set()
            os.close(self._write)  # ends the listener's read

    def _note(self, *_: Any) -> None:
        self.interrupted.set()

    def _listen(self) -> None:
        with os.fdopen(self._read, "rb", buffering=0) as signals:
            while byte := signals.read(1):
                if byte[0] == signal.SIGINT:
                    self.interrupted.set()
                    break
            while self.interrupted.is_set() and not self._done.wait(POLL_SECONDS):
                self._kill_children()

    def _kill_children(self) -> None:
        for child in multiprocessing.active_children():
            if child.pid not in self._elders:
                child.kill()

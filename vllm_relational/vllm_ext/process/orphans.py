"""An engine process must not outlive the process that asks it.

After ``kill -9`` of the asking process, vLLM 0.32.0's engine process stays for ever and keeps its memory: the resumed
run then finds the GPU full. Each engine process started by ``owning_children`` waits for its owner's end and then ends
itself. Spawned children hear of it through the plugin entry point, forked ones through ``os.register_at_fork``.
Drop this file when vLLM's engine process watches its parent as its workers do.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OWNER_VARIABLE = "VLLM_RELATIONAL_OWNER"
# An engine that has not stopped by itself this long after its owner's end is killed.
GRACE_SECONDS = 10.0

_fork_hook_installed = False


@contextmanager
def owning_children() -> Iterator[None]:
    """Engine processes started inside end when this process ends, however it ends."""
    _install_fork_hook()
    os.environ[OWNER_VARIABLE] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(OWNER_VARIABLE, None)


def follow_owner() -> None:
    """In a child of the owner: start the thread that waits for the owner's end. Elsewhere: do nothing.

    Workers are children of the engine process and follow that one already.
    """
    owner = int(os.environ.get(OWNER_VARIABLE) or 0)
    if owner and os.getppid() == owner and hasattr(os, "pidfd_open"):
        threading.Thread(target=_end_after, args=(owner,), name="owner-watch", daemon=True).start()


def _install_fork_hook() -> None:
    global _fork_hook_installed
    if not _fork_hook_installed:
        os.register_at_fork(after_in_child=follow_owner)
        _fork_hook_installed = True


def _end_after(owner: int) -> None:
    try:
        handle = os.pidfd_open(owner)
    except OSError:  # gone already, or a kernel without pidfd
        handle = -1
    if handle >= 0:
        select.select([handle], [], [])
    if os.getppid() == owner:  # no pidfd and the owner lives: nothing to wait on
        return
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)

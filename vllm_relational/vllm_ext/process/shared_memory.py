"""Shared memory of an engine whose processes ended without removing it.

vLLM 0.32.0's workers answer their engine through a queue in shared memory (``MessageQueue``) and are ended by a signal
before they remove it. It would stay until this process ends, and Python's resource tracker would then warn of it. An
engine that was killed also leaves the CPU memory that its blocks go to (``SharedOffloadRegion``), many GiB.
Drop this file when a started and stopped ``vllm.LLM`` leaves nothing in /dev/shm.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

# As Python's ``SharedMemory`` names what it makes, and vLLM its memory for offloading.
_OFFLOAD = "vllm_offload_"
_MAPPED = re.compile(rf"/dev/shm/(psm_[0-9a-f]+|{_OFFLOAD}[\w-]+\.mmap)$", re.MULTILINE)
WAIT_SECONDS = 5.0


def processes_of(llm: Any) -> list[Any]:
    """The engine processes of a ``vllm.LLM`` and their children, as ``psutil`` knows them."""
    import psutil  # vLLM needs it

    manager = getattr(llm.llm_engine.engine_core.resources, "engine_manager", None)
    found = []
    for engine in getattr(manager, "processes", ()):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(engine.pid)
            found += [process, *process.children(recursive=True)]
    return found


def mapped_by(processes: Iterable[Any]) -> set[str]:
    """The names of the shared memory that these processes hold."""
    names: set[str] = set()
    for process in processes:
        with contextlib.suppress(OSError):
            names.update(_MAPPED.findall(Path(f"/proc/{process.pid}/maps").read_text()))
    return names


def remove_left_over(names: Iterable[str], processes: Iterable[Any]) -> None:
    """Remove what of the shared memory is still there when its processes are gone; where one lives on, nothing."""
    import psutil

    _, alive = psutil.wait_procs(list(processes), timeout=WAIT_SECONDS)
    for name in names if not alive else ():
        if name.startswith(_OFFLOAD):
            Path("/dev/shm", name).unlink(missing_ok=True)
        elif Path("/dev/shm", name).exists():
            with contextlib.suppress(OSError):
                left = shared_memory.SharedMemory(name=name)  # registers the name once more: a set, so no second time
                left.close()
                left.unlink()

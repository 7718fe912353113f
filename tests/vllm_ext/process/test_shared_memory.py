"""Shared memory that an engine's processes leave is removed, and Python's resource tracker has nothing to warn of."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from vllm_relational.vllm_ext.process.shared_memory import mapped_by, remove_left_over

pytest.importorskip("psutil")

# A child that is killed while it holds shared memory, as vLLM's workers are; a grandchild of the engine, too.
LEAVES = """
import multiprocessing, os, sys, time, types
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

def hold(names):
    held = shared_memory.SharedMemory(create=True, size=4096)
    held.buf[0] = 1
    names.put(held.name)
    time.sleep(60)

if __name__ == "__main__":
    from vllm_relational.vllm_ext.process.shared_memory import mapped_by, processes_of, remove_left_over
    resource_tracker.ensure_running()
    context = multiprocessing.get_context("spawn")
    names = context.Queue()
    child = context.Process(target=hold, args=(names,))
    child.start()
    name = names.get()
    manager = types.SimpleNamespace(processes=[child])
    core = types.SimpleNamespace(resources=types.SimpleNamespace(engine_manager=manager))
    processes = processes_of(types.SimpleNamespace(llm_engine=types.SimpleNamespace(engine_core=core)))
    found = mapped_by(processes)
    child.kill()
    child.join()
    there = Path("/dev/shm", name).exists()
    if sys.argv[1] == "removes":
        remove_left_over(found, processes)
    print(found == {name}, there, Path("/dev/shm", name).exists())
"""


@pytest.mark.parametrize(("does", "left", "warns"), [("removes", False, False), ("nothing", True, True)])
def test_what_a_killed_process_leaves_is_removed(tmp_path, does, left, warns):
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    done = subprocess.run([sys.executable, str(script), does], capture_output=True, text=True)
    assert done.stdout == f"True True {left}\n", done.stderr
    assert ("resource_tracker" in done.stderr) == warns


OFFLOADS = """
import mmap, sys, time
with open(sys.argv[1], "w+b") as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 4096)
    held[0] = 1
    print("held", flush=True)
    time.sleep(60)
"""


def test_memory_for_offloading_that_a_killed_engine_leaves_is_removed():
    import psutil

    path = Path("/dev/shm", f"vllm_offload_{uuid.uuid4()}_dp0.mmap")
    held = subprocess.Popen([sys.executable, "-c", OFFLOADS, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert held.stdout.readline() == "held\n"
        processes = [psutil.Process(held.pid)]
        assert mapped_by(processes) == {path.name}
        held.kill()
        held.wait()
        remove_left_over({path.name}, processes)
        assert not path.exists()
    finally:
        held.kill()
        path.unlink(missing_ok=True)

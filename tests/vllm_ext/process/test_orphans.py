"""An engine process ends with the process that asks it; no engine is started here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from vllm_relational.vllm_ext.process.orphans import OWNER_VARIABLE, owning_children

CHILD = """
import os, signal, threading
from vllm_relational.vllm_ext.process.orphans import follow_owner
follow_owner()
print(os.getpid(), threading.active_count() - 1, flush=True)
signal.pause()
"""
OWNER = f"""
import subprocess, sys
from vllm_relational.vllm_ext.process.orphans import owning_children
with owning_children():
    child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), flush=True)
child.wait()
"""


def test_children_started_inside_know_their_owner():
    assert OWNER_VARIABLE not in os.environ
    with owning_children():
        assert os.environ[OWNER_VARIABLE] == str(os.getpid())
    assert OWNER_VARIABLE not in os.environ


def test_a_process_that_nobody_owns_or_another_one_does_not_watch():
    environment = {**os.environ, OWNER_VARIABLE: "1"}
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout.readline().split()[1] == "0"
        child.terminate()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_owner_however_it_ends(end):
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        pid, watchers = map(int, owner.stdout.readline().split())
        assert watchers == 1
        os.kill(owner.pid, end)
    assert wait_until_gone(pid)


def wait_until_gone(pid: int) -> bool:
    for _ in range(600):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    """A process that ended and was not waited for yet counts as gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""An engine that nobody holds is stopped, wherever Python notices that it is gone."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time

import pytest

from vllm_relational.engine.release import stop_when_dropped, wait_for_stopped


class Owner:
    finalizer: object


def dropped(stop) -> Owner:
    owner = Owner()
    owner.finalizer = stop_when_dropped(owner, stop)
    return owner


def test_the_last_reference_stops_the_engine_at_once():
    stopped = []
    owner = dropped(lambda: stopped.append(threading.get_ident()))
    assert stopped == []
    del owner
    assert stopped == [threading.get_ident()]


@pytest.mark.slow
def test_a_collection_hands_over_to_another_thread_and_a_start_waits_for_it():
    stopped = []

    def slow() -> None:
        time.sleep(0.2)
        stopped.append(threading.get_ident())

    owner = dropped(slow)
    owner.itself = owner
    del owner
    gc.collect()
    wait_for_stopped()
    assert len(stopped) == 1 and stopped != [threading.get_ident()]


@pytest.mark.slow
def test_what_is_taken_back_does_not_happen():
    stopped = []
    owner = dropped(lambda: stopped.append(1))
    owner.finalizer.detach()
    del owner
    gc.collect()
    wait_for_stopped()
    assert stopped == []


def test_a_stop_that_fails_disturbs_nobody(capfd):
    owner = dropped(lambda: 1 / 0)
    del owner
    wait_for_stopped()
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_stops_nothing(tmp_path):
    note = tmp_path / "stopped"
    owner = dropped(lambda: note.write_text(str(os.getpid())))
    child = os.fork()
    if child == 0:
        del owner
        os._exit(int(note.exists()))
    assert os.waitpid(child, 0)[1] == 0
    del owner
    assert note.read_text() == str(os.getpid())


@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt", "sys.exit(3)"])
def test_the_end_of_the_interpreter_stops_the_engine_once(ending):
    script = (
        "import sys\nfrom vllm_relational.engine.release import stop_when_dropped\n"
        "class Owner: pass\nowner = Owner()\nkept = stop_when_dropped(owner, lambda: print('stopped'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script + ending], capture_output=True, text=True)
    assert done.stdout == "stopped\n"


def test_the_interpreter_waits_for_an_engine_that_is_being_stopped():
    script = """
import gc, time
from vllm_relational.engine.release import stop_when_dropped
class Owner: pass
def slow():
    time.sleep(0.5)
    print("stopped", flush=True)
owner = Owner()
owner.itself = owner
stop_when_dropped(owner, slow)
del owner
gc.collect()
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "stopped\n"

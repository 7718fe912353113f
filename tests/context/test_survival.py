"""Short, repeatable forms of what scripts/robustness tries at random: kills, failing disks, two writers, a lock."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from contextlib import suppress

import pytest
from contexts_made import FINGERPRINT, holds, put

from vllm_relational.context import DB, ContextError, commit, store

pytestmark = pytest.mark.slow  # every disk step of every change is failed once


@pytest.fixture
def db(tmp_path):
    return DB(tmp_path / "db")


def damage(db, context):
    path = db.path / FINGERPRINT / context / "layer_00.kv"
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)


def test_two_writers_of_one_context_leave_one(db, monkeypatch):
    """Both see that it is not there, both write it, the second finds it in its place."""
    both = threading.Barrier(2)
    write = store.write_context
    monkeypatch.setattr(store, "write_context", lambda *given: (write(*given), both.wait(10)))
    found = []
    threads = [
        threading.Thread(target=lambda salt=salt: found.append(put(DB(db.path), range(100), salt=salt)))
        for salt in (0, 0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(set(found)) == 1
    assert holds(db.find(range(100), FINGERPRINT)[0], range(100)) and db.verify() == []
    assert not list(db.path.glob(".t*"))


@pytest.mark.parametrize("step", range(61))  # all that there are, and none
def test_a_kill_between_any_two_steps_loses_nothing_old(db, step):
    """The process ends at its n-th change of the disk: nothing after that happens, not even cleaning up."""
    old, damaged = put(db, range(50)), put(db, range(60))
    damage(db, damaged)
    with pytest.MonkeyPatch.context() as patched:
        _stop_after(step, patched)
        with suppress(KeyboardInterrupt):
            put(DB(db.path), range(100))
            put(DB(db.path), range(60))
            db.delete(damaged)
    after = DB(db.path)
    with warnings.catch_warnings(action="ignore"):  # of the damaged one, where it is still there
        stored, matched = after.find(range(100), FINGERPRINT)
    assert matched >= 50 and holds(stored)
    assert put(after, range(100)) and put(after, range(60))
    assert after.verify() == [] and old in {info.id for info in after.list()}
    assert not list(db.path.glob(".t*"))


def _stop_after(step, patched):
    left = [step]

    def ends(function):
        def wrapped(*given, **more):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return function(*given, **more)

        return wrapped

    for home, name in ((os, "rename"), (os, "write"), (os, "fsync"), (commit.shutil, "rmtree")):
        patched.setattr(home, name, ends(getattr(home, name)))


@pytest.mark.parametrize("step", ["write", "fsync", "rename", "open", "mkdir"])
@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("forever", [False, True])
def test_a_disk_that_fails_at_any_step_loses_nothing(db, step, number, forever):
    put(db, range(50))
    with pytest.MonkeyPatch.context() as patched:
        whole, calls = getattr(os, step), []

        def fails(*given, **more):
            calls.append(1)
            if len(calls) == number or (forever and len(calls) > number):
                raise OSError(errno.ENOSPC, "No space left on device")
            return whole(*given, **more)

        patched.setattr(os, step, fails)
        with suppress(ContextError):
            put(db, range(100))
    after = DB(db.path)
    stored, matched = after.find(range(100), FINGERPRINT)
    assert matched >= 50 and holds(stored)
    assert put(after, range(100)) and after.verify() == [] and not list(db.path.glob(".t*"))


def test_a_process_that_stopped_while_it_held_the_lock_is_told(db, monkeypatch):
    context = put(db, range(50))
    monkeypatch.setattr(commit, "WAIT_SECONDS", 0.02)
    with commit.locked(db.path):
        for change in (lambda: put(db, 1), lambda: db.delete(context)):
            with pytest.raises(ContextError, match="another process has held"):
                change()
        assert db.find(range(50), FINGERPRINT)[1] == 50


def test_a_full_disk_is_told_and_leaves_nothing(db, monkeypatch):
    old = put(db, range(50))
    whole = os.write

    def full(descriptor, data):
        if len(data) > 4096:
            raise OSError(28, "No space left on device")
        return whole(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ContextError, match="No space left on device; delete contexts"):
        put(db, range(1000))
    monkeypatch.undo()
    assert [info.id for info in db.list()] == [old] and not list(db.path.glob(".t*"))


def test_a_disk_without_room_is_told_before_anything_is_written(db, monkeypatch):
    room = os.statvfs(db.path)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*room[:4], 0, *room[5:])))
    monkeypatch.setattr(store, "write_context", lambda *given: pytest.fail("written"))
    with pytest.raises(ContextError, match="no room"):
        put(db, range(1000))

"""Stores into a context database whose disk is full, or fails at any step: an error that says so, and nothing changes.

    python scripts/robustness/context_full_disk.py 300         # cases 0 to 299
    python scripts/robustness/context_full_disk.py 10 --start 40 --show

A case fails one step of a store, or of a delete: the n-th write, sync, rename, or opening of a file, with the error of
a full disk, of a broken one, or of missing rights. Or it runs under a limit of the size of files (RLIMIT_FSIZE), or,
where this process may mount one, on a disk of a few MB that another file fills up (tmpfs), at times without looking for
room beforehand. The store must raise ``ContextError`` or succeed, contexts that were there must be as they were, no
half-written file may be left, and once there is room again the store must succeed. Exits with 1 otherwise. Needs Linux.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import numbered_cases
from contexts_made import FINGERPRINT, holds, put, tokens

from vllm_relational.context import DB, ContextError, commit

OLD, NEW = (range(500),), (range(20_000),)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS)
STEPS = ("write", "fsync", "rename", "open", "mkdir")
SMALL_DISK = 6_000_000  # bytes; the new context has 2.6 MB


@contextmanager
def failing(step: str, at: int, code: int, forever: bool) -> Iterator[None]:
    """The n-th call of a function of ``os`` fails, or all from it on."""
    whole, calls = getattr(os, step), [0]

    def fails(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == at or (forever and calls[0] > at):
            raise OSError(code, os.strerror(code))
        return whole(*given, **more)

    setattr(os, step, fails)
    try:
        yield
    finally:
        setattr(os, step, whole)


@contextmanager
def limited(most: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def filled(folder: Path, room: int, looks: bool) -> Iterator[None]:
    """So little room is left on the disk of a folder. looks: whether a store sees that beforehand."""
    check = commit.check_room
    if not looks:
        commit.check_room = lambda root, wanted: None
    free = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(max(free.f_bavail * free.f_frsize - room, 0)))
    try:
        yield
    finally:
        filler.unlink()
        commit.check_room = check


def trouble(draw: random.Random, folder: Path, is_small: bool) -> tuple[str, Any]:
    """What goes wrong, in words and as a context manager."""
    if is_small and draw.random() < 0.4:
        room = draw.randrange(0, 2_000_000)
        return f"{room} bytes left", filled(folder, room, draw.random() < 0.3)
    if draw.random() < 0.2:
        most = draw.randrange(0, 400_000)
        return f"files of {most} bytes", limited(most)
    step, at = draw.choice(STEPS), draw.randrange(1, 10)
    code, forever = draw.choice(ERRORS), draw.random() < 0.5
    return f"{errno.errorcode[code]} at {step} {at}{' and later' * forever}", failing(step, at, code, forever)


def attempt(action: Callable[[], Any]) -> str:
    try:
        action()
        return "went on"
    except ContextError as error:
        return "refused" if len(str(error)) > 40 else f"no reason: {error}"


def case(draw: random.Random, folder: Path, is_small: bool) -> tuple[str, str | None]:
    """What was done, and what is wrong then; None where nothing is."""
    path = folder / "db"
    db = DB(path)
    put(db, *OLD)
    deletes = draw.random() < 0.2
    if deletes:
        put(db, *NEW)
    what, troubled = trouble(draw, folder, is_small)
    new = {info.num_tokens: info.id for info in db.list()}.get(20_000, "")
    with troubled:
        ended = attempt(lambda: db.delete(new) if deletes else put(db, *NEW))
    return f"{what}, {'delete' if deletes else 'store'} {ended}", problem_of(path, ended)


def problem_of(path: Path, ended: str) -> str | None:
    if ended not in ("went on", "refused"):
        return ended
    db = DB(path)
    for parts in (OLD, NEW):
        found = db.find(tokens(*parts), FINGERPRINT)
        if found is None or found[1] < 500 or not holds(found[0]):
            return f"{parts} cannot be found any more"
    if attempt(lambda: put(db, *NEW)) != "went on":
        return "with room again, it is refused"
    if db.verify() or not holds(db.find(tokens(*NEW), FINGERPRINT)[0], *NEW):
        return f"stored again, but {db.verify()}"
    left = [each.name for each in path.iterdir() if each.name.startswith((".tmp-", ".trash-"))]
    shutil.rmtree(path)
    return f"left over: {left}" if left else None


def run_cases(numbers: Iterable[int], show: bool = False) -> list[str]:
    """Run the cases of these numbers; what went wrong."""
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="contexts-full-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "contexts", str(folder)]
    is_small = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        for number in numbers:
            what, problem = case(random.Random(number), folder, is_small)
            counts[what.rpartition(", ")[2]] += 1
            if problem is not None:
                wrong.append(f"case {number}, {what}: {problem}")
            if problem is not None or show:
                print(f"case {number}, {what}: {problem or 'right'}", flush=True)
            shutil.rmtree(folder / "db", ignore_errors=True)
    finally:
        if is_small:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)  # files of it may be mapped still
        shutil.rmtree(folder)
    print("on a small disk" if is_small else "no small disk could be mounted", dict(sorted(counts.items())))
    return wrong


if __name__ == "__main__":
    sys.exit(numbered_cases.main(__doc__, "cases", run_cases))

"""Processes that store, delete and evict in one context database while others read it: nothing wrong, nothing lost.

    python scripts/robustness/context_processes.py 5                       # five rounds
    python scripts/robustness/context_processes.py 1 --show

In a round of ``SECONDS`` two processes store contexts, some of them the same, one deletes, one stores under a limit and
so evicts, and two read: each holds on to what it found, and compares its bits at once and again after a while, when it
may long be deleted. Nobody may fail or get wrong bits. Then contexts that nobody deletes or evicts must be there, and
nothing may be damaged or left over. Exits with 1 otherwise. Needs Linux.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import numbered_cases
from contexts_made import FINGERPRINT, OTHER, holds, put, tokens

from vllm_relational.context import DB, ContextError

SECONDS = 6.0
KEPT, NUM_KINDS = range(0, 6), 30  # the first are never deleted
HELD = 5  # contexts that a reader holds on to


def parts_of(number: int) -> tuple[range | int, ...]:
    return range(300), number, range(50 * number)


def store(folder: Path, draw: random.Random, end: float) -> None:
    db = DB(folder)
    while time.monotonic() < end:
        put(db, *parts_of(draw.randrange(NUM_KINDS)))


def delete(folder: Path, draw: random.Random, end: float) -> None:
    db = DB(folder)
    kept = {put(db, *parts_of(number)) for number in KEPT}
    while time.monotonic() < end:
        there = [info.id for info in db.list() if info.id not in kept and info.fingerprint == FINGERPRINT]
        try:
            db.delete(draw.choice([*there, "0" * 32]))
        except ContextError as error:
            assert "no context" in str(error), error  # another process was faster
        time.sleep(draw.random() * 0.02)


def evict(folder: Path, draw: random.Random, end: float) -> None:
    """In a database of its own, which the readers read too: the others' would fill it at once."""
    db = DB(folder / "limited", max_bytes=1_500_000)
    while time.monotonic() < end:
        put(db, *parts_of(draw.randrange(NUM_KINDS)), fingerprint=OTHER)


def read(folder: Path, draw: random.Random, end: float) -> None:
    databases = [(DB(folder), FINGERPRINT), (DB(folder / "limited"), OTHER)]
    held = []
    while time.monotonic() < end:
        db, fingerprint = draw.choice(databases)
        if draw.random() < 0.1:
            db = DB(db.path)
        ids = tokens(*parts_of(draw.randrange(NUM_KINDS)))
        found = db.find(ids, fingerprint)
        if found is not None:
            stored, matched = found
            assert matched >= 300 and (stored.token_ids[:matched] == ids[:matched]).all(), matched
            assert holds(stored), f"wrong bits of {stored.id}"
            held.append(stored)
        if len(held) > HELD:
            assert holds(held.pop(0)), "wrong bits after a while"


ROLES: tuple[Callable[[Path, random.Random, float], None], ...] = (store, store, delete, evict, read, read)


def start(role: Callable[[Path, random.Random, float], None], folder: Path, seed: int, end: float) -> int:
    process = os.fork()
    if process:
        return process
    status = 0
    try:
        warnings.simplefilter("error")
        role(folder, random.Random(seed), end)
    except BaseException:
        (folder / f"failed-{role.__name__}-{seed}").write_text(traceback.format_exc())
        status = 1
    os._exit(status)


def round_of(number: int, folder: Path) -> str | None:
    """What went wrong; None where nothing did."""
    for place in (folder, folder / "limited"):
        DB(place)
    end = time.monotonic() + SECONDS
    processes = [start(role, folder, number * 100 + place, end) for place, role in enumerate(ROLES)]
    failed = [process for process in processes if os.waitpid(process, 0)[1]]
    if failed:
        return "\n".join(path.read_text() for path in sorted(folder.glob("failed-*")))
    for path in (folder, folder / "limited"):
        problems = DB(path).verify()
        left = [each.name for each in path.iterdir() if each.name.startswith((".tmp-", ".trash-"))]
        if problems or left:
            return f"damaged: {problems}, left over: {left}"
    db = DB(folder)
    lost = [kind for kind in KEPT if db.find(tokens(*parts_of(kind)), FINGERPRINT)[1] < len(tokens(*parts_of(kind)))]
    return f"lost: {lost}" if lost else None


def run_rounds(numbers: Iterable[int], show: bool = False) -> list[str]:
    """Run the rounds of these numbers; what went wrong."""
    wrong: list[str] = []
    for number in numbers:
        folder = Path(tempfile.mkdtemp(prefix="contexts-shared-"))
        try:
            problem = round_of(number, folder)
        finally:
            shutil.rmtree(folder)
        if problem is not None:
            wrong.append(f"round {number}: {problem}")
        if problem is not None or show:
            print(f"round {number}: {problem or 'right'}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(numbered_cases.main(__doc__, "rounds", run_rounds))

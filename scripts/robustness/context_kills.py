"""kill -9 at random points of stores and deletes in a context database: no context lost, none wrong, nothing left over.

    python scripts/robustness/context_kills.py 200             # points 0 to 199
    python scripts/robustness/context_kills.py 10 --start 40 --show

At a point a process stores, deletes, names and evicts contexts and adds indexes, and says before and after each what it
does; it is ended by SIGKILL at a random moment. Then every context must be there that was there before and was
not being deleted, with its bits; whatever is found must be right; and the next store must leave no half-written file.
The database goes on from point to point. Exits with 1 otherwise. Needs Linux.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import numbered_cases
from contexts_made import FINGERPRINT, holds, put, tokens

from vllm_relational.context import DB
from vllm_relational.context.writing import id_of

NUM_KINDS = 12  # contexts that there can be
MAX_TOKENS = 30_000
LONGEST_S = 0.5  # from the start of a process's work to its kill
LIMIT = 12_000_000  # bytes of the database in processes that evict: about half of all contexts


def parts_of(number: int) -> tuple[range, ...]:
    """The token ids of a context; even and odd ones share their beginnings."""
    return range(100 * (number % 2), 100 * (number % 2) + 500), range(
        7 * number, 7 * number + number * MAX_TOKENS // 12
    )


IDS = {id_of(tokens(*parts_of(number)), FINGERPRINT): number for number in range(NUM_KINDS)}
ID_OF = {number: name for name, number in IDS.items()}


def work(folder: Path, seed: int, out: int) -> None:
    """Changes without an end, told as lines: ``begin delete 5``, ``end``. Runs in a process of its own."""
    draw = random.Random(seed)
    limit = LIMIT if draw.random() < 0.3 else None
    db = DB(folder, max_bytes=limit)
    os.write(out, b"limit\n" if limit else b"no limit\n")
    while True:
        number = draw.randrange(NUM_KINDS)
        there = {info.id for info in db.list()}
        what = draw.choice(["store", "store", "name", "index", "delete"]) if ID_OF[number] in there else "store"
        os.write(out, f"begin {what} {number}\n".encode())
        if what == "delete":
            db.delete(ID_OF[number])
        elif what == "index":
            size = draw.randrange(1, 3_000_000)
            db.open(ID_OF[number]).add_index("flat", 0, lambda path, size=size: path.write_bytes(b"i" * size))
        else:
            put(db, *parts_of(number), name=f"context {number}" if what == "name" else None)
        os.write(out, b"end\n")


def killed(folder: Path, seed: int) -> list[str]:
    """What a process said until it was killed."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            work(folder, seed, writing)
        except BaseException as error:
            os.write(writing, f"failed {type(error).__name__}: {error}\n".encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb", buffering=0) as lines:
        said = b""
        while b"\n" not in said:  # the work begins
            said += os.read(lines.fileno(), 100)
        time.sleep(random.Random(seed).random() * LONGEST_S)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        said += lines.read()
    return said.decode().splitlines()


def expected(before: set[int], said: list[str]) -> tuple[set[int], set[int]]:
    """By what was said: the contexts that must be there, and those that may be."""
    must, may = set(before), set(before)
    action: list[str] = []
    for line in said:
        if line.startswith("begin"):
            action = line.split()
            what, number = action[1], int(action[2])
            if what == "delete":
                must.discard(number)
            else:
                may.add(number)
        elif line == "end":
            what, number = action[1], int(action[2])
            if what == "delete":
                may.discard(number)
            else:
                must.add(number)
    return (set() if said[0] == "limit" else must), may


def check(folder: Path, must: set[int], may: set[int]) -> str | None:
    """What is wrong; None where nothing is."""
    db = DB(folder)
    found = {IDS.get(info.id, -1) for info in db.list()}
    if not must <= found <= may:
        return f"there are {sorted(found)}: at least {sorted(must)} and at most {sorted(may)} should be"
    for number in range(NUM_KINDS):
        ids = tokens(*parts_of(number))
        best = max((shared(number, other) for other in found), default=0)
        hit = db.find(ids, FINGERPRINT)
        if (hit[1] if hit else 0) != best:
            return f"of {number}, {hit and hit[1]} tokens were found, {best} are stored"
        if hit is not None and not holds(hit[0]):
            return f"wrong keys or values for {number}"
    problems = db.verify()
    return f"damaged: {problems}" if problems else None


def shared(one: int, other: int) -> int:
    first, second = tokens(*parts_of(one)), tokens(*parts_of(other))
    length = min(len(first), len(second))
    different = (first[:length] != second[:length]).nonzero()[0]
    return int(different[0]) if len(different) else length


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".tmp-", ".trash-")))


def run_points(numbers: Iterable[int], show: bool = False) -> list[str]:
    """Run the points of these numbers; what went wrong."""
    wrong: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="contexts-killed-"))
    within = 0
    try:
        for number in numbers:
            before = {IDS[info.id] for info in DB(folder).list()}
            said = killed(folder, number)
            within += said[-1].startswith("begin")
            problem = next((line for line in said if line.startswith("failed")), None)
            problem = problem or check(folder, *expected(before, said))
            DB(folder).verify()
            problem = problem or (f"left over: {left_over(folder)}" if left_over(folder) else None)
            if problem is not None:
                wrong.append(f"point {number}, {said[-1]}: {problem}")
            if problem is not None or show:
                print(f"point {number}, {said[-1]}: {problem or 'right'}", flush=True)
    finally:
        shutil.rmtree(folder)
    print(f"{within} kills within a change")
    return wrong


if __name__ == "__main__":
    sys.exit(numbered_cases.main(__doc__, "points", run_points))

"""Files of a context database damaged at random: the right bytes, fewer tokens, or an error; never wrong bytes.

    python scripts/robustness/context_damage.py 2000           # cases 0 to 1999
    python scripts/robustness/context_damage.py 10 --start 40 --show

A case damages one file: of nine in ten one bit, drawn evenly over files and places, else it is cut off, exchanged for
another or for something else. Then a new reader asks for the context of the file and for one that shares its beginning.
What it gets must be the bits that belong to the token ids; damage in the layers, the token ids, the manifest or the
names must be reported by ``verify``, a damaged index must be gone; and storing the context again must make it whole.
Exits with 1 otherwise.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import damage
import numbered_cases
from contexts_made import FINGERPRINT, holds, put, tokens

from vllm_relational.context import DB, ContextError
from vllm_relational.context.catalogue import CATALOGUE
from vllm_relational.context.exchange import export_context, read_export

VICTIM, OTHER = (range(3000),), (range(1000), range(5))
INDEX = b"index" * 50_000


class Harness:
    """A database with two contexts that share their beginning, and an export of one."""

    def __init__(self, folder: Path) -> None:
        self.path, self.export = folder / "db", folder / "export"
        db = DB(self.path)
        self.id, self.other = put(db, *VICTIM, name="victim"), put(db, *OTHER)
        db.open(self.id).add_index("flat", 1, lambda path: path.write_bytes(INDEX) and None)
        db.find([0], FINGERPRINT)
        export_context(db.open(self.id), self.export)
        self.files = sorted(path for path in (self.path / FINGERPRINT / self.id).iterdir())
        self.files += [self.path / CATALOGUE, self.export]
        self.whole = {path: path.read_bytes() for path in self.files}

    def case(self, draw: random.Random) -> tuple[str, str | None]:
        """What was done, and what is wrong then; None where nothing is."""
        victim = draw.choice(self.files)
        data = self.whole[victim]
        if draw.random() < 0.9:
            changed = bytearray(data)
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            way, content = "one bit", bytes(changed)
        elif draw.random() < 0.3:
            way, content = "exchanged", self.whole[draw.choice(self.files)]
        else:
            way, content = damage.damaged(data, draw)
        self._replace(victim, content, draw)
        what = f"{victim.name}, {way}"
        if content == data:
            return f"{what}: nothing", None
        problem = self._of_export() if victim == self.export else self._of_database(victim)
        for path, kept in self.whole.items():
            if not path.exists() or path.read_bytes() != kept:
                self._replace(path, kept, draw)
        return what, problem

    def _replace(self, path: Path, content: bytes, draw: random.Random) -> None:
        """A new file, or the old one written over, as a bad disk would."""
        if draw.random() < 0.5:
            path.unlink(missing_ok=True)
        path.write_bytes(content)

    def _of_export(self) -> str | None:
        try:
            read_export(self.export)
        except ContextError:
            return None
        return "a damaged export was read"

    def _of_database(self, victim: Path) -> str | None:
        with warnings.catch_warnings(action="ignore"):
            problem = self._read()
        if problem is not None or victim.name == CATALOGUE:
            return problem
        problems = DB(self.path).verify()
        removed = victim.name.startswith("index_")  # by the reader
        if [each.id for each in problems] != [self.id] * (not removed):
            return f"verify says {problems}"
        db = DB(self.path)
        put(db, *VICTIM, name="victim")
        left = [each for each in db.verify() if "index" not in each.text]
        return f"stored again, but {left}" if left else None

    def _read(self) -> str | None:
        db = DB(self.path)
        for parts in (VICTIM, OTHER):
            hit = db.find(tokens(*parts), FINGERPRINT)
            if hit is not None and not holds(hit[0]):
                return f"wrong bytes for {parts}"
            if hit is not None and not (tokens(*parts)[: hit[1]] == hit[0].token_ids[: hit[1]]).all():
                return f"{hit[1]} tokens that do not match"
            path = hit[0].index_path("flat", 1) if hit is not None and hit[0].id == self.id else None
            if path is not None and path.read_bytes() != INDEX:
                return "a wrong index"
        return None


def run_cases(numbers: Iterable[int], show: bool = False) -> list[str]:
    """Run the cases of these numbers; what went wrong."""
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="contexts-damaged-"))
    try:
        harness = Harness(folder)
        for number in numbers:
            what, problem = harness.case(random.Random(number))
            counts[what.split(",")[0]] += 1
            if problem is not None:
                wrong.append(f"case {number}, {what}: {problem}")
            if problem is not None or show:
                print(f"case {number}, {what}: {problem or 'right'}", flush=True)
    finally:
        shutil.rmtree(folder)
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return wrong


if __name__ == "__main__":
    sys.exit(numbered_cases.main(__doc__, "cases", run_cases))

"""Damaged checkpoints, caches, side files, outputs and indexes: no wrong answer, no lost row, no traceback.

    python scripts/robustness/damaged_files.py 3000             # cases 0 to 2999
    python scripts/robustness/damaged_files.py 500 --start 1000

A case damages one file of a job that ended half-way or well, and runs the same command again in this process, against
an engine whose answers follow from the row. The command must end with all answers right, or with exit status 2, a
reason and the file as it was; then the same job with other files must end well. Exits with 1 otherwise.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from typer.testing import CliRunner

from vllm_relational import RelationalLLM
from vllm_relational.cli import options as cli_options
from vllm_relational.cli.app import app
from vllm_relational.query import embedders
from vllm_relational.table import read_table

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import damage
import fake_engine
import hashed_embedder
import numbered_cases

ROWS = 60
FORMATS = ("csv", "tsv", "jsonl", "parquet", "arrow")
SQL = "SELECT id, LLM('Judge {text}', text) AS answer FROM 't.csv' ORDER BY id::INT"


def text_of(row: int) -> str:
    return f'text {row % 50}, "é" {"x" * (row % 7)}'


def answer_to(text: str) -> str:
    return f"about {text.split(',')[0]}: {xxhash.xxh32_hexdigest(text.encode())}"


class Oracle(fake_engine.FakeEngine):
    """Answers follow from the row."""

    def __init__(self) -> None:
        super().__init__(lambda row: answer_to(row["text"]))


@dataclass
class Kind:
    """A job and the file of it that is damaged.

    before: commands that make the files, with the number of answers after which the engine dies (None: it lives).
    again:  the command after the damage; result: the file that it writes.
    fresh:  the same job with other files; fresh_result: what it writes.
    """

    name: str
    victims: tuple[str, ...]
    before: list[tuple[list[str], int | None]]
    again: list[str]
    fresh: list[str]
    result: str
    fresh_result: str
    made: dict[str, bytes] = field(default_factory=dict)


def run_kind(name: str, victims: tuple[str, ...], kind: str, dies: int | None, options: list[str], again: str) -> Kind:
    """A kind of ``run``. kind: of its output; again: what the command has when it runs again."""
    command = ["run", "t.csv", "-p", "Judge {text}"]
    output = f"o.{kind}"
    begun = [*command, "-o", output]
    before = [([*begun, *options], dies)]
    kept = [option for option in options if option not in ("--limit", "40")]
    return Kind(name, victims, before, [*begun, *kept, again], [*command, "-o", "fresh.csv"], output, "fresh.csv")


def kinds() -> Iterator[Kind]:
    yield run_kind("checkpoint", ("o.csv.checkpoint.jsonl",), "csv", 35, [], "--resume")
    yield run_kind("cache", ("c.db",), "csv", None, ["--cache", "c.db"], "--overwrite")
    for kind in FORMATS:
        victims = (f"o.{kind}",) if kind in ("parquet", "arrow") else (f"o.{kind}", f"o.{kind}.job.json")
        yield run_kind(f"output {kind}", victims, kind, None, ["--limit", "40"], "--resume")
    sql, fresh = ["sql", SQL, "-o", "o.csv", "--side", "s.db"], ["sql", SQL, "-o", "fresh.csv"]
    for name, victim, dies in (("side file", "s.db", None), ("side checkpoint", "s.db.*.checkpoint.jsonl", 35)):
        yield Kind(name, (victim,), [(sql, dies)], [*sql, "--overwrite"], fresh, "o.csv", "fresh.csv")
    index = ["index", "t.csv", "text", "--embedder", "E", "-o"]
    retrieve = ["retrieve", "t.csv", "text", "-k", "2", "--index", "p.index", "-o", "o.csv"]
    yield Kind(
        "index", ("p.index", "p.index.json"), [([*index, "p.index"], None)], retrieve, [*index, "p2.index"], "o.csv", ""
    )


class Harness:
    """Runs commands in this process, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Oracle()
        os.chdir(folder)
        cli_options.make_llm = lambda *_, **__: RelationalLLM(engine=self.engine)  # type: ignore[assignment]
        embedders.open_embedder = lambda name: hashed_embedder.HashedTrigrams()  # type: ignore[assignment]
        Path("t.csv").write_text("text,id\n" + "".join(_line(row) for row in range(ROWS)))
        self.contexts: list[dict[str, Any]] = []

    def call(self, command: list[str], dies_after: int | None = None) -> Any:
        self.engine.dies_after = dies_after
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CliRunner().invoke(app, command)

    def make(self, kind: Kind) -> None:
        """The files of the kind, before any damage."""
        self.clear()
        for command, dies in kind.before:
            self.call(command, dies)
        kind.made = {path.name: path.read_bytes() for path in Path().iterdir() if path.name != "t.csv"}
        if kind.name == "index":
            self.call([*kind.again, "--overwrite"])
            self.contexts = read_table("o.csv").to_pylist()
        assert any(Path().glob(kind.victims[0])), f"{kind.name}: {kind.before[0][0]} made no {kind.victims[0]}"

    def restore(self, kind: Kind) -> None:
        self.clear()
        for name, data in kind.made.items():
            Path(name).write_bytes(data)

    def clear(self) -> None:
        for path in Path().iterdir():
            if path.name != "t.csv":
                path.unlink()

    def check(self, kind: Kind, result: str) -> str | None:
        """What is wrong with a result; None for a right one."""
        if not result:
            return None
        rows = read_table(result).to_pylist()
        if kind.name == "index":
            return None if rows == self.contexts else "other passages"
        if [int(row["id"]) for row in rows] != list(range(ROWS)):
            return f"{len(rows)} rows"
        wrong = [row["id"] for row in rows if row["answer"] != answer_to(text_of(int(row["id"])))]
        return f"wrong answers in rows {wrong[:5]}" if wrong else None

    def case(self, kind: Kind, draw: random.Random) -> tuple[str, str | None]:
        """What was done to what; what went wrong."""
        self.restore(kind)
        victim = draw.choice(sorted(path for pattern in kind.victims for path in Path().glob(pattern)))
        way, data = damage.damaged(victim.read_bytes(), draw)
        victim.write_bytes(data)
        done = self.call(kind.again)
        what = f"{victim.name} {way}"
        if done.exit_code == 0:
            return what, self.check(kind, kind.result)
        if done.exit_code != 2 or "Traceback" in done.output or not _ended(done.exception):
            return what, f"exit status {done.exit_code}: {done.output[-300:]} {_place(done)}"
        if len(done.stderr.strip().splitlines()[-1]) < 20 or "error: " not in done.stderr:
            return what, f"no reason: {done.stderr!r}"
        if kind.name != "side file" and victim.read_bytes() != data:  # DuckDB writes back its log when it opens a file
            return what, f"refused, but changed: {done.stderr[-200:]}"
        fresh = self.call(kind.fresh)
        if fresh.exit_code != 0:
            return what, f"the fix does not work: {fresh.output[-300:]}"
        return f"{what}: refused", self.check(kind, kind.fresh_result)


def _line(row: int) -> str:
    text = text_of(row).replace('"', '""')
    return f'"{text}",{row}\n'


def _ended(exception: BaseException | None) -> bool:
    return exception is None or isinstance(exception, SystemExit) or type(exception).__name__ == "CommandEnded"


def _place(done: Any) -> str:
    return "".join(traceback.format_exception(done.exception)[-3:]) if done.exception is not None else ""


def run_cases(numbers: Iterable[int], show: bool = False) -> list[str]:
    """Run the cases of these numbers; what went wrong."""
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    here = Path.cwd()
    folder = Path(tempfile.mkdtemp(prefix="damaged-"))
    kept = cli_options.make_llm, embedders.open_embedder
    try:
        harness, all_kinds = Harness(folder), list(kinds())
        for kind in all_kinds:
            harness.make(kind)
        for number in numbers:
            kind = all_kinds[number % len(all_kinds)]
            what, problem = harness.case(kind, random.Random(number))
            counts[f"{kind.name}: {'refused' if what.endswith('refused') else 'went on'}"] += 1
            if problem is not None:
                wrong.append(f"case {number}, {kind.name}, {what}: {problem}")
                print(wrong[-1], flush=True)
            elif show:
                print(f"case {number}, {kind.name}, {what}: right")
    finally:
        os.chdir(here)
        shutil.rmtree(folder)
        cli_options.make_llm, embedders.open_embedder = kept  # type: ignore[assignment]
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    return wrong


if __name__ == "__main__":
    sys.exit(numbered_cases.main(__doc__, "damaged files", run_cases))

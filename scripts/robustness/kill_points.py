"""kill -9 at random points of jobs: no lost row, no wrong answer, nothing asked twice but what was in flight.

    python scripts/robustness/kill_points.py 100               # points 0 to 99
    python scripts/robustness/kill_points.py 10 --start 40 --show

A point starts ``run`` or ``sql`` as a process against a server on this machine, ends it by SIGKILL after a random
number of requests, or while it writes its output, and runs the command again, with more kills at times, until it ends
well. Then the output must hold every row with its answer, the server must have got no prompt more than once a start,
and in all one for each row beside those in flight at each kill. Exits with 1 otherwise. Needs Linux.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

import vllm_relational.cli.app
import vllm_relational.cli.sql_session
import vllm_relational.engine.endpoint.engine
import vllm_relational.query.pipeline
from vllm_relational.table import read_table

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import fake_server
import numbered_cases

CONCURRENCY = 4
SECONDS = 120.0  # that a process may take
SQL = "SELECT id, LLM('Judge {text}', text) AS answer FROM 't.csv' ORDER BY id::INT"
TEXT = re.compile(r'"text": ("(?:[^"\\]|\\.)*")')


def answer_to(text: str) -> str:
    return f"about {text.split(',')[0]}: {xxhash.xxh32_hexdigest(text.encode())}"


def text_in(prompt: str) -> str:
    """The cell in the prompt of a row."""
    found = TEXT.search(prompt)
    assert found is not None, prompt
    return str(json.loads(found[1]))


class Server:
    """A server in a process of its own; every prompt that it gets is a line of a file."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "prompts"
        self.log.touch()
        place = folder / "address"
        self.process = os.fork()
        if self.process == 0:
            self._serve(place)
        while not place.exists():
            time.sleep(0.01)
        self.url = f"{place.read_text()}/v1"

    def _serve(self, place: Path) -> None:
        server = fake_server.FakeServer()

        def reply(body: dict) -> fake_server.Reply:
            prompt = body["messages"][-1]["content"]
            with server.lock, self.log.open("a") as log:
                log.write(json.dumps(text_in(prompt)) + "\n")
            time.sleep(0.004)
            return fake_server.chat(answer_to(text_in(prompt)))

        server.reply = reply
        half = place.with_suffix(".half")
        half.write_text(server.root)
        half.rename(place)
        signal.pause()

    def prompts(self) -> list[str]:
        """The cells asked about since ``forget``."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def count(self) -> int:
        return self.log.read_bytes().count(b"\n")

    def forget(self) -> None:
        self.log.write_text("")


@dataclass
class Point:
    """One job and its kills."""

    number: int
    draw: random.Random = field(init=False)
    kills: int = 0
    problem: str | None = None

    def __post_init__(self) -> None:
        self.draw = random.Random(self.number)


def start(command: list[str], log: Path) -> int:
    """The command as a process; its number."""
    process = os.fork()
    if process:
        return process
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.argv = ["vllm-relational", *command]
    status = 70
    try:
        vllm_relational.cli.app.main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 71
    finally:
        os._exit(status)


def run_until(process: int, killed: float | None, server: Server, draw: random.Random) -> int | None:
    """Wait for its end, or kill it after so many requests and a moment. Its exit status; None where it was killed."""
    deadline = time.monotonic() + SECONDS
    moment: float | None = None
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if moment is None and killed is not None and server.count() >= killed:
            moment = now + draw.random() * draw.choice([0.005, 0.05, 0.3])
        if now > deadline or (moment is not None and now >= moment):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None if now <= deadline else 72
        time.sleep(0.001)


def commands(draw: random.Random, url: str) -> tuple[list[str], list[str], str]:
    """The first command, the one that goes on, and the output."""
    output = f"o.{draw.choice(['csv', 'jsonl', 'parquet', 'arrow'])}"
    server = ["--base-url", url, "--concurrency", str(CONCURRENCY)]
    if draw.random() < 0.35:
        output = draw.choice(["o.csv", "o.jsonl", "o.parquet"])
        command = ["sql", SQL, "-o", output, "--side", "s.db", *server]
        return command, [*command, "--overwrite"], output
    command = ["run", "t.csv", "-p", "Judge {text}", "-o", output, *server]
    if draw.random() < 0.3:
        command += ["--cache", "c.db"]
    return command, [*command, "--resume"], output


def write_rows(draw: random.Random) -> list[str]:
    texts = [f'text {draw.randrange(150)}, "é"' for _ in range(draw.randrange(40, 200))]
    lines = [text.replace('"', '""') for text in texts]
    Path("t.csv").write_text("text,id\n" + "".join(f'"{line}",{row}\n' for row, line in enumerate(lines)))
    return texts


def check(point: Point, texts: list[str], output: str, asked: list[str]) -> str | None:
    """What is wrong; None where nothing is."""
    rows = read_table(output).to_pylist()
    if [int(row["id"]) for row in rows] != list(range(len(texts))):
        return f"{len(rows)} of {len(texts)} rows"
    if any(row["answer"] != answer_to(texts[int(row["id"])]) for row in rows):
        return "wrong answers"
    times = Counter(asked)
    if set(times) != set(texts):
        return f"{len(set(texts) - set(times))} texts were never asked"
    if max(times.values()) > 1 + point.kills:
        return f"one text was asked {max(times.values())} times, with {point.kills} kills"
    if len(asked) > len(times) + point.kills * CONCURRENCY:
        return f"{len(asked)} asked for {len(times)} texts, with {point.kills} kills"
    left = sorted(
        {path.name for path in Path().iterdir()} - {"t.csv", "c.db", "s.db", "log", output, f"{output}.job.json"}
    )
    return f"left over: {left}" if left else None


def run_point(point: Point, server: Server) -> None:
    """Kill, go on until the job ends, check."""
    draw = point.draw
    for path in Path().iterdir():
        path.unlink()
    server.forget()
    texts = write_rows(draw)
    distinct = len(set(texts))
    command, again, output = commands(draw, server.url)
    for attempt in range(8):
        late = draw.random() < 0.25
        wanted = distinct if late else min(server.count() + draw.randrange(distinct), distinct)
        kill = wanted if attempt == 0 or draw.random() < 0.3 else None
        status = run_until(start(command if attempt == 0 else again, Path("log")), kill, server, draw)
        if status is None:
            point.kills += 1
        elif status != 0:
            point.problem = f"exit status {status}: {Path('log').read_text()[-600:]}"
            return
        else:
            break
    point.problem = check(point, texts, output, server.prompts())


def _killed_point(number: int, server: Server) -> Point:
    """A point with a kill: a job that was faster than its kill, and well, is drawn anew."""
    for again in range(50):
        point = Point(number + again * 1_000_003)
        run_point(point, server)
        if point.kills or point.problem is not None:
            break
    return point


def run_points(numbers: Iterable[int], show: bool = False) -> list[str]:
    """Run the points of these numbers; what went wrong."""
    wrong: list[str] = []
    kills, here = 0, Path.cwd()
    folder = Path(tempfile.mkdtemp(prefix="killed-"))
    (folder / "job").mkdir()
    server = Server(folder)
    os.chdir(folder / "job")
    try:
        for number in numbers:
            point = _killed_point(number, server)
            kills += point.kills
            if point.problem is not None:
                wrong.append(f"point {number}: {point.problem}")
            if point.problem is not None or show:
                print(f"point {number}: {point.kills} kills, {point.problem or 'right'}", flush=True)
    finally:
        os.kill(server.process, signal.SIGKILL)
        os.waitpid(server.process, 0)
        os.chdir(here)
        shutil.rmtree(folder)
    print(f"{kills} kills")
    return wrong


if __name__ == "__main__":
    sys.exit(numbered_cases.main(__doc__, "points", run_points))

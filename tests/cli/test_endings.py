"""How commands end: exit status 1 only for rows that failed, one line for everything else, whatever the terminal."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_server import FakeServer, chat, fail
from typer.testing import CliRunner

from vllm_relational.cli import output as cli_output
from vllm_relational.cli.app import app

pytestmark = pytest.mark.slow  # a process of its own for most cases

PROGRAM = [sys.executable, "-c", "from vllm_relational.cli.app import main; main()"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "b.csv").write_text("text,id\nhéllo,1\nworld,2\n", encoding="utf-8")
    return tmp_path / "b.csv"


def shell(tail: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    """The program through a shell, so that ``tail`` may redirect and close its streams."""
    quoted = ["sh", "-c", f'"$@" {tail}', "sh", *PROGRAM, *map(str, arguments)]
    return subprocess.run(quoted, capture_output=True, env=os.environ | env, timeout=60)


def asking(table: Path, server: FakeServer, *more: object) -> list[object]:
    return ["run", table, "-p", "good {text}?", "--base-url", f"{server.root}/v1", *more]


@pytest.mark.parametrize(
    ("tail", "env"),
    [
        ("2>&-", {}),
        ("2>/dev/full", {}),
        ("2>&- 0<&-", {"PYTHONIOENCODING": "ascii:strict"}),
        ("", {"PYTHONIOENCODING": "latin-1:strict"}),
    ],
)
def test_a_job_ends_well_without_a_usable_standard_error(
    table: Path, fake_server: FakeServer, tail: str, env: dict[str, str]
) -> None:
    output = table.with_name("o.jsonl")
    fake_server.reply = lambda body: chat("oui, café ☕")
    done = shell(tail, *asking(table, fake_server, "-o", output, "--answer-column", "ré\x1bponse"), **env)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["ré\x1bponse"] for row in rows] == ["oui, café ☕"] * 2
    assert b"\x1b" not in done.stderr


def test_answers_that_standard_output_cannot_take(table: Path, fake_server: FakeServer) -> None:
    done = shell(">/dev/full", *asking(table, fake_server))
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last == "error: cannot write to standard output: No space left on device; name a file with -o"
    closed = shell(">&-", *asking(table, fake_server))
    assert closed.returncode == 2 and b"standard output is closed: name a file" in closed.stderr
    assert len(fake_server.bodies) == 2  # of the first run alone


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process grows over ``size`` bytes: a disk without room, as far as writers can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_an_output_of_sql_that_has_no_room_is_named(table: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = table.with_name(f"o{suffix}")
    # under the limit Python would leave bytecode that is cut off, and every later process would fail on it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    asked = "SELECT range * 7919 % 100003 AS x, md5(range::VARCHAR) AS y FROM range(30000)"
    with files_end_at(2048):
        done = CliRunner().invoke(app, ["sql", asked, "-o", str(output)])
    (line,) = done.stderr.splitlines()
    assert done.exit_code == 2 and line.startswith(f"error: cannot write {output}: File too large: make room")
    assert [path.name for path in table.parent.iterdir()] == [table.name]


@pytest.mark.parametrize("command", [["plan", "TABLE"], ["sql", "SELECT 1"], ["explain", "SELECT 1"]])
def test_a_closed_standard_output_is_found_first(table: Path, command: list[str]) -> None:
    done = shell(">&-", *(str(table) if word == "TABLE" else word for word in command))
    assert done.returncode == 2 and b"standard output is closed: name a file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command", [["plan", "TABLE", "--json"], ["plan", "TABLE"], ["sql", "SELECT 1"], ["--help"], ["run", "--help"]]
)
def test_other_output_that_cannot_be_delivered_is_status_2(table: Path, command: list[str]) -> None:
    done = shell(">/dev/full", *(str(table) if word == "TABLE" else word for word in command))
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("error: ") and "standard output" in last and "Errno" not in last
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("prompt", "env", "fix"),
    [
        (b"caf\xe9 {text}?", {"LC_ALL": "C"}, b"it was given in bytes that are no UTF-8: write them in UTF-8"),
        ("café {text}?".encode(), ASCII, b"no ascii, which the locale asks for: set LC_ALL=C.UTF-8"),
    ],
)
def test_a_prompt_in_bytes_that_are_no_text(table: Path, prompt: bytes, env: dict[str, str], fix: bytes) -> None:
    command = [*PROGRAM, "run", str(table), "-m", "no", "-p", prompt]
    ended = subprocess.run(command, capture_output=True, env=os.environ | env, timeout=60)
    assert ended.returncode == 2 and ended.stderr.startswith(b"error: the prompt is 'caf\\udc") and fix in ended.stderr


def test_a_locale_without_the_characters_shows_escapes(table: Path) -> None:
    table.write_text("té☕xt,id\nhello,1\nworld,2\n", encoding="utf-8")
    done = shell("", "plan", table, PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0 and b"t\\xe9\\u2615xt" in done.stdout


@pytest.mark.parametrize(("status", "bad"), [(0, ()), (1, ("world",))])
def test_status_1_means_failed_rows(table: Path, fake_server: FakeServer, status: int, bad: tuple[str, ...]) -> None:
    fake_server.reply = lambda body: fail(400, "no") if any(word in str(body) for word in bad) else chat("yes")
    command = [str(word) for word in asking(table, fake_server, "--concurrency", 1)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == status and len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("env", [{}, {"VLLM_RELATIONAL_TRACEBACK": "1"}])
def test_an_unexpected_exception_is_one_line_and_status_2(
    table: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a \x1b[31m\nb")

    monkeypatch.setattr("vllm_relational.cli.options.read_rows", broken)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for options in [[], ["--verbose"]]:
        result = CliRunner().invoke(app, ["run", str(table), "-p", "{text}?", *options])
        assert result.exit_code == 2
        *before, last = result.stderr.splitlines()
        assert last.startswith("error: unexpected KeyError: 'a \\x1b[31m\\nb'")
        assert bool(before) == bool(env or options)


def test_a_report_that_cannot_be_written_takes_nothing_with_it(
    table: Path, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli_output, "_write_report", full)
    output, lines = table.with_name("o.jsonl"), table.with_name("lines.csv")
    result = CliRunner().invoke(
        app, [str(word) for word in asking(table, fake_server, "-o", output, "--report", table.with_name("r.json"))]
    )
    assert result.exit_code == 2 and "the report could not be written to" in result.stderr
    assert len(output.read_text(encoding="utf-8").splitlines()) == 2
    fake_server.reset = (200, {"success": True})
    server = ["--base-url", f"{fake_server.root}/v1", "--orders", "tree", "--report", str(table.with_name("r.json"))]
    result = CliRunner().invoke(app, ["bench", str(table), "-p", "{text}?", "--csv", str(lines), *server])
    assert result.exit_code == 2 and len(lines.read_text(encoding="utf-8").splitlines()) == 2


# ------------------------------------------------------------------------------------------------------------ warnings
def damaged_checkpoint(folder: Path) -> None:
    checkpoint = folder / "o.jsonl.checkpoint.jsonl"
    lines = checkpoint.read_bytes().splitlines(keepends=True)
    checkpoint.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b"yes", b"not")]))


def damaged_cache(folder: Path) -> None:
    whole = bytearray((folder / "c.db").read_bytes())
    place = whole.rindex(b"yes")
    whole[place : place + 3] = b"not"
    (folder / "c.db").write_bytes(whole)


@pytest.mark.parametrize("python", [(), ("-W", "error"), ("-W", "always")])
@pytest.mark.parametrize(
    ("damage", "options", "said"),
    [
        (damaged_checkpoint, ["--resume"], "1 damaged lines were left out"),
        (damaged_cache, ["--overwrite", "--checkpoint", "new.jsonl"], "c.db"),
    ],
)
def test_a_warning_is_one_line_without_a_path_into_the_source(
    table: Path, fake_server: FakeServer, damage: Callable[[Path], None], options: list[str], said: str, python: tuple
) -> None:
    fake_server.reply = lambda body: fail(400, "no") if "world" in str(body) else chat("yes")
    files = ["-o", table.with_name("o.jsonl"), "--cache", table.with_name("c.db"), "--concurrency", 1]
    command = list(map(str, asking(table, fake_server, *files)))
    assert CliRunner().invoke(app, command).exit_code == 1
    damage(table.parent)
    program = [PROGRAM[0], *python, *PROGRAM[1:]]
    done = subprocess.run([*program, *command, *options], capture_output=True, text=True, cwd=table.parent)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if said in line and "damaged" in line]
    assert len(told) == 1 and told[0].startswith("warning: "), done.stderr
    assert ".py" not in done.stderr and "UserWarning" not in done.stderr


# ------------------------------------------------------------------------------------------------------- wrong options
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "TABLE", "-p", "{text}?", "--nope"], "No such option: --nope"),
        (["run", "TABLE", "-p", "{text}?", "--limit", "abc"], "Invalid value for '--limit'"),
        (["run", "TABLE", "-p"], "Option '-p' requires an argument"),
        (["run"], "Missing argument"),
        (["run", "TABLE", "more", "-p", "{text}?"], "unexpected extra argument"),
        (["nope"], "No such command 'nope'"),
        (["run", "TABLE", "-p", "{text}?", "-k", "0"], "'-k': "),
        (["retrieve", "TABLE", "text", "--index", "i", "-k", "0"], "'-k': "),
        (["run", "TABLE", "-p", "{text}?", "--concurrency", "0"], "'--concurrency': "),
        (["run", "TABLE", "-p", "{text}?", "--answer-column", ""], "--answer-column is ''"),
        (["run", "TABLE", "-p", "{text}?", "--error-column", " "], "--error-column is ' '"),
        (["run", "TABLE", "-p", "{text}?", "--status-column", ""], "--status-column is ''"),
        (["run", "TABLE", "-p", "{text}?", "--explain-dedup", ""], "--explain-dedup is ''"),
        (["run", "TABLE", "-p", "{text}?", "--answer-column", "\udcff"], "--answer-column is '\\udcff'"),
        (["retrieve", "TABLE", "text", "--index", "i", "--name", ""], "--name is ''"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(table: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, [str(table) if word == "TABLE" else word for word in arguments])
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_help_and_no_command_at_all_show_the_commands(table: Path) -> None:
    for arguments, status in ([], 2), (["--help"], 0), (["run", "--help"], 0):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == status and "Usage" in result.output and "error" not in result.stderr

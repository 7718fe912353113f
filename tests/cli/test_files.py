"""No two names of a command are one file, what cannot be written is found before anything is asked, links are kept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hashed_embedder import HashedTrigrams
from typer.testing import CliRunner

from vllm_relational import RelationalLLM
from vllm_relational.cli import retrieval as cli_retrieval
from vllm_relational.cli.app import app
from vllm_relational.files.atomic import check_writable, replacing, write_whole
from vllm_relational.records import RelationalError
from vllm_relational.table import read_table

ROWS = "text,id\nhello,1\nworld,2\n"
ASK = ("-p", "good {text}?")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a table; ``sub/..`` and links lead back into it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.csv").write_text(ROWS)
    (tmp_path / "sub").mkdir()
    (tmp_path / "here").symlink_to(tmp_path)
    return tmp_path


def call(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def error_of(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    return line


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def other_name(way: str, name: str) -> str:
    """Another name of a file; it exists for the links that need it."""
    if way == "hard link" or way == "symbolic link":
        (os.link if way == "hard link" else os.symlink)(name, Path(name).with_stem("other"))
        return str(Path(name).with_stem("other"))
    return {"same": name, "..": f"sub/../{name}", "./": f"./{name}", "absolute": os.path.abspath(name)}.get(
        way, f"here/{name}"
    )


WAYS = ["same", "..", "folder link"]
PAIRS = [
    ("run", "--report", "o.jsonl", "-o"),
    ("run", "--cache", "o.jsonl", "-o"),
    ("run", "--cache", "o.jsonl", "--checkpoint"),
    ("run", "--report", "o.json", "--checkpoint"),
    ("run", "--report", "o.json", "--cache"),
    ("run", "--checkpoint", "o.jsonl", "-o"),
    ("bench", "--csv", "o.csv", "-o"),
    ("bench", "--csv", "o.csv", "--report"),
    ("sql", "--side", "o.csv", "-o"),
    ("sql", "--cache", "o.db", "--side"),
    ("sql", "--db", "o.db", "--side"),
    ("sql", "--cache", "o.csv", "-o"),
]


def words(command: str) -> list[str]:
    return [command, "SELECT LLM('good {text}?', text) FROM 'b.csv'"] if command == "sql" else [command, "b.csv", *ASK]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("command", "one", "name", "other"), PAIRS, ids=lambda value: value.strip("-"))
def test_two_names_of_one_file_that_is_not_there_yet(folder, cli_engine, command, one, name, other, way):
    before = content(folder)
    assert "are one file" in error_of(*words(command), one, name, other, other_name(way, name))
    assert content(folder) == before and not cli_engine.asked


@pytest.mark.parametrize("way", [*WAYS, "hard link", "symbolic link"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("run", "-o"),
        ("run", "--report"),
        ("run", "--checkpoint"),
        ("run", "--cache"),
        ("bench", "-o"),
        ("bench", "--csv"),
        ("plan", "--html"),
        ("sql", "-o"),
        ("sql", "--side"),
        ("sql", "--cache"),
    ],
)
def test_what_is_read_is_never_written(folder, cli_engine, command, option, way):
    before = content(folder)
    asked = words(command)
    line = error_of(*asked, option, other_name(way, "b.csv"), *([] if option == "--side" else ["--overwrite"]))
    assert "are one file" in line and not cli_engine.asked
    assert {name: held for name, held in content(folder).items() if name != "other.csv"} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "b.csv", *ASK, "-o", "o.csv", "--report", "o.csv.checkpoint.jsonl"),
        ("run", "b.csv", *ASK, "-o", "o.csv", "--report", "o.csv.job.json"),
        ("run", "b.csv", *ASK, "--cache", "c.db", "-o", "c.db-wal", "--overwrite"),
        ("run", "b.csv", *ASK, "--schema", "s.json", "--report", "s.json"),
        ("run", "b.csv", *ASK, "--retrieve", "text", "--index", "p.index", "-o", "p.index.json"),
        ("sql", "-f", "q.csv", "-o", "q.csv", "--overwrite"),
        ("sql", "COPY (SELECT LLM('on {text}', text) FROM 'b.csv') TO 'o.csv'", "-o", "o.csv"),
        ("sql", "SELECT LLM('on {text}', text) FROM '*.csv'", "-o", "q.csv", "--overwrite"),
        ("sql", "SELECT LLM('on {text}', text) FROM 'sub/../[a-c].csv'", "--side", "b.csv"),
        ("sql", "FROM read_csv($$b.csv$$)", "-o", "b.csv", "--overwrite"),
        ("sql", "SELECT LLM('on {text}', text) FROM 'o''x.csv'", "-o", "o'x.csv", "--overwrite"),
        ("index", "b.csv", "text", "-o", "b.csv", "--embedder", "E", "--overwrite"),
        ("index", "b.csv.json", "text", "-o", "b.csv", "--embedder", "E", "--overwrite"),
        ("retrieve", "b.csv", "text", "--index", "p.index", "-o", "b.csv", "--overwrite"),
        ("retrieve", "b.csv", "text", "--index", "p.index", "-o", "p.index", "--overwrite"),
        ("retrieve", "b.csv", "text", "--index", "p.index", "-o", "p.index.json", "--overwrite"),
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-3:]),
)
def test_files_that_a_command_derives_count(folder, cli_engine, arguments):
    for name in ("s.json", "q.csv", "o'x.csv"):
        (folder / name).write_text("SELECT LLM('on {text}', text) FROM 'b.csv'")
    before = content(folder)
    assert "are one file" in error_of(*arguments)
    assert content(folder) == before and not cli_engine.asked


HIDDEN = [
    "SELECT LLM('on {text}', text) AS a FROM v",
    "SELECT LLM('on {text}', text) AS a FROM 'c.csv' WHERE text IN (SELECT text FROM behind)",
    "SELECT LLM('on {text}', text) AS a FROM m('b', 'csv')",
    "SELECT LLM('on {text}', text) AS a FROM read_csv('b.c' || 'sv')",
    "SELECT LLM('on {text}', text) AS a FROM read_csv(concat('sub/..', '/b.csv'))",
    "SELECT LLM('on {text}', text) AS a FROM read_csv('b' || '.csv', columns = {'text': 'VARCHAR', 'id': 'INT'}, "
    "auto_detect = false, header = true)",
    "SELECT LLM('on {text}', text) AS a FROM (SELECT content AS text FROM read_text('b.' || 'csv'))",
    "SELECT LLM('on {text}', text) AS a FROM (SELECT 'x' AS text) AS t LEFT JOIN (SELECT text AS u FROM v) ON text = u",
    "FROM v",
    "SELECT content FROM read_text('b.' || 'csv')",
    "SET VARIABLE f = 'b.' || 'csv'; SELECT LLM('on {text}', text) AS a FROM read_csv(getvariable('f'))",
]


@pytest.mark.parametrize("way", ["same", "hard link", "folder link"])
@pytest.mark.parametrize("statement", HIDDEN)
def test_a_file_that_a_statement_reads_by_a_hidden_name_is_never_its_output(folder, cli_engine, statement, way):
    import duckdb

    (folder / "c.csv").write_text(ROWS)
    with duckdb.connect("x.db") as database:
        database.execute("CREATE VIEW v AS SELECT * FROM 'b.csv'; CREATE VIEW behind AS SELECT * FROM v")
        database.execute("CREATE MACRO m(a, b) AS TABLE SELECT * FROM read_csv(a || '.' || b)")
    name = other_name(way, "b.csv")
    line = error_of("sql", statement, "--db", "x.db", "-o", name, "--overwrite")
    assert "a file that the SQL opens and --output are one file" in line and not cli_engine.asked
    assert (folder / "b.csv").read_text() == ROWS
    assert call("sql", statement, "--db", "x.db", "-o", "other.parquet", "--overwrite").exit_code == 0


def test_two_names_that_are_only_read_may_be_one(folder, monkeypatch, cli_engine):
    monkeypatch.setattr(cli_retrieval.embedders, "open_embedder", lambda name: HashedTrigrams())
    assert call("index", "b.csv", "text", "-o", "p.index", "--embedder", "E").exit_code == 0
    found = call("retrieve", "b.csv", "text", "--index", "p.index", "-k", 1, "--passage-table", "b.csv", "-o", "q.csv")
    assert found.exit_code == 0 and read_table(folder / "q.csv")["context_1"].to_pylist() == ["hello", "world"]
    assert "exists already" in error_of("index", "b.csv", "text", "-o", "p.index", "--embedder", "E")
    assert call("index", "b.csv", "text", "-o", "p.index", "--embedder", "E", "--overwrite").exit_code == 0
    assert "exists already" in error_of("retrieve", "b.csv", "text", "--index", "p.index", "-o", "q.csv", "-k", 1)


@pytest.mark.slow
def test_standard_output_is_a_file_too(folder):
    def status(*arguments: str, **streams: object) -> tuple[int, bytes]:
        command = [sys.executable, "-m", "vllm_relational.cli", "plan", "b.csv", *arguments]
        done = subprocess.run(command, **streams)
        return done.returncode, done.stderr

    with open("out.txt", "wb") as out:
        assert status("--planner", "original", stdout=out, stderr=subprocess.STDOUT)[0] == 0
    with open("page.html", "wb") as out:
        ended, said = status("--html", "page.html", stdout=out, stderr=subprocess.PIPE)
    assert ended == 2 and b"--html and standard output are one file" in said


def test_python_names_no_file_twice(folder, fake_llm):
    for options in ({"checkpoint": "b.csv"}, {"cache": "sub/../b.csv"}, {"checkpoint": "c", "cache": "./c"}):
        with pytest.raises(RelationalError, match="are one file"):
            fake_llm.run("b.csv", "good {text}?", **options)
    assert content(folder) == {"b.csv": ROWS.encode()}


@pytest.fixture
def fake_llm(cli_engine) -> RelationalLLM:
    return RelationalLLM(engine=cli_engine)


# ----------------------------------------------------------------------------------------------- what is there already
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("bench", "b.csv", *ASK, "--orders", "original", "-o"), "mine.csv"),
        (("sql", "SELECT LLM('on {text}', text) AS a FROM 'b.csv'", "-o"), "mine.csv"),
        (("run", "b.csv", *ASK, "-o"), "mine.csv"),
        (("run", "b.csv", *ASK, "--report"), "mine.html"),
        (("run", "b.csv", *ASK, "--report"), "mine.json"),
        (("plan", "b.csv", "--html"), "mine.html"),
    ],
)
def test_a_file_of_the_users_is_replaced_on_request_only(folder, cli_engine, arguments, name):
    (folder / name).write_text("my notes\n")
    line = error_of(*arguments, name)
    assert "--overwrite" in line and "exists" in line and not cli_engine.asked
    assert (folder / name).read_text() == "my notes\n"
    assert call(*arguments, name, "--overwrite").exit_code == 0
    assert (folder / name).read_text() != "my notes\n"


@pytest.mark.parametrize("name", ["r.html", "r.json"])
def test_a_report_is_drawn_again_without_more_words(folder, cli_engine, name):
    for _ in range(2):
        assert call("run", "b.csv", *ASK, "--report", name).exit_code == 0


# -------------------------------------------------------------------------------------------------- cannot be written
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("arguments", "suffix"),
    [
        (("run", "b.csv", *ASK, "-o"), ".csv"),
        (("run", "b.csv", *ASK, "--report"), ".html"),
        (("run", "b.csv", *ASK, "--checkpoint"), ".jsonl"),
        (("run", "b.csv", *ASK, "--cache"), ".db"),
        (("bench", "b.csv", *ASK, "--csv"), ".csv"),
        (("sql", "SELECT LLM('on {text}', text) FROM 'b.csv'", "-o"), ".parquet"),
        (("sql", "SELECT LLM('on {text}', text) FROM 'b.csv'", "--side"), ".db"),
        (("plan", "b.csv", "--html"), ".html"),
        (("index", "b.csv", "text", "--embedder", "E", "-o"), ".index"),
        (("retrieve", "b.csv", "text", "--index", "p.index", "-o"), ".csv"),
    ],
)
def test_names_that_cannot_be_written_are_found_before_anything_is_asked(folder, cli_engine, arguments, suffix):
    long, pipe, inside, loop = "x" * 300 + suffix, f"pipe{suffix}", f"folder{suffix}", f"loop{suffix}"
    os.mkfifo(pipe)
    (folder / inside).mkdir()
    (folder / loop).symlink_to(loop)
    for name in (long, pipe, inside, loop, f"none/x{suffix}"):
        error_of(*arguments, name)
    assert not cli_engine.asked


@pytest.mark.parametrize("more", [(), ("--checkpoint", "c.jsonl")])
def test_a_name_with_no_room_for_what_stands_beside_it(folder, cli_engine, more):
    name = "x" * 248 + ".csv"
    line = error_of("run", "b.csv", *ASK, "-o", name, *more)
    assert f"cannot use {name}: a file of its name and ." in line and "File name too long; name another" in line
    assert f"{name}." not in line and not cli_engine.asked
    assert call("run", "b.csv", *ASK, "-o", "x" * 232 + ".csv").exit_code == 0


# -------------------------------------------------------------------------------------------------------- one writer
def test_a_linked_output_writes_through_to_its_target(folder, cli_engine):
    (folder / "sub" / "real.csv").touch()
    (folder / "link.csv").symlink_to("sub/real.csv")
    (folder / "new.csv").symlink_to("sub/new.csv")
    for name in ("link.csv", "new.csv"):
        assert call("run", "b.csv", *ASK, "-o", name).exit_code == 0
        assert (folder / name).is_symlink()
        assert read_table(folder / name)["answer"].to_pylist() == ["hello", "world"]
    files = ["new.csv", "new.csv.job.json", "real.csv", "real.csv.job.json"]
    assert sorted(path.name for path in (folder / "sub").iterdir()) == files
    assert not list(folder.glob("*.job.json"))


@pytest.mark.parametrize("first", ["link.csv", "sub/real.csv"])
def test_all_names_of_an_output_share_its_record_and_its_checkpoint(folder, cli_engine, first):
    (folder / "link.csv").symlink_to("sub/real.csv")
    cli_engine.fails = {1}
    assert call("run", "b.csv", *ASK, "-o", first).exit_code == 1
    assert sorted(path.name for path in (folder / "sub").glob("*.json*")) == [
        "real.csv.checkpoint.jsonl",
        "real.csv.job.json",
    ]
    cli_engine.fails = set()
    cli_engine.asked.clear()
    (second,) = {"link.csv", "sub/real.csv"} - {first}
    assert call("run", "b.csv", *ASK, "-o", second, "--resume").exit_code == 0
    assert [prompt.key for prompt in cli_engine.asked] == [1]
    assert read_table(folder / first)["answer"].to_pylist() == ["hello", "world"]


@pytest.mark.parametrize("derived", ["sub/real.csv.job.json", "sub/real.csv.checkpoint.jsonl"])
def test_what_stands_beside_the_target_of_a_link_is_no_second_output(folder, cli_engine, derived):
    (folder / "link.csv").symlink_to("sub/real.csv")
    assert "are one file" in error_of("run", "b.csv", *ASK, "-o", "link.csv", "--report", derived)
    assert not cli_engine.asked


def test_the_record_of_an_output_is_for_its_owner_only(folder, cli_engine):
    (folder / "o.csv.job.json").touch(0o644)
    for _ in range(2):
        assert call("run", "b.csv", *ASK, "-o", "o.csv").exit_code == 0
        assert stat.S_IMODE((folder / "o.csv.job.json").stat().st_mode) == 0o600


def test_a_planted_link_is_not_followed(folder):
    victim = folder / "victim"
    victim.write_text("precious")
    for name in (".o.csv.partial", ".o.csv.part"):
        (folder / name).symlink_to(victim)
    write_whole(folder / "o.csv", b"text")
    assert victim.read_text() == "precious" and (folder / "o.csv").read_bytes() == b"text"


def test_two_writers_of_one_file_do_not_mix(folder):
    with replacing(folder / "o") as one, replacing(folder / "o") as other:
        for _ in range(100):
            one.write(b"one\n")
            other.write(b"other\n")
    assert (folder / "o").read_bytes() == b"one\n" * 100
    assert sorted(path.name for path in folder.iterdir()) == ["b.csv", "here", "o", "sub"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_any_new_file_or_of_the_file_replaced(folder, mask):
    before = os.umask(mask)
    try:
        write_whole(folder / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o666 & ~mask
    (folder / "new").chmod(0o640)
    write_whole(folder / "new", b"again")
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o640


def test_a_failed_write_leaves_what_was_there_and_nothing_else(folder):
    (folder / "o").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(folder / "o") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert content(folder) == {"b.csv": ROWS.encode(), "o": b"old"}


def test_what_a_killed_writer_left_is_removed_by_the_next(folder):
    script = (
        "import os, pathlib, signal\nfrom vllm_relational.files.atomic import replacing\n"
        "with replacing(pathlib.Path('o')) as file:\n    file.write(b'half'); file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode < 0
    assert len(content(folder)) == 2
    with replacing(folder / "other"), replacing(folder / "o"):
        assert len(content(folder)) == 3
    assert sorted(content(folder)) == ["b.csv", "o", "other"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_and_files_without_rights(folder):
    (folder / "sub").chmod(0o500)
    with pytest.raises(RelationalError, match="Permission denied"):
        check_writable(folder / "sub" / "o.csv")
    (folder / "b.csv").chmod(0o400)
    with pytest.raises(RelationalError, match="write-protected"):
        check_writable(folder / "b.csv")

"""The files that a command is given, checked before anything is read or asked: no two are one, all can be written."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vllm_relational.files.atomic import check_writable, followed
from vllm_relational.files.named import NamedFile, check_distinct, check_usable, standard_streams
from vllm_relational.records import RelationalError

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that another job wrote.")]

# What stands beside a file of that role.
BESIDE = {
    "--cache": ("-wal", "-shm", "-journal"),
    "--side": (".wal",),
    "--db": (".wal",),
    "--index": (".json",),
    "the index": (".json",),
    "--output": (".job.json",),
}
# How a page or report of ours begins, within its first bytes.
MARKS, MARK_BYTES = (b'<meta name="generator" content="vllm-relational">', b'{\n  "question": '), 4096

LONGEST_PATTERN = 255  # characters: longer texts are prompts

Paths = Mapping[str, Path | None]

# A text, a quoted name and a dollar-quoted text of SQL.
_QUOTED = re.compile(
    r"""'(?P<text>(?:[^'\n]|'')+)'|"(?P<name>(?:[^"\n]|"")+)"|\$(?P<tag>\w*)\$(?P<dollar>[^\n]+?)\$(?P=tag)\$"""
)


def check_files(
    *,
    reads: Paths | None = None,
    outputs: Paths | None = None,
    stores: Paths | None = None,
    pages: Paths | None = None,
    overwrite: bool = False,
    outputs_by_job: bool = False,
) -> None:
    """Raise ``RelationalError`` for files that a command cannot or must not use, by what the user calls them.

    outputs: written whole at the end; one that holds something already is refused unless ``overwrite``, or left to
             ``cli_resume``, which knows the job that wrote it (``outputs_by_job``).
    stores:  kept open and added to: checkpoints, caches, side files, databases, CSV files of measurements.
    pages:   reports: replaced where they are reports already, else as outputs are.
    """
    reads, outputs, stores, pages = reads or {}, outputs or {}, stores or {}, pages or {}
    written = list(_named({**outputs, **stores, **pages}, True))
    check_distinct([*_named(reads, False), *written])
    for stream in standard_streams():  # one by one: > FILE 2>&1 is no harm
        check_distinct([*_named(reads, False), *written, stream])
    for path in filter(None, {**outputs, **pages}.values()):
        check_writable(path)
    output = outputs.get("--output")
    for file in written:
        check_usable(replace(file, given=output) if file.path == default_checkpoint(output) else file)
    for path in filter(None, {} if outputs_by_job else outputs.values()):
        refuse_existing(path, overwrite)
    for path in filter(None, pages.values()):
        refuse_existing(path, overwrite or is_report(path))


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise ``RelationalError`` for a file that holds something, unless it may be replaced."""
    if not overwrite and holds_something(path):
        raise RelationalError(f"{path} exists already: name another file, or replace it with --overwrite")


def holds_something(path: Path) -> bool:
    """Whether there is a file with content."""
    return path.exists() and path.stat().st_size > 0


def is_report(path: Path) -> bool:
    """Whether a file is a report or a page that this package wrote."""
    try:
        with path.open("rb") as file:
            start = file.read(MARK_BYTES)
    except OSError:
        return False
    return any(mark in start for mark in MARKS)


def default_checkpoint(output: Path | None) -> Path | None:
    """Where the answers of ``-o output`` are kept until it is written: one place for all links to a file."""
    place = followed(output) if output is not None else None
    return place.with_name(f"{place.name}.checkpoint.jsonl") if place is not None else None


def database(name: str | None) -> Path | None:
    """The file of a DuckDB database; None for one in memory."""
    return Path(name) if name is not None and not name.startswith(":memory:") else None


def files_in_sql(text: str) -> dict[str, Path | None]:
    """What a statement may read or write itself: every quoted text may be a name, or a pattern of names.

    A name that SQL puts together (``'b.c' || 'sv'``), or that a view of the database holds, is not seen here: DuckDB
    tells of it (``sql/opened_files.py``).
    """
    parts = (match.groupdict(default="") for match in _QUOTED.finditer(text))
    quoted = {part["text"].replace("''", "'") or part["name"].replace('""', '"') or part["dollar"] for part in parts}
    names = sorted(name for name in quoted if "\0" not in name)
    found: dict[str, Path | None] = {f"{name!r} in the SQL": Path(name) for name in names}
    return found | {f"{name!r} in the SQL, {path}": Path(path) for name in names for path in _matches(name)}


def _matches(pattern: str) -> list[str]:
    """The files of a pattern such as ``*.csv``; none for a text that names no folder which is there."""
    return glob.glob(pattern) if glob.has_magic(pattern) and len(pattern) <= LONGEST_PATTERN else []


def _named(paths: Paths, written: bool) -> Iterator[NamedFile]:
    for role, path in paths.items():
        if path is None:
            continue
        yield NamedFile(role, path, written)
        for place in dict.fromkeys([path, followed(path)]):  # beside a link, or where it leads
            for suffix in BESIDE.get(role, ()):
                yield NamedFile(f"{role}'s {place.name}{suffix}", place.with_name(place.name + suffix), written, place)

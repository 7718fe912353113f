#!/usr/bin/env python3
"""Apply the patches of this repository to an installed vLLM, or take them back.

    apply_patches.py --check | --apply | --revert [--site DIR]

DIR is the folder that holds ``vllm/``; left out, that of the Python that runs this. The state of every touched file is
told by its SHA-256 in ``patches/ledger.json``: as released, as patched, or neither, which is refused. Patches apply
exactly (fuzz 0), all or none: new texts are made, hashed and compiled in memory before the first file is replaced, and
a failure in between puts the files replaced so far back. Doing it twice, or again after a crash, is harmless.
Standard library only. Exit codes: 0 done, or --check found one clean state; 1 refused, with the reason on stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

PATCHES = Path(__file__).resolve().parents[1] / "patches"
RELEASED, PATCHED, FOREIGN = "as released", "as patched", "edited by somebody else, or of another release"
MISSING = "not there"
HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
Hunk = tuple[int, list[str], list[str]]  # first line of the old text from 0, old lines, new lines


class PatchError(Exception):
    """What was found, where, and what to do."""


def read_ledger(folder: Path = PATCHES) -> dict:
    """``vllm``: the release. ``patches``: file names in order. ``files``: SHA-256 before and after, by path."""
    return json.loads((folder / "ledger.json").read_text(encoding="utf-8"))


def find_site() -> Path:
    """The folder that holds the vLLM which this Python would import; nothing of it is run."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise PatchError("this Python has no vLLM: run me with the Python of the vLLM to patch, or name it by --site")
    return Path(next(iter(spec.submodule_search_locations))).parent


def check_version(site: Path, wanted: str) -> None:
    """Refuse any release but the one the patches were made against; local suffixes are the same release."""
    file = site / "vllm" / "_version.py"
    if not file.exists():
        raise PatchError(f"{file} is not there: is {site} the folder that holds vllm/?")
    found = re.search(r"^__version__ = version = '([^']+)'", file.read_text(encoding="utf-8"), re.MULTILINE)
    version = found.group(1) if found else "of unknown number"
    if version.split("+")[0] != wanted:
        raise PatchError(f"the patches are for vLLM {wanted}, and {site} holds vLLM {version}: install vllm=={wanted}")


def parse(text: str) -> dict[str, list[Hunk]]:
    """A unified diff as hunks by path; the paths carry the usual ``a/`` and ``b/``."""
    files: dict[str, list[Hunk]] = {}
    lines = iter(text.splitlines(keepends=True))
    path = ""
    for line in lines:
        if line.startswith("+++ "):
            path = line[4:].split("\t")[0].strip().removeprefix("b/")
            files[path] = []
        elif match := HUNK.match(line):
            files[path].append(_read_hunk(match, lines))
        elif line.startswith(("+", "-", " ")) and not line.startswith("--- "):
            raise PatchError(f"a line outside of any hunk: {line!r}")
    return files


def _read_hunk(match: re.Match[str], lines: Iterator[str]) -> Hunk:
    num_old, num_new = (int(match.group(group) or 1) for group in (2, 4))
    old: list[str] = []
    new: list[str] = []
    while len(old) < num_old or len(new) < num_new:
        line = next(lines, "")
        if line[:1] not in ("-", "+", " "):
            raise PatchError(f"the hunk {match.group(0)} ends early, at {line!r}")
        if line[0] != "+":
            old.append(line[1:])
        if line[0] != "-":
            new.append(line[1:])
    return int(match.group(1)) - 1, old, new


def apply_hunks(text: str, hunks: list[Hunk], path: str) -> str:
    """The text with all hunks applied where they say and nowhere else; ``PatchError`` when a line differs."""
    lines = text.splitlines(keepends=True)
    for start, old, new in reversed(hunks):
        if lines[start : start + len(old)] != old:
            raise PatchError(f"{path}, line {start + 1}: the text is not the one that the patch replaces")
        lines[start : start + len(old)] = new
    return "".join(lines)


def reverse(hunks: list[Hunk]) -> list[Hunk]:
    """The hunks that undo these."""
    shifted, shift = [], 0
    for start, old, new in hunks:
        shifted.append((start + shift, new, old))
        shift += len(new) - len(old)
    return shifted


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def states(site: Path, ledger: dict) -> dict[str, str]:
    """What each touched file is: as released, as patched, neither, or missing."""
    found = {}
    for path, sums in ledger["files"].items():
        known = {sums["before"]: RELEASED, sums["after"]: PATCHED}
        data = _content(site / path)
        found[path] = MISSING if data is None else known.get(digest(data), FOREIGN)
    return found


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{file} cannot be read ({error.strerror}): nothing was changed; mend that, then try again"
        raise PatchError(message) from error


def new_texts(site: Path, ledger: dict, wanted: str, folder: Path = PATCHES) -> dict[Path, bytes]:
    """The files that are not yet as ``wanted`` with their new content, hashed and compiled."""
    current = states(site, ledger)
    for state in (MISSING, FOREIGN):
        if files := [str(site / path) for path, found in current.items() if found == state]:
            mend = f"install vLLM {ledger['vllm']} anew" + (", then apply again" if wanted == PATCHED else "")
            raise PatchError(f"{', '.join(files)}: {state}. Nothing was changed; {mend}")
    todo = {path: (site / path).read_bytes().decode() for path, state in current.items() if state != wanted}
    forward = wanted == PATCHED
    for name in ledger["patches"] if forward else reversed(ledger["patches"]):
        for path, hunks in parse((folder / name).read_text(encoding="utf-8")).items():
            if path in todo:
                todo[path] = apply_hunks(todo[path], hunks if forward else reverse(hunks), path)
    return {site / path: _checked(site / path, text, ledger["files"][path], forward) for path, text in todo.items()}


def _checked(file: Path, text: str, sums: dict[str, str], forward: bool) -> bytes:
    data = text.encode()
    if digest(data) != sums["after" if forward else "before"]:
        raise PatchError(f"{file}: the patches do not give the text of the ledger: patches/ and ledger.json disagree")
    try:
        compile(text, str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise PatchError(f"{file} would not compile: {error}") from error
    return data


def replace_all(contents: dict[Path, bytes]) -> None:
    """Replace the files, all or none: each by a rename, the old ones kept until the last is done.

    New files are new inodes, so that a package cache that is hard-linked to the old ones stays as it was.
    """
    fresh = {file: file.with_name(file.name + ".relational-new") for file in contents}
    kept = {file: file.with_name(file.name + ".relational-old") for file in contents}
    done: list[Path] = []
    _check_folders({file.parent for file in contents})
    try:
        for file, data in contents.items():
            _write(fresh[file], data, like=file)
            shutil.copy2(file, kept[file])
        for file in contents:
            os.replace(fresh[file], file)
            done.append(file)
    except BaseException as error:
        for file in done:
            os.replace(kept[file], file)
        if isinstance(error, OSError):
            where = error.filename or next(iter(contents))
            raise PatchError(
                f"{where}: {error.strerror or error}. Everything is as it was; mend that, then try again"
            ) from error
        raise
    finally:
        for leftover in (*fresh.values(), *kept.values()):
            leftover.unlink(missing_ok=True)


def _check_folders(folders: set[Path]) -> None:
    """Files are replaced by new ones beside them: their folders must let that be done."""
    for folder in sorted(folders):
        if not os.access(folder, os.W_OK | os.X_OK):
            mend = "run me as the user who installed vLLM, or make the folder writable"
            raise PatchError(f"{folder} is read-only. Nothing was changed; {mend}")


def _write(file: Path, data: bytes, like: Path) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    shutil.copymode(like, file)


def run(action: str, site: Path, folder: Path = PATCHES) -> str:
    """Do ``check``, ``apply`` or ``revert`` and return what to print; ``PatchError`` when it cannot be done."""
    ledger = read_ledger(folder)
    check_version(site, ledger["vllm"])
    if action == "check":
        return _report(states(site, ledger))
    wanted = PATCHED if action == "apply" else RELEASED
    contents = new_texts(site, ledger, wanted, folder)
    replace_all(contents)
    return f"{site}: {len(contents)} of {len(ledger['files'])} files changed, all are {wanted}"


def _report(found: dict[str, str]) -> str:
    lines = "\n".join(f"{path}: {state}" for path, state in found.items())
    if len(set(found.values())) > 1 or not {FOREIGN, MISSING}.isdisjoint(found.values()):
        raise PatchError(lines)
    return lines


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    for name in ("check", "apply", "revert"):
        action.add_argument(f"--{name}", dest="action", action="store_const", const=name)
    parser.add_argument("--site", type=Path)
    options = parser.parse_args(arguments)
    try:
        print(run(options.action, options.site or find_site()))
    except PatchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

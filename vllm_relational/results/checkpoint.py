"""The checkpoint: one line of JSON an answer, appended as answers come, whole after a kill -9.

The first line names the job. Only answers are written, never failures: a resumed job asks failed rows again. A line
cut short by a crash is dropped when the file is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from vllm_relational.records import RelationalError

FORMAT = 1
HEADER = f'{{"format": {FORMAT}, "job": '.encode()  # how the first line begins
# Each line reaches the operating system at once; the disk is asked to catch up this often (power loss).
SYNC_SECONDS = 2.0


class MemoryAnswers:
    """Answers by key, lost with the process: what a query without a checkpoint uses."""

    def __init__(self) -> None:
        self.answers: dict[int, str] = {}

    def add(self, key: int, text: str) -> None:
        self.answers[key] = text

    def close(self, delete: bool = False) -> None: ...


class Checkpoint:
    """Answers by key, on disk.

    A key is the first input row of a group of equal rows; the answer is the completion's text.
    """

    def __init__(self, path: Path, file: IO[bytes], answers: dict[int, str]) -> None:
        self.path = path
        self.answers = answers
        self._file = file
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: Path, job: Mapping[str, Any], resume: bool) -> Checkpoint:
        """Open for appending.

        job: what makes two jobs the same; JSON values.
        Raises ``RelationalError`` when the file belongs to another job or another process writes it, or when it
        holds answers and ``resume`` is False. A file without answers is begun anew.
        """
        try:
            file = path.open("a+b")
        except OSError as error:
            raise RelationalError(f"cannot write the checkpoint {path}: {error.strerror}") from error
        _lock(path, file)
        try:
            return cls(path, file, _load(path, file, job, resume))
        except BaseException:
            with suppress(OSError):
                file.close()
            raise

    @classmethod
    def check(cls, path: Path, job: Mapping[str, Any], resume: bool) -> None:
        """Raise what ``open`` would raise, and leave the file as it is: before an engine is paid for."""
        if not path.exists():
            return
        try:
            with path.open("rb") as file:
                _lock(path, file)
                _check_header(path, file, job, resume)
        except OSError as error:
            raise RelationalError(f"cannot read the checkpoint {path}: {error.strerror}") from error

    def add(self, key: int, text: str) -> None:
        """Store one answer."""
        _append(self.path, self._file, [key, text])
        self.answers[key] = text
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self, delete: bool = False) -> None:
        """Close, and delete once the answers are stored elsewhere. May be called twice."""
        if self._file.closed:
            return
        try:
            with suppress(OSError):  # a full disk was reported when the answer was added
                self.sync()
            if delete:
                self.path.unlink(missing_ok=True)
        finally:
            with suppress(OSError):
                self._file.close()


def _lock(path: Path, file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise RelationalError(f"another run is writing {path}: wait for it, or choose another output") from error


def _load(path: Path, file: IO[bytes], job: Mapping[str, Any], resume: bool) -> dict[int, str]:
    if not _check_header(path, file, job, resume):
        _start(path, file, job)
        return {}
    return _read_answers(path, file)


def _check_header(path: Path, file: IO[bytes], job: Mapping[str, Any], resume: bool) -> bool:
    """Whether the file holds answers, all of this job; False for a file of ours without any."""
    file.seek(0)
    header = file.readline()
    ours = header.startswith(HEADER[: len(header)])
    if ours and not file.read(1):  # new, killed in the first line, or ended before the first answer
        return False
    file.seek(len(header))
    if ours and not resume:
        raise RelationalError(
            f"{path} holds answers of an earlier run: continue it with --resume (resume=True), or delete the file"
        )
    _check_job(path, header, job)
    return True


def _start(path: Path, file: IO[bytes], job: Mapping[str, Any]) -> None:
    file.truncate(0)
    _append(path, file, {"format": FORMAT, "job": job})


def _append(path: Path, file: IO[bytes], line: Any) -> None:
    try:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
    except OSError as error:
        raise RelationalError(
            f"cannot write the checkpoint {path}: {error.strerror}: make room, then continue with --resume"
        ) from error


def _check_job(path: Path, header: bytes, job: Mapping[str, Any]) -> None:
    try:
        found = json.loads(header)
        theirs = found["job"] if found["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError):
        theirs = None
    if theirs is None:
        raise RelationalError(f"{path} is not a checkpoint of this version: delete it or choose another output")
    changed = [name for name in job if json.loads(json.dumps(job[name])) != theirs.get(name)]
    if changed:
        raise RelationalError(
            f"{path} belongs to another job (not the same: {', '.join(changed)}): run the same command to continue "
            "it, or delete the file to start again"
        )


def _read_answers(path: Path, file: IO[bytes]) -> dict[int, str]:
    answers: dict[int, str] = {}
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.truncate(start)
            return answers
        try:
            key, text = json.loads(line)
            answers[int(key)] = str(text)
        except (ValueError, TypeError) as error:
            raise RelationalError(f"{path} is damaged at byte {start}: delete the file to start again") from error

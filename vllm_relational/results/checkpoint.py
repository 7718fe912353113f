"""The checkpoint: one line of JSON an answer, appended as answers come, whole after a kill -9.

The first line names the job. Only answers are written, never failures: a resumed job asks failed rows again. A line
cut short by a crash is dropped when the file is opened again; so is one that its checksum does not fit, with a warning.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from vllm_relational.files.atomic import PRIVATE
from vllm_relational.records import RelationalError
from vllm_relational.results.checkpoint_lines import (
    HEADER,
    Answer,
    answer_line,
    header_line,
    job_digest,
    looks_like_answer,
    read_answer,
    read_header,
)
from vllm_relational.terminal import warn

# Each line reaches the operating system at once; the disk is asked to catch up this often (power loss).
SYNC_SECONDS = 2.0


class MemoryAnswers:
    """Answers by key, lost with the process: what a query without a checkpoint uses.

    cut: the keys of the answers that end at max_tokens.
    """

    def __init__(self) -> None:
        self.answers: dict[int, str] = {}
        self.cut: set[int] = set()

    def add(self, key: int, text: str, cut: bool = False) -> None:
        self.answers[key] = text
        (self.cut.add if cut else self.cut.discard)(key)

    def close(self, delete: bool = False) -> None: ...


class Checkpoint:
    """Answers by key, on disk.

    A key is the first input row of a group of equal rows; the answer is the completion's text.
    cut:     the keys of the answers that end at max_tokens.
    damaged: lines of the file that were dropped when it was opened; their rows are asked again.
    """

    def __init__(self, path: Path, file: IO[bytes], digest: int) -> None:
        self.path = path
        self.answers: dict[int, str] = {}
        self.cut: set[int] = set()
        self.damaged = 0
        self._file, self._digest = file, digest
        self._is_empty = True  # but for the first line
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: Path, job: Mapping[str, Any], resume: bool) -> Checkpoint:
        """Open for appending; a new file is for its owner's eyes only.

        job: what makes two jobs the same; JSON values.
        Raises ``RelationalError`` when the file belongs to another job, when another process writes it, when it is no
        regular file, or when it holds answers and ``resume`` is False. A file without answers is begun anew.
        """
        file = _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "a+b")
        try:
            store = cls(path, file, job_digest(job))
            if _check_header(path, file, job, resume):
                store._load()
            else:
                file.truncate(0)
                os.fchmod(file.fileno(), PRIVATE)  # an empty file may have been there
                store._append(header_line(job))
            return store
        except BaseException:
            with suppress(OSError):
                file.close()
            raise

    @classmethod
    def check(cls, path: Path, job: Mapping[str, Any], resume: bool) -> None:
        """Raise what ``open`` would raise, and leave the file as it is: before an engine is paid for.

        job may lack what is not known yet.
        """
        if not path.exists():
            return
        with _opened(path, os.O_RDONLY, "rb") as file:
            _check_header(path, file, job, resume)

    def add(self, key: int, text: str, cut: bool = False) -> None:
        """Store one answer."""
        answer = Answer(key, text, cut)
        self._append(answer_line(answer, self._digest))
        self._keep(answer)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self, delete: bool = False) -> None:
        """Close, and delete once the answers are stored elsewhere, or where there are none. May be called twice."""
        if self._file.closed:
            return
        try:
            with suppress(OSError):  # a full disk was reported when the answer was added
                self.sync()
            if delete or self._is_empty:
                self.path.unlink(missing_ok=True)
        finally:
            with suppress(OSError):
                self._file.close()

    def _keep(self, answer: Answer) -> None:
        self._is_empty = False
        self.answers[answer.key] = answer.text
        (self.cut.add if answer.cut else self.cut.discard)(answer.key)

    def _append(self, line: bytes) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise RelationalError(
                f"cannot write the checkpoint {self.path}: {error.strerror}: make room, then continue with --resume"
            ) from error

    def _load(self) -> None:
        """Read the answers. What is damaged stays in the file, which is only ever appended to."""
        self._file.seek(0)
        has_header = read_header(self._file.readline()) is not None
        self.damaged = 0 if has_header else 1
        while line := self._file.readline():
            if not line.endswith(b"\n"):  # cut short by a crash
                self._file.truncate(self._file.tell() - len(line))
            elif (answer := read_answer(line, self._digest)) is not None:
                self._keep(answer)
            else:
                self.damaged += 1
                self._is_empty = False
        if not has_header and not self.answers:
            raise RelationalError(
                f"the first line of {self.path} is damaged, and none of its answers is known to be of this job: run "
                "the command that wrote it, or delete the file to start again"
            )
        if self.damaged:
            warn(
                f"{self.path}: {self.damaged} damaged lines were left out, {len(self.answers)} answers are whole; the "
                "rows of the others are asked again",
                stacklevel=4,
            )


def _opened(path: Path, flags: int, mode: str) -> IO[bytes]:
    """The file, locked. Opened without waiting: a named pipe would wait for its other end."""
    try:
        opened = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        verb = "read" if flags == os.O_RDONLY else "write"
        raise RelationalError(f"cannot {verb} the checkpoint {path}: {error.strerror}") from error
    kind = os.fstat(opened).st_mode
    if not stat.S_ISREG(kind):
        os.close(opened)
        raise RelationalError(
            f"{path} is {'a folder' if stat.S_ISDIR(kind) else 'no regular file'}: name another checkpoint"
        )
    file: IO[bytes] = os.fdopen(opened, mode)
    _lock(path, file)
    return file


def _lock(path: Path, file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise RelationalError(f"another run is writing {path}: wait for it, or choose another output") from error


def _check_header(path: Path, file: IO[bytes], job: Mapping[str, Any], resume: bool) -> bool:
    """Whether the file holds answers that may be of this job; False for a file of ours without any."""
    file.seek(0)
    header = file.readline()
    ours = header.startswith(HEADER[: len(header)])
    if ours and not file.read(1):  # new, killed in the first line, or ended before the first answer
        return False
    file.seek(len(header))
    theirs = read_header(header)
    if theirs is None and not any(looks_like_answer(line) for line in file):
        raise RelationalError(
            f"{path} is not a checkpoint of this version: name another with --checkpoint, or delete it if it is not "
            "needed any more"
        )
    if not resume:
        raise RelationalError(
            f"{path} holds answers of an earlier run: continue it with --resume (resume=True), or delete the file"
        )
    if theirs is not None:
        _check_job(path, theirs, job)
    return True


def _check_job(path: Path, theirs: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    changed = [name for name in job if json.loads(json.dumps(job[name])) != theirs.get(name)]
    if changed:
        raise RelationalError(
            f"{path} belongs to another job (not the same: {', '.join(changed)}): run the same command to continue "
            "it, or delete the file to start again"
        )

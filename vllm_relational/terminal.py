"""Text for people: what others wrote cannot steer a terminal, and a terminal that is gone cannot end a job.

Names of columns, files and models, the words of servers and the cells of tables go through ``printable`` before they
are shown or stored as reasons. Lines for the person at the terminal go through ``tell``, warnings through ``warn``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import unicodedata
import warnings
from typing import IO, TextIO

# Format characters that reorder what is shown; the others (joiners of Indic scripts and emoji) are part of words.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSHOWN = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, surrogates, line and paragraph separators
_STANDARD_DESCRIPTORS = (0, 1, 2)


def follow_log_level() -> None:
    """Hold vLLM to ``VLLM_LOGGING_LEVEL`` already while it is imported: its own processes read it too late, and write
    that Triton has no CPU backend."""
    level = logging.getLevelNamesMapping().get(os.environ.get("VLLM_LOGGING_LEVEL", "").upper())
    if level is not None:
        logging.getLogger("vllm").setLevel(level)


def printable(text: str, *, lines: bool = False) -> str:
    """``text`` with control characters, lone surrogates and marks that change the direction written as escapes.

    lines: keep line feeds and tabs, for texts of several lines.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(char if char in kept or not _is_unshown(char) else _escape(char) for char in text)


def _is_unshown(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in _UNSHOWN


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class JsonForTerminals:
    """A binary file of JSON lines in which no character steers a terminal: JSON has an escape for each, which readers
    of JSON take for the character. Bytes are passed on to ``out``."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, line: bytes) -> int:
        if not line.isascii() or b"\x7f" in line:
            line = "".join(map(_json_escape, line.decode("utf-8"))).encode("utf-8")
        return self._out.write(line)


def _json_escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if char not in "\n\r\t" and _is_unshown(char) else char


def tell(text: str) -> None:
    """A line, or several, on standard error: escaped, in whatever the terminal can show, or nowhere if it is gone."""
    stream = sys.stderr
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):  # full, broken or closed
        print(_encodable(printable(text, lines=True), stream), file=stream, flush=True)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def warn(message: str, stacklevel: int = 1) -> None:
    """``warnings.warn``, which never ends a job: where it raises, the message is told instead.

    It raises where standard error is closed or cannot show a character, and under a filter that makes errors of
    warnings: answers were paid for by then.
    stacklevel: 1 for the caller of this function.
    """
    message = printable(message)
    try:
        warnings.warn(message, stacklevel=stacklevel + 1)
    except (Warning, OSError, ValueError):
        tell(f"warning: {message}")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads it; False for what is closed or missing."""
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------ a whole process
def prepare_streams() -> None:
    """At the start of a command: standard output and error take every character, and no file gets their numbers.

    A file that is opened while descriptor 1 or 2 is closed would receive what libraries print there.
    """
    for descriptor in _STANDARD_DESCRIPTORS:
        _keep_open(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def _keep_open(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)  # the lowest free number: that of the closed one, or of one before it
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def give_up_output() -> None:
    """After a failed write to standard output: what is still buffered must not fail again when Python ends."""
    _point_to_null(sys.stdout, 1)


def flush_streams() -> bool:
    """At the end of a command: whether standard output took everything. A broken standard error is no failure."""
    delivered = _flushed(sys.stdout)
    if not delivered:
        give_up_output()
    if not _flushed(sys.stderr):
        _point_to_null(sys.stderr, 2)
    return delivered


def _flushed(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
        return True
    except (OSError, ValueError):
        return False


def _point_to_null(stream: TextIO | None, descriptor: int) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor if stream is None else stream.fileno())
        os.close(null)

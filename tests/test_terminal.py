"""What is shown cannot steer a terminal, and a terminal that is gone ends nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest

from vllm_relational.terminal import JsonForTerminals, flush_streams, is_terminal, printable, tell, warn


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("\x9b31m", "\\x9b31m"),  # one-character form of ESC [
        ("safe\u202egpj.exe", "safe\\u202egpj.exe"),
        ("\u2028\ud800\x00", "\\u2028\\ud800\\x00"),
        ("日本\u3000語 naïve café\u00a0👩\u200d🔬", "日本\u3000語 naïve café\u00a0👩\u200d🔬"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_texts_of_several_lines_keep_them() -> None:
    assert printable("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


def _to_standard_error(*message: Any) -> None:
    print(message[0], file=sys.stderr or closed())


@pytest.mark.parametrize("text", ["\x9b31m\x7f", "\u202egpj", "\u2028", "é☕\u200d", '\\"\n\x1b', "plain"])
def test_json_for_terminals_is_the_same_json(text: str) -> None:
    out = io.BytesIO()
    JsonForTerminals(out).write(json.dumps({text: text}, ensure_ascii=False).encode() + b"\n")
    shown = out.getvalue().decode()
    assert json.loads(shown) == {text: text} and printable(shown, lines=True) == shown
    assert ("é" in shown) == ("é" in text)


class Failing(io.TextIOBase):
    """A stream that cannot be written: full, or with a strict encoding."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def isatty(self) -> bool:
        raise self.error


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


BROKEN = [None, closed(), Failing(OSError(28, "No space left on device")), Failing(BrokenPipeError())]


@pytest.mark.parametrize("stream", BROKEN)
def test_nothing_ends_because_standard_error_is_gone(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    tell("a line")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", _to_standard_error)
        warn("a warning")
        warnings.simplefilter("error")
        warn("a warning")
    assert is_terminal(stream) is False


def test_no_line_goes_to_standard_output_in_place_of_a_missing_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    tell("a line")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "caf\\xe9 \\u20ac\n"), ("latin-1", "café \\u20ac\n")])
def test_every_locale_gets_what_it_can_show(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    tell("café €")
    assert raw.getvalue().decode(encoding) == shown


def test_a_warning_that_would_be_an_error_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("row 3 \x1b[2J")
    assert capsys.readouterr().err == "warning: row 3 \\x1b[2J\n"
    with pytest.warns(UserWarning, match=r"^row 4$"):
        warn("row 4")


def test_output_that_was_not_delivered_is_found_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flush_streams() is True
    with open("/dev/full", "w", encoding="utf-8") as full:
        full.write("an answer")
        monkeypatch.setattr(sys, "stdout", full)
        assert flush_streams() is False
        assert flush_streams() is True  # nothing fails again when Python ends
    monkeypatch.setattr(sys, "stdout", None)
    assert flush_streams() is True


@pytest.mark.parametrize(
    ("level", "shown"), [("ERROR", "e"), ("error", "e"), ("WARNING", "we"), ("no level", "we"), ("", "we")]
)
def test_processes_of_vllm_hold_to_the_level_while_they_import_it(level: str, shown: str) -> None:
    script = "import vllm_relational, logging; log = logging.getLogger('vllm.x'); log.warning('w'); log.error('e')"
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": level}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.split() == list(shown)

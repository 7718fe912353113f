"""Progress goes to standard error only, and says how a run ended."""

from __future__ import annotations

import sys

import pytest

from vllm_relational.records import Completion
from vllm_relational.results import progress as progress_room
from vllm_relational.results.progress import Bar, Lines, Silent, make_progress

GOOD = Completion(0, "yes", prompt_tokens=10, cached_tokens=5)
BAD = Completion(1, None, "refused")


def follow(progress, completions: list[Completion], total: int) -> None:
    progress.start(total)
    for completion in completions:
        progress.add(completion)
    progress.stop()


def test_nothing_is_shown_unless_asked(capsys):
    follow(make_progress(False), [GOOD, BAD], 2)
    assert isinstance(make_progress(False), Silent)
    assert capsys.readouterr() == ("", "")


def test_lines_in_a_log_and_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(make_progress(True).shown, Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(make_progress(True).shown, Bar)


def test_the_last_line_counts_rows_failures_and_hits(capsys):
    follow(Lines(), [GOOD, BAD], 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("2/2 rows") and "hit rate 50.0%, 1 failed" in err and err.endswith("done\n")


def test_an_early_end_is_called_stopped(capsys):
    follow(Lines(), [GOOD], 2)
    assert capsys.readouterr().err.endswith("stopped\n")


def test_engines_that_do_not_count_hits_show_a_question_mark(capsys):
    follow(Lines(), [Completion(0, "yes")], 1)
    assert "hit rate ?" in capsys.readouterr().err


def test_a_line_now_and_then_with_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress_room, "LOG_SECONDS", 0.0)
    follow(Lines(), [GOOD] * 10, 12)
    first, *_, tenth, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("1/12 rows") and first.endswith(", asking")
    assert tenth.startswith("10/12 rows") and tenth.endswith("s left")


@pytest.mark.parametrize("completions", [[], [GOOD, BAD]])
def test_the_bar_writes_to_standard_error(capsys, completions):
    follow(Bar(), completions, 2)
    assert capsys.readouterr().out == ""


class Breaks:
    """Progress whose terminal goes away at the given call."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise BrokenPipeError

    def start(self, total: int) -> None:
        self._call("start")

    def add(self, completion: Completion) -> None:
        self._call("add")

    def stop(self) -> None:
        self._call("stop")


@pytest.mark.parametrize(
    ("at", "calls"),
    [
        ("start", ["start", "stop"]),
        ("add", ["start", "add", "stop"]),
        ("stop", ["start", "add", "add", "stop", "stop"]),
        ("never", ["start", "add", "add", "stop"]),
    ],
)
def test_progress_that_fails_falls_silent(at, calls):
    shown = Breaks(at)
    guarded = progress_room.Guarded(shown)
    follow(guarded, [GOOD, BAD], 2)
    assert shown.calls == calls
    assert isinstance(guarded.shown, Silent) == (at != "never")


def test_without_standard_error_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(make_progress(True), Silent)


@pytest.mark.parametrize(("seconds", "shown"), [(4, "0.5 rows/s"), (140, "0.014 rows/s"), (0.1, "20.0 rows/s")])
def test_slow_runs_have_a_rate_too(monkeypatch, capsys, seconds, shown):
    clock = [100.0]
    monkeypatch.setattr(progress_room.time, "monotonic", lambda: clock[0])
    lines = Lines()
    lines.start(2)
    clock[0] += seconds
    for completion in (GOOD, BAD):
        lines.add(completion)
    lines.stop()
    assert f"2/2 rows, {shown}, hit rate" in capsys.readouterr().err.splitlines()[-1]

"""How far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from vllm_relational.records import Completion
from vllm_relational.terminal import is_terminal, tell

LOG_SECONDS = 10.0
ESTIMATE_ROWS = 10  # answers of a batch come together: the first say nothing about the rest


class Progress(Protocol):
    """Told of every completion; counts rows asked in this run."""

    def start(self, total: int) -> None: ...

    def add(self, completion: Completion) -> None: ...

    def stop(self) -> None: ...


def make_progress(show: bool | None) -> Progress:
    """A bar when standard error is a terminal, lines when it is a file, nothing when not shown. None: a bar or nothing.

    None of them ends a job: one that fails, because its terminal is gone say, falls silent.
    """
    if show is None:
        show = is_terminal(sys.stderr)
    if not show or sys.stderr is None:
        return Silent()
    return Guarded(Bar() if is_terminal(sys.stderr) else Lines())


class Guarded:
    """Progress that may fail. ``shown`` does the work until it does."""

    def __init__(self, shown: Progress) -> None:
        self.shown = shown

    def start(self, total: int) -> None:
        self._try(lambda: self.shown.start(total))

    def add(self, completion: Completion) -> None:
        self._try(lambda: self.shown.add(completion))

    def stop(self) -> None:
        self._try(lambda: self.shown.stop())

    def _try(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception:
            failed, self.shown = self.shown, Silent()
            with suppress(Exception):  # a bar's thread must not go on without us
                failed.stop()


class Silent:
    """For runs that nobody watches."""

    def start(self, total: int) -> None: ...

    def add(self, completion: Completion) -> None: ...

    def stop(self) -> None: ...


class _Counts:
    """Rows, failures and cache hits so far."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.failed, self.cut = total, 0, 0, 0
        self._prompt_tokens = self._cached_tokens = 0
        self._start = time.monotonic()

    def add(self, completion: Completion) -> None:
        self.done += 1
        self.failed += completion.error is not None
        self.cut += completion.cut and completion.error is None
        if completion.cached_tokens is not None:
            self._prompt_tokens += completion.prompt_tokens
            self._cached_tokens += completion.cached_tokens

    @property
    def rows_per_second(self) -> float:
        return self.done / max(time.monotonic() - self._start, 1e-9)

    @property
    def seconds_left(self) -> float:
        return (self.total - self.done) / self.rows_per_second if self.done else float("inf")

    @property
    def hit_rate(self) -> str:
        return f"{self._cached_tokens / self._prompt_tokens:.1%}" if self._prompt_tokens else "?"

    @property
    def summary(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        failed += f", {self.cut} cut off" if self.cut else ""
        rate = self.rows_per_second
        speed = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"  # on a CPU a row may take many seconds
        return f"{speed} rows/s, hit rate {self.hit_rate}{failed}"


class Lines:
    """For logs: one line every ``LOG_SECONDS``."""

    def start(self, total: int) -> None:
        self._counts, self._printed = _Counts(total), time.monotonic()

    def add(self, completion: Completion) -> None:
        self._counts.add(completion)
        if time.monotonic() - self._printed >= LOG_SECONDS:
            known = self._counts.done >= ESTIMATE_ROWS
            self._print(f"{self._counts.seconds_left:.0f} s left" if known else "asking")

    def stop(self) -> None:
        self._print("stopped" if self._counts.done < self._counts.total else "done")

    def _print(self, state: str) -> None:
        self._printed = time.monotonic()
        counts = self._counts
        tell(f"{counts.done}/{counts.total} rows, {counts.summary}, {state}")


class Bar:
    """For terminals."""

    def start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._counts = _Counts(total)
        self._bar = RichProgress(
            TextColumn("asking"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=total, summary="waiting for the first answer")

    def add(self, completion: Completion) -> None:
        self._counts.add(completion)
        self._bar.update(self._task, completed=self._counts.done, summary=self._counts.summary)

    def stop(self) -> None:
        self._bar.stop()

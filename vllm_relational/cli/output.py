"""Where the command line puts answers and reports, checked before anything is asked."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from vllm_relational.cli.errors import COULD_NOT_RUN, OK, SOME_ROWS_FAILED
from vllm_relational.files.atomic import check_writable
from vllm_relational.records import QueryResult, RelationalError, RunReport
from vllm_relational.terminal import JsonForTerminals, give_up_output, tell

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ResultColumns:
    """Names of the columns that a command adds to the table.

    origin: of the number of the row whose answer it is, and ``{origin}_how`` of how the answer came; None: neither.
    """

    answer: str
    error: str
    status: str
    origin: str | None = None

    @property
    def names(self) -> list[str]:
        """All of them, in the order of the output."""
        origins = [] if self.origin is None else [self.origin, f"{self.origin}_how"]
        return [self.answer, self.error, self.status, *origins]

    def check_names(self) -> None:
        """Raise ``RelationalError`` for what can be the name of no column."""
        check_names({"--answer-column": self.answer, "--error-column": self.error, "--status-column": self.status})
        check_names({"--explain-dedup": self.origin})

    def check_free(self, data: pa.Table) -> None:
        """Raise ``RelationalError`` for a name that the table has already, or that two columns would have."""
        for name in self.names:
            if name in data.column_names:
                raise RelationalError(
                    f"the table has a column {name!r} already: choose another name with --answer-column, "
                    "--error-column, --status-column or --explain-dedup"
                )
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            raise RelationalError(f"answers, reasons, statuses and origins cannot share the column {twice!r}")

    def added_to(self, data: pa.Table, result: QueryResult, options: Mapping[str, Any]) -> pa.Table:
        """The table with the columns."""
        for name, column in zip(self.names, self._columns(result, options), strict=False):
            data = data.append_column(name, column)
        return data

    def _columns(self, result: QueryResult, options: Mapping[str, Any]) -> Iterator[pa.Array]:
        import pyarrow as pa

        yield _answer_column(result, options)
        yield pa.array(result.errors, pa.string())
        yield pa.array(result.statuses, pa.string())
        yield pa.array(result.source_rows, pa.int64(), mask=result.source_rows < 0)
        yield pa.array(result.origins, pa.string())


def _answer_column(result: QueryResult, options: Mapping[str, Any]) -> pa.Array:
    """Numbers for a range, else texts: what a schema describes as JSON."""
    import pyarrow as pa

    values: list[Any] = result.answers
    if options.get("schema") is not None:
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(values, pa.int64() if options.get("range") is not None else pa.string())


def check_names(columns: Mapping[str, str | None]) -> None:
    """Raise ``RelationalError`` for what can be the name of no column, by option; None was not given."""
    for option, name in columns.items():
        if name is not None and not name.strip():
            raise RelationalError(f"{option} is {name!r}: a column needs a name, e.g. {option} verdict")
        if name is not None and not _is_unicode(name):
            raise RelationalError(f"{option} is {name!a}, which is not UTF-8: name the column in UTF-8")


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in name)


def check_file(output: Path | None) -> None:
    """Before anything is asked: can a table be written under that name?"""
    from vllm_relational.table import check_output

    if output is not None:
        check_output(output)


def check_page(page: Path | None, library: str = "matplotlib") -> None:
    """Before anything is asked or planned: can the page be drawn and written?"""
    check_folder(page)
    if page is not None and page.suffix.lower() != ".json" and importlib.util.find_spec(library) is None:
        raise RelationalError(f"{page} is drawn with {library}: pip install 'vllm-relational[report]'")


def check_folder(file: Path | None) -> None:
    """Can the file be made there?"""
    if file is not None:
        check_writable(file)


def check_csv(file: Path | None, fields: Sequence[str]) -> None:
    """Before anything is asked: can lines of these fields be appended?"""
    check_folder(file)
    if file is None or not file.exists():
        return
    problem = _why_not(file, fields) if file.is_file() else "it is not a file"
    if problem:
        raise RelationalError(f"cannot append to {file}: {problem}; name another file")


def _why_not(file: Path, fields: Sequence[str]) -> str | None:
    if not os.access(file, os.W_OK):
        return "it may not be written to"
    if file.stat().st_size == 0:
        return "it is empty"
    try:
        with file.open("rb") as opened:
            first = opened.readline().decode("utf-8")
            opened.seek(-1, os.SEEK_END)
            last = opened.read()
        there = next(csv.reader([first]), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return f"it is not such a file ({error})"
    for number, (found, wanted) in enumerate(zip_longest(there, fields), start=1):
        if found != wanted:
            is_found, is_wanted = ("missing" if name is None else repr(name[:80]) for name in (found, wanted))
            return f"its column {number} is {is_found}, where these measurements have {is_wanted}"
    return None if last == b"\n" else "its last line has no end"


def write(answered: pa.Table, output: Path | None) -> None:
    """The answered table into its file, or as JSON lines on standard output."""
    from vllm_relational.table.formats import write_json_lines
    from vllm_relational.table.write import write_table

    if output is not None:
        write_table(answered, output)
        return
    try:
        write_json_lines(answered, cast("IO[bytes]", JsonForTerminals(sys.stdout.buffer)))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has had enough
        raise
    except (OSError, ValueError) as error:
        give_up_output()
        reason = getattr(error, "strerror", None) or error
        raise RelationalError(f"cannot write to standard output: {reason}; name a file with -o") from error


def finish(report: RunReport, page: Path | None) -> int:
    """Show the report, write it where that is wanted, and return the exit status."""
    from vllm_relational.results.report_text import render_text

    tell(render_text(report))
    return write_report(report, page)


def write_report(report: RunReport, page: Path | None) -> int:
    """Where one is wanted: as JSON where the file's name says so, else as a page. Returns the exit status.

    The answers are written by then: a report that fails takes nothing with it.
    """
    problem = _problem(report, page) if page is not None else None
    if page is not None:
        tell(f"error: the report could not be written to {page}: {problem}" if problem else f"report: {page}")
    return COULD_NOT_RUN if problem else SOME_ROWS_FAILED if report.num_failed else OK


def _problem(report: RunReport, page: Path) -> str | None:
    """Write it. Returns why it could not be written, None if it was."""
    try:
        _write_report(report, page)
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def _write_report(report: RunReport, page: Path) -> None:
    if page.suffix.lower() == ".json":
        from vllm_relational.results.report_json import write_json

        write_json(report, page)
    else:
        from vllm_relational.results.report_html import write_html

        write_html(report, page)

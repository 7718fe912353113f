"""CSV -> an Arrow table of texts. What Arrow's reader would take in a wrong way is refused, with the line and the fix.

Arrow reads; Python's csv module, which knows the line it is at, looks again where quotes could hide rows and where
Arrow found a fault.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from vllm_relational.records import RelationalError
from vllm_relational.table.content import BYTE_ORDER_MARK, check_text, line_of_fault, wrong_encoding

CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
# Records that are looked at to tell what stands between the fields.
SAMPLE_RECORDS = 50
# A first line that tells Excel what stands between the fields.
EXCEL_HINT = re.compile(r'(?:sep=([^\w"])|"sep=([^\w"])")\s*', re.IGNORECASE)
SHOWN_CHARACTERS = 40
QUOTE_BLOCK = 1 << 26  # bytes looked at together


def read_csv(path: Path) -> pa.Table:
    """The cells of the file as texts, exactly as written; an empty unquoted cell is null.

    Raises ``RelationalError``, with what was found and the fix, for other separators than the suffix says, rows of
    another number of fields than the header, quotes that do not end, and text that is not UTF-8.
    """
    check_text(path)
    delimiter = CSV_SUFFIXES[path.suffix.lower()]
    try:
        _refuse_excel_hint(path, delimiter)
        _check_separator(path, delimiter)
        _check_quotes(path, delimiter)
        table = _read(path, delimiter)
        table.validate(full=True)  # the reader lets text pass that is not UTF-8
        return table
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        fault = line_of_fault(path)
        if fault is not None:
            raise wrong_encoding(path, *fault) from error
        _refuse_ragged(path, delimiter)
        raise


def _read(path: Path, delimiter: str) -> pa.Table:
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = pa.csv.ReadOptions(block_size=64 << 20)
    with pa.csv.open_csv(path, read_options=read, parse_options=parse) as head:
        names = head.schema.names
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return pa.csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)


# ------------------------------------------------------------------------------------------------------- separators
def _refuse_excel_hint(path: Path, delimiter: str) -> None:
    """``sep=;`` would be the name of a column, and the names a row."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline(2 * SHOWN_CHARACTERS).rstrip("\r\n")
    hint = EXCEL_HINT.fullmatch(first)
    if hint is None:
        return
    other = hint[1] or hint[2]
    suffix = next((suffix for suffix, known in CSV_SUFFIXES.items() if known == other), None)
    without = f"{path.stem}-table{suffix or '.csv'}"
    fix = f"tail -n +2 {path.name} > {without}" if suffix else _conversion(path, other, without, "next(sys.stdin); ")
    raise RelationalError(
        f"{path} begins with the line {first!r}, which is for Excel and no part of the table: leave it out"
        f"{'' if suffix else ' and write commas between the fields'}: {fix}"
    )


def _conversion(path: Path, separator: str, to: str, first: str = "") -> str:
    """The command that writes commas; first: what it does before."""
    writer = f"csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={separator!r}))"
    return f'python -c "import csv, sys; {first}{writer}" < {path.name} > {to}'


def _check_separator(path: Path, delimiter: str) -> None:
    """A file of one column whose name and rows hold another separator is a file of that separator."""
    header = next(_sample(path, delimiter), None)
    if header is None:
        raise RelationalError(f"{path} holds blank lines only: its first line must name the columns")
    other = _other_separator(path, delimiter) if len(header) == 1 else None
    if other is not None:
        raise RelationalError(f"{path} {_found_and_fix(path, delimiter, other)}")


def _other_separator(path: Path, delimiter: str) -> str | None:
    for other in NAMES:
        records = list(_sample(path, other))
        if other == delimiter or len(records[0]) == 1:
            continue
        split = sum(len(record) > 1 for record in records[1:])
        if 2 * split >= len(records) - 1:
            return other
    return None


def _found_and_fix(path: Path, delimiter: str, other: str) -> str:
    names = next(_sample(path, other))
    shown = ", ".join(_shown(name) for name in names[:4]) + (", ..." if len(names) > 4 else "")
    suffix = next((suffix for suffix, known in CSV_SUFFIXES.items() if known == other), None)
    fix = (
        f"rename it to {path.stem}{suffix}"
        if suffix
        else f"convert it: {_conversion(path, other, f'{path.stem}-commas.csv')}"
    )
    return (
        f"has {NAMES[other]} between its fields ({len(names)} columns: {shown}), where {path.suffix} means "
        f"{NAMES[delimiter]}: {fix}; if it is one column, put its name in double quotes"
    )


def _shown(name: str) -> str:
    short = name[:SHOWN_CHARACTERS]
    return short if short.isprintable() else repr(short)


def _sample(path: Path, delimiter: str) -> Iterator[list[str]]:
    """The first records that are not blank; what is not UTF-8 is found later."""
    with _reader(path, delimiter, errors="replace") as reader:
        yield from islice((record for _, record in _numbered(reader)), SAMPLE_RECORDS)


# ----------------------------------------------------------------------------------------------------- quotes, rows
def _check_quotes(path: Path, delimiter: str) -> None:
    """A quote that does not end takes in the rows up to the next one; Arrow would not mind."""
    if _quotes_stand_at_ends(path, delimiter):
        return
    with _reader(path, delimiter, strict=True) as reader:
        begin = 1
        try:
            for _ in reader:
                begin = reader.line_num + 1
        except csv.Error as error:
            between = "expected after" in str(error)
            what = "a double quote inside of a quoted field" if between else "a quoted field that does not end"
            raise RelationalError(
                f"cannot read {path}: the record that begins on line {begin} has {what}: end the field "
                'with a double quote, and write a double quote in it twice ("")'
            ) from error


def _quotes_stand_at_ends(path: Path, delimiter: str) -> bool:
    """Whether every quote opens a field, closes it, or is one of two in it: every other quote opens, of two in a field
    the first closes and the second opens. Fast, where the csv module is not."""
    may_stand_beside = np.zeros(256, bool)
    may_stand_beside[[*map(ord, f'{delimiter}\n\r"'), BYTE_ORDER_MARK[-1]]] = True
    data = np.memmap(path, np.uint8, mode="r")
    blocks = range(0, len(data), QUOTE_BLOCK)
    quotes = np.concatenate([start + np.flatnonzero(data[start : start + QUOTE_BLOCK] == ord('"')) for start in blocks])
    opens, closes = quotes[0::2], quotes[1::2]
    before, after = data[opens[opens > 0] - 1], data[closes[closes < len(data) - 1] + 1]
    return len(opens) == len(closes) and bool(may_stand_beside[before].all() and may_stand_beside[after].all())


def _refuse_ragged(path: Path, delimiter: str) -> None:
    """Raise ``RelationalError`` at the first row with another number of fields than the header."""
    with _reader(path, delimiter) as reader:
        rows = _numbered(reader)
        _, header = next(rows, (0, []))
        for line, record in rows:
            if len(record) != len(header):
                raise RelationalError(f"cannot read {path}: {_ragged(path, delimiter, line, record, header)}")


def _ragged(path: Path, delimiter: str, line: int, record: Sequence[str], header: Sequence[str]) -> str:
    found = f"{len(record)} field{'s' if len(record) != 1 else ''} where the header has {len(header)}"
    begins = delimiter.join(record)[:SHOWN_CHARACTERS]
    other = _other_separator(path, delimiter)
    if other is not None:
        fix = f"the file {_found_and_fix(path, delimiter, other)}"
    elif len(record) > len(header):
        fix = "put a field that holds a separator in double quotes"
    else:
        fix = f"add the missing {NAMES[delimiter]}"
    return f"line {line} has {found} ({begins!r}): {fix}"


@contextmanager
def _reader(path: Path, delimiter: str, strict: bool = False, errors: str = "strict") -> Iterator[Any]:
    """Python's reader, which takes fields of any length while it is open."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
            yield csv.reader(file, delimiter=delimiter, strict=strict)
    finally:
        csv.field_size_limit(limit)


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the line, from 1, on which it begins."""
    begin = 1
    for record in reader:
        if record:
            yield begin, record
        begin = reader.line_num + 1

"""What a file holds, whatever its name says: signatures, encodings, and the errors that say so."""

from __future__ import annotations

import mmap
from pathlib import Path

from vllm_relational.records import RelationalError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF16 = {b"\xff\xfe": "utf-16le", b"\xfe\xff": "utf-16be"}
UNPACK = "unpack it first"
# By the bytes that a file begins with: what it is, and what to do.
SIGNATURES = {
    b"\x1f\x8b": ("a gzip archive", f"{UNPACK} (gunzip)"),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", f"{UNPACK} (unzip), or save the sheet as CSV"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", f"{UNPACK} (unzstd)"),
    b"BZh": ("a bzip2 archive", f"{UNPACK} (bunzip2)"),
    b"\xfd7zXZ\x00": ("an xz archive", f"{UNPACK} (unxz)"),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"PAR1": ("a Parquet file", "rename it to .parquet"),
    b"ARROW1": ("an Arrow file", "rename it to .arrow"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV"),
    b"SQLite format 3\x00": ("an SQLite database", "export the table as CSV"),
    b"%PDF": ("a PDF document", "extract its table as CSV"),
}


def check_text(path: Path) -> None:
    """Raise ``RelationalError`` unless the file is text that can be read line by line: not another format under a wrong
    name, not UTF-16, without NUL bytes."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = data[:16]
        for signature, (found, fix) in SIGNATURES.items():
            if head.startswith(signature):
                raise RelationalError(f"{path} is {found}, whatever its name says: {fix}")
        zero = data.find(b"\0")
        encoding = UTF16.get(head[:2]) or _utf16_without_mark(data[:1024])
        if encoding is not None:
            raise RelationalError(
                f"{path} is not UTF-8 but UTF-16: convert it first ({_iconv(path, encoding.removesuffix('le'))})"
            )
        if zero >= 0:
            raise RelationalError(
                f"{path}: line {data[:zero].count(10) + 1} holds a NUL byte, which no text does: the file is damaged "
                f"or not text; without such bytes: tr -d '\\000' < {path.name} > clean{path.suffix}"
            )


def line_of_fault(path: Path) -> tuple[int, UnicodeDecodeError] | None:
    """The first line that is not UTF-8, counted from 1; None where all are."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.isascii() or line.decode()
            except UnicodeDecodeError as error:
                return number, error
    return None


def wrong_encoding(path: Path, number: int, error: UnicodeDecodeError) -> RelationalError:
    """What to say of a line that is not UTF-8."""
    found = error.object[error.start]
    before = error.object[max(error.start - 20, 0) : error.start].decode("ascii", "replace").strip()
    return RelationalError(
        f"cannot read {path}: line {number} is not UTF-8 (byte 0x{found:02x}{f' after {before!r}' if before else ''}): "
        f"convert it to UTF-8 first, if it is latin-1: {_iconv(path, 'latin1')}"
    )


def _utf16_without_mark(head: bytes) -> str | None:
    """Text in UTF-16 of which half is ASCII is zero in every fourth byte, on one side."""
    even, odd = head[0::2], head[1::2]
    if len(head) < 4:
        return None
    if 2 * odd.count(0) >= len(odd) and 0 not in even:
        return "utf-16le"
    return "utf-16be" if 2 * even.count(0) >= len(even) and 0 not in odd else None


def _iconv(path: Path, encoding: str) -> str:
    return f"iconv -f {encoding} -t utf-8 {path.name} > utf8{path.suffix}"

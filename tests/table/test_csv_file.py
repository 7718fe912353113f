"""CSV files that would be read in a wrong way are refused, with the line, what was found and the fix."""

from __future__ import annotations

import bz2
import gzip
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from vllm_relational.records import RelationalError
from vllm_relational.table import read_table


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(path: Path, text: str | bytes) -> str:
    with pytest.raises(RelationalError) as caught:
        read_table(write(path, text))
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- separators
@pytest.mark.parametrize(
    ("name", "text", "found", "fix"),
    [
        (
            "t.csv",
            "text;id\nhello;1\nworld;2\n",
            "semicolons between its fields (2 columns: text, id)",
            "delimiter=';'",
        ),
        ("t.csv", "text\tid\nhello\t1\n", "tabs between its fields (2 columns: text, id)", "rename it to t.tsv"),
        ("t.csv", "text|id\nhello|1\n", "bars between its fields", "delimiter='|'"),
        ("t.tsv", "text,id\nhello,1\n", "commas between its fields", "rename it to t.csv"),
        ("t.tsv", "text;id\nhello;1\n", "semicolons between its fields", "delimiter=';'"),
        ("t.csv", "text;id\n", "semicolons between its fields", "double quotes"),
        ("t.csv", "a;b;c;d;e\n1,5;2;3;4;5\n2,5;2;3;4;5\n", "(5 columns: a, b, c, d, ...)", "delimiter=';'"),
        ("t.csv", '\ufeff"text";"id"\r\n"a;b";"1"\r\n', "semicolons between its fields", "delimiter=';'"),
    ],
)
def test_other_separators_are_refused_with_the_fix(tmp_path, name, text, found, fix):
    message = error_of(tmp_path / name, text)
    assert found in message and fix in message


def test_the_fix_for_semicolons_mends_the_file(tmp_path):
    message = error_of(tmp_path / "t.csv", 'text;id\n"a;b, ""c""";1\n')
    command = message.partition("convert it: python ")[2].partition("; if it is one")[0]
    subprocess.run(f"{sys.executable} {command}", shell=True, cwd=tmp_path, check=True)
    assert read_table(tmp_path / "t-commas.csv").to_pylist() == [{"text": 'a;b, "c"', "id": "1"}]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"text;id"\nhello;1\n', ["text;id"]),
        ("text\nhello; world\na;b\n", ["text"]),
        ("note; more\nhello\nworld\na;b\n", ["note; more"]),
        ("a;x,b\n1;y,2\n", ["a;x", "b"]),
    ],
)
def test_columns_whose_cells_hold_other_separators_are_read(tmp_path, text, names):
    assert read_table(write(tmp_path / "t.csv", text)).column_names == names


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("separator", "end"), [(",", "\n"), (";", "\r\n"), ("|", "\n"), ("\t", "\r\n"), ("^", "\n")])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_first_line_for_excel_is_refused_and_the_fix_mends_it(tmp_path, name, separator, end, mark, quote):
    hint = f"{quote}sep={separator}{quote}"
    rows = (hint, separator.join("ab"), separator.join("12"))
    message = error_of(tmp_path / name, mark + "".join(row + end for row in rows))
    assert f"begins with the line {hint!r}, which is for Excel" in message
    command = message.rsplit(": ", 1)[1] if "tail" in message else message[message.index("python") :]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, check=True)
    (mended,) = tmp_path.glob("t-table.*")
    assert read_table(mended).to_pylist() == [{"a": "1", "b": "2"}]


def test_a_column_that_is_called_like_a_line_for_excel_is_read(tmp_path):
    for header in ("sep=,x", "sep=1", "Sep=a;b"):
        assert read_table(write(tmp_path / "t.csv", f"{header}\n1{',2' * header.count(',')}\n")).num_rows == 1


# ------------------------------------------------------------------------------------------------------ rows, quotes
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n1,2,3\n", "line 3 has 3 fields where the header has 2 ('1,2,3'): put a field"),
        ("a,b\n1,2\n\n1\n", "line 4 has 1 field where the header has 2 ('1'): add the missing commas"),
        ('a,b\n"two\nlines",2\n1\n', "line 4 has 1 field"),
        ("a,b;c\n1;2\n3;4\n", "line 2 has 1 field where the header has 2 ('1;2'): the file has semicolons"),
        ("a,b\r\n1,2\r\n3\r\n", "line 3 has 1 field"),
        ('a,b\n"' + "x" * 300_000 + '",2\n1\n', "line 3 has 1 field"),
        ('a,b\n"x,2\n3,4\n', "line 2 has a quoted field that does not end"),
        ('a,b\n1,2\n\n"x,2\n3" pipe,4\n', "line 4 has a double quote inside of a quoted field"),
        ('a,b\n"x"y,2\n', "line 2 has a double quote inside of a quoted field"),
        ('a,b\n1,2\n"', "line 3 has a quoted field that does not end"),
        ("a,b\n1,2\nx\0y,3\n", "line 3 holds a NUL byte"),
        ("\n\n", "blank lines only"),
    ],
)
def test_rows_that_do_not_fit_are_named_by_line(tmp_path, text, words):
    assert words in error_of(tmp_path / "t.csv", text)


def test_quotes_that_stand_right_are_read(tmp_path):
    text = 'a,b\n"x, ""q""","""\n"""\n5" pipe,""\n"",\n'
    assert [list(row.values()) for row in read_table(write(tmp_path / "t.csv", text)).to_pylist()] == [
        ['x, "q"', '"\n"'],
        ['5" pipe', ""],
        ["", None],
    ]


# -------------------------------------------------------------------------------------------- encodings, other formats
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named_and_the_fix_mends_it(tmp_path, encoding):
    message = error_of(tmp_path / "t.csv", "text,id\nnaïve,1\n".encode(encoding))
    assert "UTF-16" in message
    command = message.partition("(")[2].rpartition(")")[0]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert read_table(tmp_path / "utf8.csv").to_pylist() == [{"text": "naïve", "id": "1"}]


@pytest.mark.parametrize("line", [1, 2, 60])
def test_other_encodings_are_named_by_line(tmp_path, line):
    lines = ["a,b"] + ["1,2"] * 70
    lines[line - 1] = "naïve,b"
    message = error_of(tmp_path / "t.csv", "\n".join(lines).encode("latin1"))
    assert f"line {line} is not UTF-8 (byte 0xef after 'na')" in message
    assert "iconv -f latin1 -t utf-8 t.csv > utf8.csv" in message


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("t.csv", "a,b\n1,2\n")
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pa.parquet.write_table(pa.table({"a": [1]}), out)
    return out.getvalue()


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(b"a,b\n1,2\n"), "a gzip archive, whatever its name says: unpack it first (gunzip)"),
        (bz2.compress(b"a,b\n"), "a bzip2 archive"),
        (zipped(), "a zip archive or an Excel workbook"),
        (parquet(), "a Parquet file, whatever its name says: rename it to .parquet"),
    ],
    ids=["gzip", "bzip2", "zip", "parquet"],
)
def test_other_formats_under_a_wrong_name(tmp_path, name, data, words):
    assert words in error_of(tmp_path / name, data)


def test_packed_files_are_to_be_unpacked(tmp_path):
    assert "unpack it first" in error_of(tmp_path / "t.csv.gz", gzip.compress(b"a\n1\n"))

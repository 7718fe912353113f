"""Every kind of table a user holds becomes the same Arrow table, or an error that says how to mend it."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from vllm_relational.records import RelationalError
from vllm_relational.table import read_table, write_table

ROWS = [{"name": "Ünïcode 😀", "stars": 4}, {"name": None, "stars": 5}]
ARROW = pa.Table.from_pylist(ROWS)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(source: object) -> str:
    with pytest.raises(RelationalError) as caught:
        read_table(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -------------------------------------------------------------------------------------------------------- objects
@pytest.mark.parametrize(
    "source",
    [
        ARROW,
        ARROW.to_batches()[0],
        ARROW.to_reader(),
        pl.DataFrame(ROWS),
        pl.LazyFrame(ROWS),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS, index=["x", "y"]),
        pd.DataFrame(ROWS, index=[7, 7]),
    ],
    ids=["table", "batch", "reader", "polars", "lazy", "pandas", "pandas-index", "pandas-equal-index"],
)
def test_objects_of_every_library_read_alike(source):
    assert read_table(source).to_pylist() == ROWS


@pytest.mark.filterwarnings("error")
def test_lazy_frames_are_collected_without_a_warning():
    assert read_table(pl.LazyFrame(ROWS)).num_rows == 2


def test_duckdb_relation():
    connection = duckdb.connect()
    assert read_table(connection.sql("select 1 as a, 'x' as b")).to_pylist() == [{"a": 1, "b": "x"}]


def test_integer_column_names_become_text():
    assert read_table(pd.DataFrame([[1, 2]])).column_names == ["0", "1"]


def test_an_index_is_not_a_column():
    frame = pd.DataFrame(ROWS, index=pd.Index(["x", "y"], name="key"))
    assert read_table(frame).column_names == ["name", "stars"]


def test_reading_does_not_change_the_users_frame():
    frame = pd.DataFrame([[1, 2]])
    read_table(frame)
    assert list(frame.columns) == [0, 1]


# ---------------------------------------------------------------------------------------------------------- files
def test_parquet_and_arrow_files(tmp_path):
    pa.parquet.write_table(ARROW, tmp_path / "t.parquet")
    pa.feather.write_feather(ARROW, tmp_path / "t.arrow")
    assert read_table(tmp_path / "t.parquet").to_pylist() == ROWS
    assert read_table(str(tmp_path / "t.arrow")).to_pylist() == ROWS


@pytest.mark.parametrize("name", ["t.CSV", "t.Csv"])
def test_suffixes_in_any_case(tmp_path, name):
    assert read_table(write(tmp_path / name, "a\nx\n")).to_pylist() == [{"a": "x"}]


def test_csv_cells_stay_the_text_that_was_written(tmp_path):
    path = write(tmp_path / "t.csv", "id,flag,day,number\n007,true,2020-01-01,1e5\nNA,NULL,nan,0.10\n")
    assert read_table(path).to_pylist() == [
        {"id": "007", "flag": "true", "day": "2020-01-01", "number": "1e5"},
        {"id": "NA", "flag": "NULL", "day": "nan", "number": "0.10"},
    ]


def test_csv_empty_cells_are_null_and_quoted_empty_cells_are_empty(tmp_path):
    assert read_table(write(tmp_path / "t.csv", 'a,b\n,""\n')).to_pylist() == [{"a": None, "b": ""}]


def test_csv_quotes_newlines_and_crlf(tmp_path):
    path = write(tmp_path / "t.csv", 'a,b\r\n"two\nlines","he said ""no"", twice"\r\n')
    assert read_table(path).to_pylist() == [{"a": "two\nlines", "b": 'he said "no", twice'}]


def test_csv_with_byte_order_mark(tmp_path):
    assert read_table(write(tmp_path / "t.csv", "\ufeffa\nx\n")).column_names == ["a"]


def test_csv_with_a_cell_of_megabytes(tmp_path):
    path = write(tmp_path / "t.csv", 'a,b\n"' + "x\n" * (1 << 20) + '",2\n')
    assert len(read_table(path).to_pylist()[0]["a"]) == 2 << 20


def test_tsv(tmp_path):
    assert read_table(write(tmp_path / "t.tsv", "a\tb\n1,5\t2\n")).to_pylist() == [{"a": "1,5", "b": "2"}]


def test_jsonl_with_a_line_of_a_megabyte(tmp_path):
    long = "x" * (1 << 20)
    path = write(tmp_path / "t.jsonl", json.dumps({"a": long}) + '\n{"a": "short"}\n')
    assert read_table(path).column("a").to_pylist() == [long, "short"]


def test_jsonl_keeps_types_and_fills_absent_fields(tmp_path):
    path = write(tmp_path / "t.ndjson", '{"a": 1, "b": [1, 2]}\n{"a": null, "c": {"d": "x"}}\n')
    assert read_table(path).to_pylist() == [
        {"a": 1, "b": [1, 2], "c": None},
        {"a": None, "b": None, "c": {"d": "x"}},
    ]


@pytest.mark.parametrize("text", ["2020-01-01", "2020-01-01T00:00:00Z", "2020-01-01 10:00:00"])
def test_jsonl_strings_that_look_like_times_stay_strings(tmp_path, text):
    path = write(tmp_path / "t.jsonl", json.dumps({"a": text, "b": {"c": [text]}}) + '\n{"d": 1}\n')
    assert read_table(path).to_pylist()[0] == {"a": text, "b": {"c": [text]}, "d": None}


# --------------------------------------------------------------------------------------------------------- errors
def test_missing_file_names_path_and_folder(tmp_path):
    message = error_of(tmp_path / "no.csv")
    assert "no.csv does not exist" in message and str(Path.cwd()) in message


def test_folder(tmp_path):
    assert "is a folder: name one file" in error_of(tmp_path)


def test_file_of_no_bytes(tmp_path):
    assert "t.csv is empty (0 bytes)" in error_of(write(tmp_path / "t.csv", ""))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_file_with_a_header_only_is_a_table_without_rows(tmp_path, name):
    header = "a\tb\n" if name == "t.tsv" else "a,b\n"
    table = read_table(write(tmp_path / name, header))
    assert (table.num_rows, table.schema) == (0, pa.schema([("a", pa.string()), ("b", pa.string())]))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_typed_file_without_rows_keeps_its_types(tmp_path, suffix):
    empty = pa.table({"a": pa.array([], pa.int8()), "b": pa.array([], pa.list_(pa.date32()))})
    write_table(empty, tmp_path / f"t{suffix}")
    assert read_table(tmp_path / f"t{suffix}").schema.types == empty.schema.types


@pytest.mark.parametrize(
    "source", [pd.DataFrame({"a": [1]})[:0], pl.DataFrame({"a": [1]})[:0], ARROW[:0].select(["stars"])]
)
def test_a_frame_without_rows_keeps_its_columns_and_types(source):
    table = read_table(source)
    assert (table.num_rows, table.num_columns, table.schema.types) == (0, 1, [pa.int64()])


def test_a_frame_without_rows_and_without_columns():
    assert read_table(pd.DataFrame()).shape == read_table(pd.DataFrame([])).shape == (0, 0)


@pytest.mark.parametrize("name", ["t.xlsx", "t"])
def test_unknown_suffix_lists_the_formats(tmp_path, name):
    message = error_of(write(tmp_path / name, "x"))
    assert name in message and ".parquet" in message and ".jsonl" in message


@pytest.mark.parametrize("text", ["naïve,b\n1,2\n", "a,b\nnaïve,2\n", "a,b\n" + "1,2\n" * 50 + "1,naïve\n"])
def test_latin1_csv_says_how_to_convert(tmp_path, text):
    message = error_of(write(tmp_path / "t.csv", text.encode("latin1")))
    assert "t.csv" in message and "iconv -f latin1 -t utf-8 t.csv" in message


def test_latin1_jsonl_says_how_to_convert(tmp_path):
    assert "iconv" in error_of(write(tmp_path / "t.jsonl", '{"a": "naïve"}\n'.encode("latin1")))


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("t.parquet", "this is no parquet file", "not a parquet file"),
        ("t.arrow", "this is no arrow file", "t.arrow"),
    ],
)
def test_broken_files_say_where(tmp_path, name, text, where):
    message = error_of(write(tmp_path / name, text))
    assert name in message and where in message


def test_two_columns_of_one_name(tmp_path):
    expected = "two columns are named 'a': rename one of them"
    assert error_of(write(tmp_path / "t.csv", "a,a\n1,2\n")) == expected
    assert error_of(pd.DataFrame([[1, 2]], columns=["a", "a"])) == expected
    assert error_of(pa.table([[1], [2]], names=["a", "a"])) == expected


def test_column_names_that_are_equal_as_text():
    assert "'1'" in error_of(pd.DataFrame([[1, 2]], columns=[1, "1"]))


def test_polars_objects_are_refused_by_name():
    assert "column 'a' holds Python objects" in error_of(pl.DataFrame({"a": pl.Series([object()], dtype=pl.Object)}))


@pytest.mark.parametrize("source", [[1], None, {"a": [1]}, pd.Series([1]), pl.Series([1])])
def test_other_objects_are_refused_by_type(source):
    assert type(source).__name__ in error_of(source)


def test_parquet_with_two_columns_of_one_name_names_the_fix(tmp_path):
    pa.parquet.write_table(
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "t.parquet"
    )
    with pytest.raises(RelationalError, match="rename"):
        read_table(tmp_path / "t.parquet")

"""Answered tables are written whole or not at all, and read back as they were."""

from __future__ import annotations

import decimal
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

from vllm_relational.records import RelationalError
from vllm_relational.table import check_output, read_table, write, write_table
from vllm_relational.table.formats import write_json_lines

TEXTS = pa.table({"a,b": ["007", "", None, 'q "x",\ny', "ü😀\t"], "n": pa.array([1, None, 3, 4, 5])})


@pytest.mark.parametrize("suffix", [".parquet", ".pq", ".arrow", ".feather", ".jsonl", ".ndjson"])
def test_typed_formats_read_back_equal(tmp_path, suffix):
    table = TEXTS.append_column("l", pa.array([[1], None, [], [2, 3], [4]]))
    write_table(table, tmp_path / f"t{suffix}")
    assert read_table(tmp_path / f"t{suffix}").to_pylist() == table.to_pylist()


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_csv_reads_back_the_same_texts(tmp_path, suffix):
    write_table(TEXTS, tmp_path / f"t{suffix}")
    expected = TEXTS.set_column(1, "n", TEXTS["n"].cast(pa.string()))
    assert read_table(tmp_path / f"t{suffix}").to_pylist() == expected.to_pylist()


def test_csv_writes_nested_values_as_json_and_bytes_as_base64(tmp_path):
    table = pa.table({"l": [[1, None], None], "s": [{"x": "é"}, {"x": None}], "b": [b"\x00\xff", None]})
    write_table(table, tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv").to_pylist() == [
        {"l": "[1, null]", "s": '{"x": "é"}', "b": "AP8="},
        {"l": None, "s": '{"x": null}', "b": None},
    ]


def every_type() -> pa.Table:
    """A row of each type that some format has no type for."""
    union = pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, None])], ["n"])
    return pa.table(
        {
            "interval": pa.array([(14, 3, 1_500_000_000), None], pa.month_day_nano_interval()),
            "nested": pa.array([[(0, 1, 0)], None], pa.list_(pa.month_day_nano_interval())),
            "duration": pa.array([90_000_000, None], pa.duration("us")),
            "time": pa.array([1_001, None], pa.time64("ns")),
            "union": union,
            "repeated": pa.RunEndEncodedArray.from_arrays([1, 2], ["x", None]),
            "views": pa.array([["v"], None], pa.list_(pa.string_view())),
            "empty": pa.array([{}, None], pa.struct([])),
            "half": pa.array([0.5, None], pa.float16()),
            "view": pa.array(["v", None], pa.string_view()),
            "bytes": pa.array([b"\x00\xff", None]),
            "json": pa.array(['{"a": 1e400}', None], pa.json_()),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
            "decimal": pa.array(["1.10", None]).cast(pa.decimal256(60, 2)),
            "uuid": pa.array([b"0123456789abcdef", None], pa.uuid()),
        }
    )


FIRST_ROW = {
    "interval": "1 year 2 months 3 days 00:00:01.5",
    "nested": ["1 day"],
    "duration": "00:01:30",
    "time": "00:00:00.000001001",
    "union": 1,
    "repeated": "x",
    "views": ["v"],
    "empty": {},
    "half": 0.5,
    "view": "v",
    "bytes": "AP8=",
    "json": {"a": float("inf")},
    "map": {"k": 1},
    "decimal": "1.10",
    "uuid": "30313233-3435-3637-3839-616263646566",
}


def test_every_type_has_a_text_in_json_lines(tmp_path):
    write_table(every_type(), tmp_path / "t.jsonl")
    first, second = (json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines())
    assert first == FIRST_ROW and set(second.values()) == {None}


def test_every_type_has_a_text_in_csv(tmp_path):
    write_table(every_type(), tmp_path / "t.csv")
    first, second = read_table(tmp_path / "t.csv").to_pylist()
    texts = {name: json.dumps(value) for name, value in FIRST_ROW.items() if not isinstance(value, str)}
    assert first == {**FIRST_ROW, **texts, "json": '{"a": 1e400}'} and set(second.values()) == {None}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_every_type_outlives_typed_formats(tmp_path, suffix):
    table = every_type()
    write_table(table, tmp_path / f"t{suffix}")
    back = read_table(tmp_path / f"t{suffix}")
    texts = {
        "interval": pa.string(),
        "nested": pa.json_(),
        "union": pa.json_(),
        "repeated": pa.string(),
        "empty": pa.json_(),
        "views": pa.list_(pa.large_string()),
    }
    for field in table.schema:
        found = back.schema.field(field.name).type
        wanted = texts.get(field.name, field.type) if suffix == ".parquet" else field.type
        assert found == wanted or (wanted == pa.string() and found == pa.large_string())
    assert len(set(back.column_names)) == table.num_columns and back.num_rows == 2


def test_json_lines_keep_unicode_and_row_order():
    out = io.BytesIO()
    write_json_lines(pa.table({"a": ["é", "b"] * 2000}), out)
    lines = out.getvalue().decode().splitlines()
    assert lines[0] == '{"a": "é"}'
    assert [json.loads(line)["a"] for line in lines] == ["é", "b"] * 2000


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def half(table, out):
        out.write(b"PAR1")
        raise OSError("no space left on device")

    monkeypatch.setattr(write, "writer_of", lambda path: half)
    path = tmp_path / "t.parquet"
    path.write_bytes(b"old")
    with pytest.raises(RelationalError, match=r"cannot write .*t\.parquet: .*the answers are in the checkpoint"):
        write_table(pa.table({"a": ["x"]}), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    write_table(pa.table({"a": ["new"]}), path)
    assert read_table(path).to_pylist() == [{"a": "new"}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no/folder/t.csv", "mkdir -p"), ("t.xlsx", "unknown output format '.xlsx'"), ("t", "no suffix")],
)
def test_impossible_outputs_are_found_before_asking(tmp_path, name, reason):
    with pytest.raises(RelationalError, match=reason):
        check_output(tmp_path / name)


def test_an_output_that_is_a_folder(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(RelationalError, match="cannot write"):
        check_output(tmp_path / "t.csv")


def test_an_output_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output(Path("t.csv"))
    write_table(pa.table({"a": ["x"]}), Path("t.csv"))
    assert (tmp_path / "t.csv").exists()


def test_json_lines_have_no_nan_and_infinity_as_text(tmp_path):
    table = pa.table({"f": [1.5, float("nan"), float("inf")], "l": [[float("-inf")], [2.0], None]})
    write_table(table, tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert rows == [{"f": 1.5, "l": ["-inf"]}, {"f": None, "l": [2.0]}, {"f": "inf", "l": None}]


def test_nan_in_csv_is_an_empty_cell(tmp_path):
    floats = [1.5, float("nan"), float("-inf"), None]
    kinds = {"double": pa.float64(), "single": pa.float32(), "half": pa.float16(), "listed": pa.list_(pa.float64())}
    cells = {name: [[cell] for cell in floats] if name == "listed" else floats for name in kinds}
    write_table(pa.table({name: pa.array(cells[name], kind) for name, kind in kinds.items()}), tmp_path / "t.csv")
    columns = read_table(tmp_path / "t.csv").to_pydict()
    assert columns.pop("listed") == ["[1.5]", "[null]", '["-inf"]', "[null]"]
    assert set(map(tuple, columns.values())) == {("1.5", None, "-inf", None)}


def test_decimals_are_written_in_digits(tmp_path):
    small = pa.array([decimal.Decimal("1E-10"), None, decimal.Decimal(0)], pa.decimal128(20, 12))
    for name in ("t.csv", "t.jsonl"):
        write_table(pa.table({"d": small, "x": ["a", "b", "c"]}), tmp_path / name)
        assert read_table(tmp_path / name)["d"].to_pylist() == ["0.000000000100", None, "0.000000000000"]


@pytest.mark.parametrize("suffix", [".parquet", ".pq", ".arrow", ".feather", ".csv", ".tsv"])
def test_a_table_without_rows_reads_back_with_its_columns(tmp_path, suffix):
    write_table(TEXTS[:0], tmp_path / f"t{suffix}")
    back = read_table(tmp_path / f"t{suffix}")
    assert (back.num_rows, back.column_names) == (0, TEXTS.column_names)


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
@pytest.mark.parametrize(
    ("record", "names"),
    [
        (None, []),
        ('{"outputs": [{"columns": ["a", "b"]}]}', ["a", "b"]),
        ('{"outputs": []}', []),
        ('{"outputs": [{"columns": "ab"}]}', []),
        ("damaged", []),
    ],
)
def test_the_record_beside_json_lines_without_rows_names_their_columns(tmp_path, suffix, record, names):
    write_table(TEXTS[:0], tmp_path / f"t{suffix}")
    if record is not None:
        (tmp_path / f"t{suffix}.job.json").write_text(record)
    assert read_table(tmp_path / f"t{suffix}").to_pydict() == {name: [] for name in names}

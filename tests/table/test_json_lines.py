"""Each cell of JSON lines keeps the keys, numbers and nulls that the file has: in prompts and in the output."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.records import RelationalError
from vllm_relational.table import encode_columns, read_table, write_table
from vllm_relational.table.formats import write_json_lines
from vllm_relational.table.json_cells import FIRST_CELLS
from vllm_relational.table.json_lines import CHUNK_LINES


def read(folder: Path, text: str) -> pa.Table:
    path = folder / "t.jsonl"
    path.write_bytes(text.encode())
    return read_table(path)


def written(table: pa.Table) -> str:
    out = io.BytesIO()
    write_json_lines(table, out)
    return out.getvalue().decode()


def prompts(table: pa.Table, name: str) -> list[str | None]:
    encoded = encode_columns(table, [name])
    return [encoded.values[0][code] if code >= 0 else None for code in encoded.codes[0].tolist()]


def error_of(folder: Path, text: str) -> str:
    with pytest.raises(RelationalError) as caught:
        read(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_three_hundred_different_keys_stay_one_a_cell(tmp_path):
    lines = [{"id": n, "meta": {f"key_{n}": n}} for n in range(300)]
    table = read(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    assert prompts(table, "meta") == [f'{{"key_{n}": {n}}}' for n in range(300)]
    assert [json.loads(line) for line in written(table).splitlines()] == lines


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_the_cells_outlive_every_typed_format(tmp_path, suffix):
    text = '{"m": {"a": 1}}\n{"m": {"b": [1, 2.50, null]}}\n{"m": null}\n{"m": "2020-01-01"}\n'
    write_table(read(tmp_path, text), tmp_path / f"o{suffix}")
    assert written(read_table(tmp_path / f"o{suffix}")) == text


def test_csv_holds_the_cells_as_json(tmp_path):
    write_table(read(tmp_path, '{"m": {"a": 1}, "n": 1}\n{"m": {"b": "x"}, "n": 2}\n{"n": 3}\n'), tmp_path / "o.csv")
    assert read_table(tmp_path / "o.csv")["m"].to_pylist() == ['{"a": 1}', '{"b": "x"}', None]


@pytest.mark.parametrize(
    "cells",
    [
        ['{"a": 1}', '{"b": 2}'],
        ['{"a": 1, "b": null}', '{"a": 1}'],
        ['{"a": 1}', '{"a": 1.0}'],
        ['{"a": 1}', '{"a": "x"}'],
        ['{"a": 1}', "{}"],
        ['{"b": 1, "a": 2}', '{"a": 2, "b": 1}'],
        ['[{"a": 1}, {"b": 2}]', "[]"],
        ['[1, "x", null, [2.50]]'],
        ['{"a": {"x": 1}}', '{"a": {"y": 1}}'],
        ['{"a": 1, "a": 2}'],
        ['{"price": 1.10}'],
        ["[1e400]", "[123456789012345678901234567890]"],
        ["1", '"1"'],
        ["1", "true"],
        ["123456789012345678901234567890", "1"],
        ["1e400", "1"],
        ["9007199254740993", "0.5"],
        ['"2020-01-01"', "20200101"],
        ["[" * 40 + "]" * 40],
        ["{}", "{}"],
    ],
)
def test_cells_that_no_type_of_arrow_holds_are_json(tmp_path, cells):
    table = read(tmp_path, "".join(f'{{"c": {cell}}}\n' for cell in cells))
    assert table.schema.field("c").type == pa.json_()
    assert prompts(table, "c") == cells
    assert written(table) == "".join(f'{{"c": {cell}}}\n' for cell in cells)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (['{"a": 1}', '{"a": 2}'], pa.struct([("a", pa.int64())])),
        (["[1, 2]", "[]"], pa.list_(pa.int64())),
        (['[{"a": "2020-01-01"}]', "null"], pa.list_(pa.struct([("a", pa.string())]))),
        (["true", "null"], pa.bool_()),
        (["1", "-9223372036854775808"], pa.int64()),
        (["0.5", "1"], pa.float64()),
        (["null", "null"], pa.null()),
        (['"2020-01-01T00:00:00Z"', '"é"'], pa.string()),
    ],
)
def test_cells_that_a_type_holds_whole_have_it(tmp_path, cells, kind):
    table = read(tmp_path, "".join(f'{{"c": {cell}}}\n' for cell in cells))
    assert table.schema.field("c").type == kind


@pytest.mark.parametrize("place", [FIRST_CELLS - 1, FIRST_CELLS, CHUNK_LINES - 1, CHUNK_LINES])
def test_a_cell_that_differs_late_changes_no_other(tmp_path, place):
    cells = ['{"a": 1}'] * (place + 2)
    cells[place] = '{"b": [1]}'
    table = read(tmp_path, "".join(f'{{"c": {cell}}}\n' for cell in cells))
    assert written(table) == "".join(f'{{"c": {cell}}}\n' for cell in cells)


@pytest.mark.parametrize("place", [CHUNK_LINES - 1, CHUNK_LINES])
def test_a_kind_and_a_key_that_come_late(tmp_path, place):
    lines = ['{"c": 1}\n'] * (place + 1)
    lines[place] = '{"c": "x", "d": 2}\n'
    table = read(tmp_path, "".join(lines))
    assert table["c"].to_pylist()[place - 1 :] == ["1", '"x"']
    assert table["d"].to_pylist()[place - 1 :] == [None, 2]


def test_marks_blank_lines_and_line_ends(tmp_path):
    table = read(tmp_path, '\ufeff{"a": 1}\r\n\r\n  \n{"a": 2}\r\n{"b": null}')
    assert table.to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": None}, {"a": None, "b": None}]


def test_escapes_are_read_and_layout_is_made_alike(tmp_path):
    table = read(tmp_path, '{"c":{"k":"\\u00e9 \\ud83d\\ude00","l":[1 ,2]}}\n{"c":{"m":"\\"\\\\\\n"}}\n')
    assert prompts(table, "c") == ['{"k": "é 😀", "l": [1, 2]}', '{"m": "\\"\\\\\\n"}']


def test_of_numbers_that_json_has_not_nan_is_null_and_infinity_a_text(tmp_path):
    table = read(tmp_path, '{"a": NaN, "b": {"c": [-Infinity, "NaN", NaN]}, "d": Infinity, "e": "Infinity"}\n')
    assert table.to_pylist() == [{"a": None, "b": {"c": ["-inf", "NaN", None]}, "d": "inf", "e": "Infinity"}]


def test_blank_lines_only(tmp_path):
    assert read(tmp_path, "\n\n").shape == (0, 0)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(st.lists(st.dictionaries(st.sampled_from("ab"), _VALUES), min_size=1, max_size=5))
def test_any_objects_come_back_as_they_were(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("j") / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_table(path)
    back = [json.loads(line) for line in written(table).split("\n")[:-1]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    assert back == ([{name: row.get(name) for name in names} for row in rows] if names else [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n\nnope\n', "line 3 is not JSON"),
        ('[{"a": 1},\n{"a": 2}]\n', "line 1 begins an array"),
        ('{\n"a": 1\n}\n', "one line, not over several"),
        ('{"a": 1}\n[1]\n', "line 2 is an array"),
        ('{"a": 1}\n"x"\n', "line 2 is a text"),
        ('{"a": 1, "a": 2}\n', "line 1 has the key 'a' twice"),
        ('{"a" : 1, "b": {"a": 3}, "a" : 2}\n', "line 1 has the key 'a' twice"),
        ('{"b": 1}\n{"k": ["x", "\\ud800"]}\n', "line 2 has half a character"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}\n", "line 1 is nested too deep"),
        ('{"a": 01}\n', "line 1 is not JSON"),
    ],
    ids=lambda given: given[:40],
)
def test_lines_that_cannot_be_read_are_named(tmp_path, text, words):
    assert words in error_of(tmp_path, text)


def test_a_text_that_looks_like_a_key_is_none(tmp_path):
    assert read(tmp_path, '{"a": "x\\": y", "b": {"a": "\\":"}}\n').column_names == ["a", "b"]

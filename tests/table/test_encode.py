"""Cells become codes, values become JSON texts."""

from __future__ import annotations

import datetime
import decimal
import json

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.records import NULL_CODE, RelationalError
from vllm_relational.table import encode_columns, read_table

MOMENT = datetime.datetime(2020, 1, 2, 3, 4, 5)


def encode(column: object) -> tuple[list[int], list[str]]:
    encoded = encode_columns(pa.table({"a": column}), ["a"])
    return encoded.codes[0].tolist(), list(encoded.values[0])


def texts_of(column: object) -> list[str | None]:
    codes, values = encode(column)
    return [None if code == NULL_CODE else values[code] for code in codes]


@given(st.lists(st.none() | st.text()))
def test_codes_lead_back_to_the_values_in_order_of_first_appearance(cells):
    codes, values = encode(pa.array(cells, pa.string()))
    assert [None if code == NULL_CODE else json.loads(values[code]) for code in codes] == cells
    assert [json.loads(value) for value in values] == list(dict.fromkeys(cell for cell in cells if cell is not None))
    assert all("\n" not in value for value in values)


def test_chunks_share_one_dictionary():
    assert encode(pa.chunked_array([["b", "a"], [], ["c", "b"]])) == ([0, 1, 2, 0], ['"b"', '"a"', '"c"'])


def test_chosen_columns_in_the_order_named():
    encoded = encode_columns(pa.table({"a": [1], "b": ["x"], "c": [True]}), ["c", "a"])
    assert encoded.names == ("c", "a")
    assert encoded.codes.dtype == np.int32
    assert [list(values) for values in encoded.values] == [["true"], ["1"]]


def test_no_column_keeps_the_number_of_rows():
    assert encode_columns(pa.table({"a": [1, 2, 3]}), []).num_rows == 3


def test_nan_and_none_are_null():
    assert texts_of(pa.array([1.5, float("nan"), None])) == ["1.5", None, None]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_a_tenth_is_written_as_its_owner_wrote_it(kind):
    assert texts_of(pa.array([0.1, 1e20, 2.0], kind)) == ["0.1", "1e+20", "2.0"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([MOMENT.date()]), '"2020-01-02"'),
        (pa.array([MOMENT]), '"2020-01-02T03:04:05"'),
        (pa.array([1], pa.timestamp("ns")), '"1970-01-01T00:00:00.000000001"'),
        (pa.array([MOMENT], pa.timestamp("us", "UTC")), '"2020-01-02T03:04:05+00:00"'),
        (pa.array([MOMENT.time()]), '"03:04:05"'),
        (pa.array([1000], pa.time64("ns")), '"00:00:00.000001"'),
        (pa.array([datetime.timedelta(days=1)]), '"24:00:00"'),
        (pa.array([-1_500_000], pa.duration("us")), '"-00:00:01.5"'),
        (pa.array([1], pa.duration("ns")), '"00:00:00.000000001"'),
        (pa.array([(14, -3, 5_000_000_000)], pa.month_day_nano_interval()), '"1 year 2 months -3 days 00:00:05"'),
        (pa.array([(0, 0, 0)], pa.month_day_nano_interval()), '"00:00:00"'),
        (pa.array([1001], pa.time64("ns")), '"00:00:00.000001001"'),
        (
            pa.array([[{"t": (0, 1, 0)}]], pa.list_(pa.struct([("t", pa.month_day_nano_interval())]))),
            '[{"t": "1 day"}]',
        ),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), '{"k": 1}'),
        (pa.array([[(1, "x")]], pa.map_(pa.int8(), pa.string())), '{"1": "x"}'),
        (pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int8())), '[["k", 1], ["k", 2]]'),
        (pa.array([[0.1]], pa.list_(pa.float32())), "[0.1]"),
        (pa.array([[float("nan"), 1.0]]), "[null, 1.0]"),
        (pa.array(['{"b": 1, "a": 1e400}'], pa.json_()), '{"b": 1, "a": 1e400}'),
        (pa.array(['{"b":\n 1}'], pa.json_()), '{"b": 1}'),
        (pa.array(["no JSON"], pa.json_()), '"no JSON"'),
        (pa.array([b"0123456789abcdef"], pa.uuid()), '"30313233-3435-3637-3839-616263646566"'),
        (pa.RunEndEncodedArray.from_arrays([1], ["x"]), '"x"'),
        (pa.array([[2**40]], pa.list_(pa.timestamp("s"))), '["36812-02-20T00:36:16"]'),
        (pa.array([decimal.Decimal("1.10")]), '"1.10"'),
        (pa.array([[1, None]]), "[1, null]"),
        (pa.array([["é"]]), '["é"]'),
        (pa.array([{"x": 1, "y": None}]), '{"x": 1, "y": null}'),
        (pa.array([[{"day": MOMENT.date()}]]), '[{"day": "2020-01-02"}]'),
        (pa.array([True]), "true"),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array(["x"], pa.string_view()), '"x"'),
        (pa.array(["x"], pa.large_string()), '"x"'),
        (pa.array(["ü\u2028\"'\\\n\t\x00😀"]), '"ü\u2028\\"\'\\\\\\n\\t\\u0000😀"'),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_text_of_each_type(column, expected):
    assert texts_of(column) == [expected]


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(2),
        pa.list_(pa.binary()),
        pa.struct([("x", pa.list_(pa.struct([("y", pa.binary())])))]),
        pa.map_(pa.string(), pa.binary()),
        pa.dictionary(pa.int8(), pa.binary()),
    ],
    ids=str,
)
def test_bytes_are_refused_by_column_with_the_fix(kind):
    with pytest.raises(
        RelationalError, match=r"column 'photo' holds bytes .* which a model cannot read: name only other"
    ):
        encode_columns(pa.table({"photo": pa.array([None], kind)}), ["photo"])


def test_bytes_in_columns_that_are_not_asked_about_do_not_matter():
    assert list(encode_columns(pa.table({"a": ["x"], "photo": [b"x"]}), ["a"]).values[0]) == ['"x"']


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**53), 2**53))
def test_intervals_are_what_duckdb_prints(months, days, microseconds):
    table = pa.table({"i": pa.array([(months, days, microseconds * 1000)], pa.month_day_nano_interval())})
    ((printed,),) = duckdb.from_arrow(table).project("CAST(i AS VARCHAR)").fetchall()
    assert texts_of(table["i"]) == [f'"{printed}"']


@given(st.integers(-(2**62), 2**62), st.sampled_from(["s", "ms", "us"]))
def test_durations_are_what_duckdb_prints(number, unit):
    number //= {"s": 10**6, "ms": 10**3, "us": 1}[unit]
    table = pa.table({"d": pa.array([number], pa.duration(unit))})
    ((printed,),) = duckdb.from_arrow(table).project("CAST(d AS VARCHAR)").fetchall()
    assert texts_of(table["d"]) == [f'"{printed}"']


def test_what_duckdb_prints_is_no_text_of_the_users():
    table = read_table(duckdb.sql("SELECT INTERVAL '-3 days' AS i, '{}'::JSON AS j, 'x' AS t, 7::HUGEINT AS h"))
    assert encode_columns(table, ["i", "j", "t", "h"]).is_text == (False, False, True, False)


def test_dictionary_encoded_columns_count_by_first_appearance():
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], pa.int8()), pa.array(["a", "b"]))
    assert encode(column) == ([0, 1, NULL_CODE, 0], ['"b"', '"a"'])


def test_nulls_and_nans_inside_a_dictionary_are_null():
    indices = pa.array([0, 1], pa.int8())
    assert texts_of(pa.DictionaryArray.from_arrays(indices, pa.array(["x", None]))) == ['"x"', None]
    assert texts_of(pa.DictionaryArray.from_arrays(indices, pa.array([1.5, float("nan")]))) == ["1.5", None]


def test_column_of_nulls_only():
    assert encode(pa.nulls(3)) == ([NULL_CODE] * 3, [])
    assert encode(pa.array([None, None], pa.string())) == ([NULL_CODE] * 2, [])


def test_equal_lists_have_one_code():
    assert encode(pa.array([[1], [2], None, [1]])) == ([0, 1, NULL_CODE, 0], ["[1]", "[2]"])


def test_table_without_chunks():
    assert encode(pa.chunked_array([], pa.string())) == ([], [])


def test_dates_beyond_python_are_texts():
    days = pa.array([0, 2**31 - 1, -(2**31 - 1), 7_000_000, None], pa.int32()).cast(pa.date32())
    assert texts_of(days) == ['"1970-01-01"', '"infinity"', '"-infinity"', '"21135-05-09"', None]
    times = pa.array([2**63 - 1, -(2**63 - 1), 10**18], pa.int64()).cast(pa.timestamp("us"))
    assert texts_of(times) == ['"infinity"', '"-infinity"', '"33658-09-27T01:46:40"']


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_infinity_is_a_value_and_nan_is_none(kind):
    table = encode_columns(pa.table({"a": pa.array([float("inf"), float("-inf"), float("nan"), 1.5], kind)}), ["a"])
    assert table.values == (['"inf"', '"-inf"', "1.5"],)
    assert table.codes.tolist() == [[0, 1, NULL_CODE, 2]]


@pytest.mark.parametrize("row", [0, 1023, 1024, 2500])
def test_bytes_are_refused_by_the_first_row_that_has_some(row):
    far = {"when": 2**62, "photo": None}  # a date that Python has not
    kind = pa.struct([("when", pa.date64()), ("photo", pa.binary())])
    cells = pa.array([*[far] * row, {**far, "photo": b"x"}], kind)
    with pytest.raises(RelationalError, match=rf"column 'c', row {row} \(counted from 0\) holds bytes"):
        encode_columns(pa.table({"c": cells}), ["c"])


def test_a_column_of_bytes_without_any_is_refused_too():
    with pytest.raises(RelationalError, match=r"column 'c' holds bytes \(binary\)"):
        encode_columns(pa.table({"c": pa.array([None], pa.binary())}), ["c"])

"""Columns of pandas and of other libraries: read with every cell's own value, or refused by name."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from vllm_relational.records import RelationalError
from vllm_relational.table import encode_columns, read_table


def texts_of(source: object, name: str = "c") -> list[str | None]:
    encoded = encode_columns(read_table(source), [name])
    return [encoded.values[0][code] if code >= 0 else None for code in encoded.codes[0].tolist()]


def column(values: Any, dtype: Any = None) -> pd.DataFrame:
    return pd.DataFrame({"c": pd.Series(values, dtype=dtype)})


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([{"a": 1}, {"b": None}, None], ['{"a": 1}', '{"b": null}', None]),
        ([[{"a": 1}], [{"b": 2.0}]], ['[{"a": 1}]', '[{"b": 2.0}]']),
        ([1, "x", 2.5, True], ["1", '"x"', "2.5", "true"]),
        (["x", {"y": 1}, float("nan"), pd.NA], ['"x"', '{"y": 1}', None, None]),
        ([10**30, 1], ["1000000000000000000000000000000", "1"]),
        ([(1, 2), [3, 4]], ["[1, 2]", "[3, 4]"]),
        ([np.array([1, 2]), [3]], ["[1, 2]", "[3]"]),
        (
            [{"when": datetime.date(2020, 1, 2), "cost": decimal.Decimal("1.10")}],
            ['{"when": "2020-01-02", "cost": "1.10"}'],
        ),
        ([{1: "x"}, {2: np.float64(0.5)}], ['{"1": "x"}', '{"2": 0.5}']),
        ([{None: 1, True: 2, (1, 2): 3}], ['{"null": 1, "true": 2, "(1, 2)": 3}']),
        ([{"a": np.inf, "b": [np.nan, 1.5]}, [-np.inf]], ['{"a": "inf", "b": [null, 1.5]}', '["-inf"]']),
        ([np.inf, "x", -np.inf], ['"inf"', '"x"', '"-inf"']),
        ([np.ma.masked, np.array(1)], [None, "1"]),
    ],
)
def test_objects_keep_their_own_keys_and_types(values, texts):
    assert texts_of(column(values, object)) == texts


PLUS_2 = datetime.timezone(datetime.timedelta(hours=2))
NOON, NOON_UTC = datetime.datetime(2020, 1, 1, 12), datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC)
NOON_2, DAY = NOON.replace(tzinfo=PLUS_2), datetime.date(2020, 1, 1)
NANO = np.datetime64("2020-01-01T00:00:00.123456789")
SPAN = datetime.timedelta(days=31, hours=1)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([NOON, NOON_UTC], ["2020-01-01T12:00:00", "2020-01-01T12:00:00+00:00"]),
        ([NOON_UTC, NOON], ["2020-01-01T12:00:00+00:00", "2020-01-01T12:00:00"]),
        ([NOON_UTC, None, NOON_2], ["2020-01-01T12:00:00+00:00", None, "2020-01-01T12:00:00+02:00"]),
        ([DAY, NOON], ["2020-01-01", "2020-01-01T12:00:00"]),
        ([pd.Timestamp(NOON_2), DAY, pd.NaT], ["2020-01-01T12:00:00+02:00", "2020-01-01", None]),
        ([NOON.time(), NOON_2.timetz()], ["12:00:00", "12:00:00+02:00"]),
        ([NANO, "x"], ["2020-01-01T00:00:00.123456789", "x"]),
        ([pd.Timestamp(NANO)], ["2020-01-01T00:00:00.123456789"]),
        ([SPAN, None], ["1 month 1 day 01:00:00", None]),
        ([SPAN, "x", pd.Timedelta(1, "ns")], ["1 month 1 day 01:00:00", "x", "00:00:00.000000001"]),
        ([np.timedelta64(36, "h"), "x"], ["1 day 12:00:00", "x"]),
        ([np.timedelta64(36, "h"), SPAN], ["1 day 12:00:00", "1 month 1 day 01:00:00"]),
    ],
)
@pytest.mark.parametrize("kind", [object, "category"])
def test_times_of_several_kinds_keep_their_zones_clocks_and_digits(values, texts, kind):
    frame = pd.DataFrame({"c": pd.Series(values, dtype=object).astype(kind)})
    assert texts_of(frame) == [None if text is None else f'"{text}"' for text in texts]


@pytest.mark.parametrize("time", [SPAN, NOON, DAY, NOON.time(), NOON_UTC])
@pytest.mark.parametrize("number", [5, 2.5, 10**18, np.int64(7), float("inf")])
def test_numbers_beside_times_stay_numbers(time, number):
    """Arrow takes some for microseconds."""
    (first, second), (third, _) = (texts_of(column(cells, object)) for cells in ([time, number], [number, time]))
    assert second == third == ('"inf"' if number == float("inf") else str(number))
    assert first == texts_of(column([time], object))[0]


def test_times_inside_of_cells_read_as_those_outside():
    cells = [{"t": np.array([NANO]), "s": [SPAN, np.timedelta64(1, "D")], "z": NOON_2, "n": pd.NaT}]
    assert texts_of(column(cells, object)) == [
        '{"t": ["2020-01-01T00:00:00.123456789"], "s": ["1 month 1 day 01:00:00", "1 day"], '
        '"z": "2020-01-01T12:00:00+02:00", "n": null}'
    ]


@pytest.mark.parametrize("spans", [[SPAN], [SPAN, datetime.timedelta(days=-1)], [datetime.timedelta(0)]])
def test_spans_are_what_duckdb_prints_of_the_same_objects(spans):
    frame = pd.DataFrame({"c": pd.Series(spans, dtype=object)})
    printed = duckdb.from_df(frame.astype("timedelta64[ns]")).project("CAST(c AS VARCHAR)").fetchall()
    assert texts_of(frame) == [f'"{text}"' for (text,) in printed]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("1E+30", "1" + "0" * 30),
        ("1E-10", "0.0000000001"),
        ("1E+76", "1" + "0" * 76),
        ("1E+77", "1E+77"),
        ("1E+999999", "1E+999999"),
        ("-0.10", "-0.10"),
        ("Infinity", "inf"),
        ("-Infinity", "-inf"),
    ],
)
def test_decimals_are_read_in_digits_wherever_they_stand(written, text):
    value = decimal.Decimal(written)
    assert texts_of(column([value], object)) == [f'"{text}"']
    assert texts_of(column([value, "x"], object)) == [f'"{text}"', '"x"']
    assert texts_of(column([{"d": [value]}], object)) == [f'{{"d": ["{text}"]}}']
    assert texts_of(column([value, decimal.Decimal("NaN")], object))[1] is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([object()], "row 0 (counted from 0) into Arrow: an object has no text"),
        (["x", 1 + 2j], "a complex has no text"),
        ([{"a": 1}, {"a": b"x"}], "row 1 (counted from 0) holds bytes"),
        ([{b"a": 1}], "row 0 (counted from 0) holds bytes (in a key of a dict)"),
        ([[1], [{"a": (bytearray(b"x"), 1)}]], "row 1 (counted from 0) holds bytes"),
        ([{1: "x", "1": "y"}], "a dict has two keys that read '1'"),
        ([{1, 2}], "a set has no text"),
        (["fine", "half \ud800"], "row 1 (counted from 0) holds half a character"),
        ([{"a": "\ud800"}], "row 0 (counted from 0) holds half a character"),
    ],
)
def test_objects_without_a_text_are_refused_by_column_and_row(values, words):
    with pytest.raises(RelationalError) as caught:
        read_table(pd.DataFrame({"fine": range(len(values)), "mixed": pd.Series(values, dtype=object)}))
    assert "column 'mixed'" in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("frame", "texts"),
    [
        (column(pd.arrays.SparseArray([1.5, np.nan, np.nan])), ["1.5", None, None]),
        (column(pd.arrays.SparseArray([0, 0, 7], fill_value=0)), ["0", "0", "7"]),
        (column(["a", None, "a"], "category"), ['"a"', None, '"a"']),
        (column([1, None], "Int64"), ["1", None]),
        (column([True, None], "boolean"), ["true", None]),
        (column(pd.PeriodIndex(["2020-01", None], freq="M")), ['"2020-01"', None]),
        (column(pd.cut([1, 5], [0, 2, 6])), ['"(0, 2]"', '"(2, 6]"']),
        (column(pd.Categorical([1, "x", None])), ["1", '"x"', None]),
        (column(pd.to_datetime(["2020-01-02 03:04:05.123456789"])), ['"2020-01-02T03:04:05.123456789"']),
        (column(pd.to_timedelta([np.nan])), [None]),
        (column(pd.Categorical([(1, 2), None])), ["[1, 2]", None]),
        (column(pd.Categorical(pd.to_timedelta(["40 days"]))), ['"1 month 10 days"']),
        (column([1.5, np.inf, None], "Float64"), ["1.5", '"inf"', None]),
        (column([0.1, np.nan, np.inf], "float16"), ["0.1", None, '"inf"']),
        (column(pd.to_datetime(["2020-10-25 01:30"], utc=True).tz_convert("Europe/Paris")), None),
        (column([[1, None], None], pd.ArrowDtype(pa.list_(pa.int64()))), ["[1, null]", None]),
    ],
)
def test_special_columns_of_pandas(frame, texts):
    assert texts_of(frame) == (texts or ['"2020-10-25T02:30:00+01:00"'])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timedeltas_are_what_duckdb_prints(unit):
    spans = ["3 days 02:00:00", "400 days", "-1 day", "-41 days +23:59:59", "0 days", "23:59:59"]
    frame = pd.DataFrame({"c": pd.to_timedelta(spans).as_unit(unit)})
    printed = duckdb.from_df(frame).project("CAST(c AS VARCHAR)").fetchall()
    assert texts_of(frame) == [f'"{text}"' for (text,) in printed]


def test_complex_numbers_are_refused_by_name():
    with pytest.raises(RelationalError, match=r"cannot turn column 'c' into Arrow: .*astype\(str\)"):
        read_table(pd.DataFrame({"c": [1 + 2j]}))


@pytest.mark.parametrize(
    ("names", "read_as"),
    [([0, 1], ["0", "1"]), ([1.5, "b"], ["1.5", "b"]), ([("a", "x"), ("a", "y")], ["('a', 'x')", "('a', 'y')"])],
)
def test_names_of_any_kind_become_text(names, read_as):
    assert read_table(pd.DataFrame([[1, 2]], columns=names)).column_names == read_as


def test_names_with_half_a_character_are_refused():
    with pytest.raises(RelationalError, match=r"column name .* half a character"):
        read_table(pd.DataFrame([[1]], columns=pd.Index(["a\ud800"], dtype=object)))


# ---------------------------------------------------------------------------------------------------------- DuckDB
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("INTERVAL '1 year 2 months 3 days 04:05:06.789'", '"1 year 2 months 3 days 04:05:06.789"'),
        ("'10101'::BIT", '"10101"'),
        ("'12:00:00+02'::TIMETZ", '"12:00:00+02"'),
        ("123456789012345678901234567890::BIGNUM", '"123456789012345678901234567890"'),
        ("170141183460469231731687303715884105727::HUGEINT", '"170141183460469231731687303715884105727"'),
        ("340282366920938463463374607431768211455::UHUGEINT", '"340282366920938463463374607431768211455"'),
        ("'POINT(1 2)'::GEOMETRY", '"POINT (1 2)"'),
        ("TIME '01:02:03.5'", '"01:02:03.5"'),
        ("'a'::ENUM('a', 'b')", '"a"'),
        ("1.10::DECIMAL(10, 2)", '"1.10"'),
        ("uuid()", None),
        ("[INTERVAL 1 DAY, NULL]", '["1 day", null]'),
        ("[INTERVAL 1 DAY]::INTERVAL[1]", '["1 day"]'),
        ("{'a \"q': INTERVAL 1 DAY, 'b': 1}", '{"a \\"q": "1 day", "b": 1}'),
        ("MAP {'k': '101'::BIT}", '{"k": "101"}'),
        ("row(1, INTERVAL 1 DAY)", '{"element1": 1, "element2": "1 day"}'),
        ("""'{"a": {"b": 1e400}}'::JSON""", '{"a": {"b": 1e400}}'),
    ],
)
def test_types_of_duckdb_are_what_it_prints(value, text):
    (found,) = texts_of(duckdb.sql(f"SELECT {value} AS c"))
    assert found == text or (text is None and len(found) == 38)


@pytest.mark.parametrize("value", ["'inf'::DOUBLE", "['inf'::DOUBLE, 'nan'::DOUBLE]", "{'a': '-inf'::FLOAT}"])
def test_infinity_of_duckdb_is_what_it_prints_at_any_depth(value):
    expected = {"'": '"inf"', "[": '["inf", null]', "{": '{"a": "-inf"}'}
    assert texts_of(duckdb.sql(f"SELECT {value} AS c")) == [expected[value[0]]]


def test_small_decimals_of_duckdb_are_what_it_prints():
    relation = duckdb.sql("SELECT '1e-10'::DECIMAL(20, 12) AS c")
    assert texts_of(relation) == [f'"{relation.project("c::VARCHAR").fetchall()[0][0]}"']


def test_blobs_of_duckdb_are_refused_where_they_are_asked_about():
    table = read_table(duckdb.sql("SELECT 'x'::BLOB AS photo, 'y' AS t"))
    with pytest.raises(RelationalError, match=r"column 'photo', row 0 \(counted from 0\) holds bytes"):
        encode_columns(table, ["t", "photo"])
    assert encode_columns(table, ["t"]).values == (['"y"'],)


# ---------------------------------------------------------------------------------------------------------- polars
def test_types_of_polars():
    frame = pl.DataFrame(
        {
            "d": [datetime.timedelta(days=1, seconds=1)],
            "t": [datetime.time(1, 2, 3)],
            "e": pl.Series(["x"], dtype=pl.Enum(["x"])),
            "s": [{"a": 1, "b": None}],
        }
    )
    encoded = encode_columns(read_table(frame), frame.columns)
    assert encoded.values == (['"24:00:01"'], ['"01:02:03"'], ['"x"'], ['{"a": 1, "b": null}'])


def test_types_of_polars_that_arrow_has_not_are_refused_by_column():
    with pytest.raises(RelationalError, match=r"column 'c' \(Int128\) into Arrow: .*cast\(pl.String\)"):
        read_table(pl.DataFrame({"a": [1], "c": pl.Series([2**70], dtype=pl.Int128)}))


def test_objects_of_polars_inside_of_lists_are_refused():
    with pytest.raises(RelationalError, match="column 'c' holds Python objects"):
        read_table(pl.DataFrame({"c": pl.Series([object()], dtype=pl.Object)}))


def test_a_table_with_a_broken_text_is_refused():
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    with pytest.raises(RelationalError, match="cannot turn the table into Arrow"):
        read_table(pa.table({"c": broken}))


def test_a_cell_that_holds_itself_is_refused():
    """Arrow alone ends the process with a segmentation fault."""
    ring: list = []
    ring.append(ring)
    loop: dict = {"a": 1}
    loop["b"] = (loop,)
    array, inner = np.empty(1, object), np.empty(1, object)
    array[0], inner[0] = array, [inner]
    for cell in (ring, loop, array, inner):
        with pytest.raises(RelationalError, match=r"column 'c', row 1 .* holds itself"):
            read_table(pd.DataFrame({"c": ["x", cell]}))


@pytest.mark.parametrize(("levels", "fits"), [(100, True), (101, False), (5000, False)])
def test_cells_are_nested_to_a_limit(levels, fits):
    cell: list = []
    for _ in range(levels - 1):
        cell = [cell]
    frame = pd.DataFrame({"c": [cell, "x"]})
    if fits:
        assert read_table(frame).num_rows == 2
    else:
        with pytest.raises(RelationalError, match="nested more than 100 levels deep"):
            read_table(frame)


def test_a_view_of_a_dict_that_holds_itself_is_refused():
    loop: dict = {}
    loop["values"] = loop.values()
    for cell in (loop, loop["values"], loop.items()):
        with pytest.raises(RelationalError, match=r"column 'c', row 1 .*(has no text of its own|holds itself)"):
            read_table(pd.DataFrame({"c": pd.Series(["x", cell], dtype=object)}))


@pytest.mark.parametrize(
    ("cells", "kind", "row"),
    [
        ([None, {"path": "p", "bytes": b"x"}], "struct", 1),
        ([{"a": [1]}, {"a": [2]}, b"x"], None, 2),
        ([[], [bytearray(b"x")]], "list", 1),
        ([(1,), memoryview(b"x")], None, 1),
        ([None, b"x"], "binary", 1),
        ([np.bytes_(b"x")], "binary", 0),
    ],
)
def test_cells_with_bytes_pass_through_where_arrow_holds_them_and_are_refused_where_asked_about(cells, kind, row):
    frame = pd.DataFrame({"t": ["x"] * len(cells), "photo": pd.Series(cells, dtype=object)})
    with pytest.raises(RelationalError, match=rf"column 'photo', row {row} \(counted from 0\) holds bytes"):
        encode_columns(read_table(frame), ["t", "photo"])
    if kind is not None:
        table = read_table(frame)
        assert kind in str(table.field("photo").type) and table["photo"].to_pylist() == cells
        assert encode_columns(table, ["t"]).values == (['"x"'],)


@pytest.mark.parametrize(
    "source",
    [
        duckdb.connect(),
        pl.DataFrame({"a": [1]}).group_by("a"),
        pl.DataFrame({"a": [1]}).lazy().group_by("a"),
        pl.col("a"),
        pd.DataFrame({"a": [1]}).groupby("a"),
        pd.Index([1]),
        np.array([["x"]]),
        pa.array([{"a": 1}]),
        {"a": [1]},
        None,
    ],
    ids=lambda source: type(source).__name__,
)
def test_what_is_no_table_is_refused_by_its_type(source):
    with pytest.raises(RelationalError, match=rf"cannot read a table from {type(source).__name__}: give a pandas"):
        read_table(source)


def test_a_lazy_frame_and_a_stream_of_batches_are_tables():
    stream = pa.RecordBatchReader.from_batches(pa.schema([("c", pa.int8())]), [pa.record_batch([[1]], ["c"])][:0])
    assert read_table(pl.LazyFrame({"c": [1]})).to_pydict() == {"c": [1]}
    assert read_table(stream).to_pydict() == {"c": []}


def test_times_that_arrow_does_not_have_are_refused_by_column():
    relation = duckdb.sql("SELECT 1 AS id, TIME '24:00:00' AS closes")
    with pytest.raises(RelationalError, match="column 'closes' holds values that its type"):
        read_table(relation)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("DATE '0044-03-15 (BC)'", "0044-03-15 (BC)"),
        ("DATE '0001-12-31 (BC)'", "0001-12-31 (BC)"),
        ("DATE '0001-01-01'", "0001-01-01"),
        ("TIMESTAMP '0044-03-15 (BC) 10:00:00'", "0044-03-15 (BC) 10:00:00"),
        ("DATE '12345-01-02'", "12345-01-02"),
    ],
)
def test_years_before_1_are_written_as_duckdb_prints_them(cell, text):
    table = read_table(duckdb.sql(f"SELECT {cell} AS c"))
    assert encode_columns(table, ["c"]).values[0] == [f'"{text}"']

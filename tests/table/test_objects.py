"""Columns of pandas and of other libraries: read with every cell's own value, or refused by name."""

from __future__ import annotations

import datetime
import decimal

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


def column(values: object, dtype: object = None) -> pd.DataFrame:
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
    ],
)
def test_objects_keep_their_own_keys_and_types(values, texts):
    assert texts_of(column(values, object)) == texts


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([object()], "a object has no text"),
        (["x", 1 + 2j], "a complex has no text"),
        ([{"a": b"x"}, {"b": 1}], "a bytes has no text"),
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
    ],
)
def test_special_columns_of_pandas(frame, texts):
    assert texts_of(frame) == texts


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


def test_blobs_of_duckdb_are_refused_where_they_are_asked_about():
    table = read_table(duckdb.sql("SELECT 'x'::BLOB AS photo, 'y' AS t"))
    with pytest.raises(RelationalError, match="column 'photo' holds bytes"):
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
    for cell in (ring, loop):
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

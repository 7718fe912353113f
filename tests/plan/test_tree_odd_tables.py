"""Real tables of odd shapes and values, from Arrow or pandas to the plan: cells, codes, characters, plan, hits."""

from __future__ import annotations

import datetime
import decimal
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_batches import assert_valid

from vllm_relational import native
from vllm_relational.plan import plan_fixed, plan_original, plan_tree
from vllm_relational.plan.characters import CharacterTable, character_table, hit_characters, joined_rows
from vllm_relational.records import EncodedTable, Plan, RelationalError
from vllm_relational.table import read_table
from vllm_relational.table.encode import encode_columns

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="native code was not built")

MEGABYTE = 1_000_000


def table_of(source: object) -> CharacterTable:
    table = read_table(source)
    return character_table(encode_columns(table, table.column_names))


def served_by_row_before(table: CharacterTable, plan: Plan) -> int:
    """Characters that each row has in common with the row before, cell after cell until two differ: the slow count."""
    total = 0
    paths = [
        [(column, table.texts[column][table.batch.codes[column, row]]) for column in fields]
        for row, fields in zip(plan.rows.tolist(), plan.fields.tolist(), strict=True)
    ]
    for before, path in pairwise(paths):
        for (other_column, other), (column, text) in zip(before, path, strict=True):
            if column != other_column:
                break
            total += common_prefix(other, text)
            if other != text:
                break
    return total


def common_prefix(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def checked_hits(table: CharacterTable) -> int:
    """Plans the table; returns ``hit_characters`` of the plan."""
    plan = plan_tree(table.batch, 0.002)
    assert_valid(table.batch, plan)
    served = served_by_row_before(table, plan)
    assert served >= served_by_row_before(table, plan_original(table.batch))
    assert served >= served_by_row_before(table, plan_fixed(table.batch))
    hits = hit_characters(table, plan)
    assert hits >= served  # any earlier row, and across the ends of cells
    assert hits <= sum(map(len, joined_rows(table, plan)))
    return hits


# ------------------------------------------------------------------------------------------------------- shapes
def test_one_row():
    assert checked_hits(table_of(pa.table({"a": ["x"], "b": [1], "c": [None]}))) == 0


def test_one_column():
    assert checked_hits(table_of(pa.table({"a": ["abc", "abd", "abc", None, ""]}))) == 3 + 2


def test_no_row():
    assert checked_hits(table_of(pa.table({"a": pa.array([], pa.string())}))) == 0


def test_all_equal():
    table = table_of(pd.DataFrame({"a": ["same"] * 50, "b": [7] * 50, "c": [None] * 50}))
    assert checked_hits(table) == 49 * 5


def test_all_distinct():
    """Characters of their own in every cell: nothing to share."""
    columns = {name: [chr(0x4E00 + 30 * c + row) for row in range(30)] for c, name in enumerate("abc")}
    assert checked_hits(table_of(pa.table(columns))) == 0


def test_duplicate_rows():
    rows = {"a": ["x", "y", "z"] * 20, "b": ["long text"] * 60, "c": [1, 2, 3] * 20}
    assert checked_hits(table_of(pa.table(rows))) == 3 * 19 * 11 + 2 * 9


@pytest.mark.parametrize("num_rows", [1, 2, 25])
def test_300_columns(num_rows):
    random = np.random.default_rng(0)
    columns = {f"c{c}": random.integers(0, 1 + c % 30, num_rows) for c in range(300)}
    hits = checked_hits(table_of(pd.DataFrame(columns)))
    assert hits >= 10 * (num_rows - 1)  # ten of them are 0 in every row


# -------------------------------------------------------------------------------------------------------- cells
def test_cells_of_a_megabyte():
    """Two texts that differ in the last character, beside a short column that splits them otherwise."""
    text = "a" * (MEGABYTE - 1)
    table = table_of(pa.table({"n": [1, 2, 1, 2], "text": [text + "x", text + "x", text + "y", text + "y"]}))
    plan = plan_tree(table.batch, 0.002)
    assert (plan.fields[:, 0] == 1).all()
    assert hit_characters(table, plan) == 2 * MEGABYTE + (MEGABYTE - 1)


def test_nulls_nan_and_the_empty_text_are_one_cell():
    table = table_of(pa.table({"a": ["", None, ""], "n": [float("nan"), None, float("nan")], "t": ["q"] * 3}))
    assert [len(texts) for texts in table.texts] == [1, 1, 1]
    assert checked_hits(table) == 2


def test_empty_texts_split_rows_and_save_nothing():
    table = table_of(pa.table({"a": ["", "", "x", "x"], "b": ["", "yes", "", "yes"]}))
    assert checked_hits(table) == 3  # "yesx" after "yes"


UNICODE = ["\U0001f642", "\U0001f642\U0001f643", "e\u0301", "é", "\u202eabc", "\u0000", "\ufeff", "ﬃ", "日本", "日本語"]


def test_characters_are_code_points():
    table = table_of(pa.table({"a": UNICODE}))
    assert [len(text) for text in table.texts[0]] == [1, 2, 2, 1, 4, 1, 1, 1, 2, 3]
    assert checked_hits(table) == 1 + 2  # one face after the other; 日本 before 日本語


def test_lone_surrogates_are_characters():
    """No Arrow table can hold them, but JSON texts can name them."""
    values = ('"\\ud800"', '"\\ud800\\udc00"', '"\\ud800x"', '"\\udfff"')
    table = character_table(EncodedTable(("a",), np.arange(4, dtype=np.int32)[None, :], (values,)))
    assert [len(text) for text in table.texts[0]] == [1, 1, 2, 1]
    assert checked_hits(table) == 1


def test_pandas_tables_with_lone_surrogates_are_turned_away():
    with pytest.raises(RelationalError, match="half a character"):
        table_of(pd.DataFrame({"a": pd.Series(["\ud800"], dtype=object)}))


OBJECTS = {
    "ints and floats": [1, 2.5, None, 1],
    "lists": [[1], [2, 3], None, [1]],
    "nested": [[{"a": [1]}], [{"a": None}], [], [{"a": [1]}]],
    "dicts": [{"a": 1}, {"b": "x"}, None, {"a": 1}],
    "numbers and texts": [1, "b", None, 1],
    "dates and texts": [datetime.date(2020, 1, 1), "b", None, datetime.date(2020, 1, 1)],
    "dates": [datetime.date(2020, 1, 1), None, datetime.date(1, 1, 1), datetime.date(2020, 1, 1)],
    "times": [datetime.time(1, 2, 3), None, datetime.time(0), datetime.time(1, 2, 3)],
    "moments": [datetime.datetime(2020, 1, 1), pd.NaT, None, datetime.datetime(2020, 1, 1)],
    "decimals": [decimal.Decimal("1.10"), decimal.Decimal("-2"), None, decimal.Decimal("1.10")],
    "bools": [True, False, None, True],
    "categories": pd.Categorical(["a", None, "b", "a"]),
    "nothing": [None] * 4,
}


def object_column(values: object) -> pd.Series:
    return pd.Series(values) if isinstance(values, pd.Categorical) else pd.Series(values, dtype=object)


@pytest.mark.parametrize("kind", OBJECTS)
def test_object_columns(kind):
    """The first and the last row are the same cell."""
    table = table_of(pd.DataFrame({"a": object_column(OBJECTS[kind]), "t": ["same"] * 4}))
    assert table.batch.codes[0, 0] == table.batch.codes[0, 3]
    assert checked_hits(table) >= 3 * 4


def test_all_kinds_of_objects_in_one_table():
    table = table_of(pd.DataFrame({kind: object_column(values) for kind, values in OBJECTS.items()}))
    assert checked_hits(table) > 0


@pytest.mark.parametrize("cells", [[1j, "a"], [object()], [{1}, "a"]])
def test_columns_of_objects_without_a_text_are_turned_away(cells):
    with pytest.raises(RelationalError, match="give the column one type"):
        table_of(pd.DataFrame({"a": pd.Series(cells, dtype=object)}))


# --------------------------------------------------------------------------------------------------- any table
TEXTS = st.text(max_size=6) | st.text("ab", max_size=12) | st.sampled_from(["", "\U0001f642", "e\u0301", "é"])
CELLS = (
    TEXTS,
    st.integers(-3, 3),
    st.floats(width=32),
    st.booleans(),
    st.dates(),
    st.lists(st.integers(0, 2), max_size=2),
    st.fixed_dictionaries({"a": st.none() | TEXTS}),
)


@st.composite
def arrow_tables(draw: st.DrawFn) -> pa.Table:
    """1 to 12 rows of 1 to 5 columns, each of few values of one kind, and nulls."""
    num_rows = draw(st.integers(1, 12))
    columns = {}
    for number in range(draw(st.integers(1, 5))):
        values = draw(st.lists(st.none() | draw(st.sampled_from(CELLS)), min_size=1, max_size=4))
        columns[f"c{number}"] = pa.array([draw(st.sampled_from(values)) for _ in range(num_rows)])
    return pa.table(columns)


@given(arrow_tables())
def test_any_arrow_table(table):
    checked_hits(table_of(table))


@given(arrow_tables())
def test_the_same_table_from_pandas_has_the_same_cells(table):
    """Numbers apart: pandas has no whole numbers beside nulls."""
    is_text = [not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) for kind in table.schema.types]
    table = table.select([name for name, keep in zip(table.column_names, is_text, strict=True) if keep])
    if not table.num_columns:
        return
    direct = table_of(table)
    through_pandas = table_of(table.to_pandas())
    for codes, other_codes in zip(direct.batch.codes, through_pandas.batch.codes, strict=True):
        assert len(set(codes.tolist())) == len(set(other_codes.tolist()))
    assert checked_hits(direct) >= 0 and checked_hits(through_pandas) >= 0

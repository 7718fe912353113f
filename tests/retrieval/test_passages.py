from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.records import RelationalError
from vllm_relational.retrieval.passages import distinct_passages, texts_of


def table(cells, kind=None) -> pa.Table:
    return pa.table({"text": pa.array(cells, kind or pa.string())})


def test_equal_texts_are_one_passage_at_its_first_row():
    passages = distinct_passages(table(["a", None, "b", "a", "  ", "", "b", "c"]), "text")
    assert passages.texts == ["a", "b", "c"]
    assert passages.rows.tolist() == [0, 2, 7]


@given(st.lists(st.none() | st.text(max_size=3)))
def test_every_text_is_found_again_in_its_row(cells):
    try:
        passages = distinct_passages(table(cells), "text")
    except RelationalError:
        assert not any(cell and cell.strip() for cell in cells)
        return
    assert [cells[row] for row in passages.rows.tolist()] == passages.texts
    assert set(passages.texts) == {cell for cell in cells if cell and not cell.isspace()}


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_every_kind_of_text_is_the_same(kind):
    plain = table(["a", None, "b", "a"])
    assert distinct_passages(plain.cast(pa.schema({"text": kind})), "text").texts == ["a", "b"]


@pytest.mark.parametrize("other", [["a", "c"], ["b", "a"], [None, "a", "b"], ["ab", ""], ["a"]])
def test_the_fingerprint_changes_with_texts_and_rows(other):
    assert (
        distinct_passages(table(["a", "b"]), "text").fingerprint != distinct_passages(table(other), "text").fingerprint
    )


def test_the_fingerprint_does_not_change_with_other_columns_or_repetitions():
    wider = table(["a", "b", "a", None]).append_column("n", pa.array([1, 2, 3, 4]))
    assert distinct_passages(wider, "text").fingerprint == distinct_passages(table(["a", "b"]), "text").fingerprint


@pytest.mark.parametrize("cells", [[None], [None, None], ["", " \n"]])
def test_a_column_without_text_is_an_error_with_the_fix(cells):
    with pytest.raises(RelationalError, match=r"'text' holds no text.*name the column of passages; columns: text"):
        distinct_passages(table(cells), "text")


def test_errors_name_the_column_and_the_fix():
    with pytest.raises(RelationalError, match=r"no column 'body': columns: text"):
        texts_of(table(["a"]), "body")
    with pytest.raises(RelationalError, match=r"'text' is int64, not text: cast"):
        texts_of(table([1], pa.int64()), "text")
    with pytest.raises(RelationalError, match=r"takes a pyarrow Table, not a dict: .*read_table"):
        texts_of({"text": ["a"]}, "text")

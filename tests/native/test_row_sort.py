"""Row sort: native code, when built, and the reference give one order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational import native
from vllm_relational.plan import row_sort

SORTERS = [pytest.param(native.sort_rows, id="native" if native.AVAILABLE else "fallback")]
SORTERS += [pytest.param(row_sort.sort_rows, id="reference")]


@st.composite
def tables(draw):
    num_columns, num_rows = draw(st.integers(0, 4)), draw(st.integers(0, 40))
    highest = draw(st.sampled_from([0, 1, 3, 5000, 2**31 - 1]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = random.integers(0, highest, size=(num_columns, num_rows), endpoint=True, dtype=np.int32)
    columns = st.lists(st.integers(0, num_columns - 1), max_size=5) if num_columns else st.just([])
    return codes, np.array(draw(columns), dtype=np.int32)


@given(tables())
def test_native_equals_reference(table):
    codes, order = table
    rows = native.sort_rows(codes, order)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, row_sort.sort_rows(codes, order))


@pytest.mark.parametrize("sort_rows", SORTERS)
def test_ties_keep_row_order(sort_rows):
    codes = np.array([[1, 0, 1, 0], [7, 7, 7, 7]], dtype=np.int32)
    assert sort_rows(codes, np.array([1, 0], dtype=np.int32)).tolist() == [1, 3, 0, 2]
    assert sort_rows(codes, np.array([1], dtype=np.int32)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sort_rows", SORTERS)
def test_columns_outside_the_order_do_not_count(sort_rows):
    codes = np.array([[2, 1, 0], [-1, -1, -1]], dtype=np.int32)
    assert sort_rows(codes, np.array([0], dtype=np.int32)).tolist() == [2, 1, 0]


@pytest.mark.parametrize("sort_rows", SORTERS)
@pytest.mark.parametrize(
    ("codes", "order", "message"),
    [
        ([[0, 1], [0, -1]], [0, 1], r"codes\[1, 1\] = -1 is negative"),
        ([[0, 1]], [0, 1], r"order\[1\] = 1, but there are 1 columns"),
        ([[0, 1]], [-1], r"order\[0\] = -1, but there are 1 columns"),
    ],
)
def test_errors_name_the_place(sort_rows, codes, order, message):
    with pytest.raises(ValueError, match=message):
        sort_rows(np.array(codes, dtype=np.int32), np.array(order, dtype=np.int32))


def test_strided_codes_are_taken():
    codes = np.arange(24, dtype=np.int32).reshape(12, 2).T[:, ::-2]
    assert native.sort_rows(codes, np.array([0])).tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.skipif(not native.AVAILABLE, reason="native code was not built")
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 2), dtype=np.int64), "codes must be int32"),
        (np.zeros(2, dtype=np.int32), r"codes must have 2 dimension\(s\), not 1"),
        (np.zeros((2, 4), dtype=np.int32)[:, ::2], "codes must be C-contiguous"),
    ],
)
def test_binding_rejects_other_layouts(codes, message):
    from vllm_relational import _native

    with pytest.raises(ValueError, match=message):
        _native.sort_rows(codes, np.array([0], dtype=np.int32))

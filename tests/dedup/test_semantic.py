"""Rows are joined only within the threshold of the row asked, whatever blocks they fall into."""

from __future__ import annotations

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_relational.dedup import row_texts, semantic, similar_rows, text_columns
from vllm_relational.records import RelationalError
from vllm_relational.table import encode_columns

TOLERANCE = 1e-5


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clumps(num_clumps: int, size: int, spread: float, dimension: int = 16, seed: int = 0) -> np.ndarray:
    """Unit vectors around random centres, clump after clump."""
    random = np.random.default_rng(seed)
    centres = np.repeat(unit(random.normal(size=(num_clumps, dimension))), size, axis=0)
    return unit(centres + spread * random.normal(size=centres.shape))


def ones(vectors: np.ndarray) -> np.ndarray:
    return np.ones(len(vectors), np.int64)


def check(vectors: np.ndarray, heads: np.ndarray, threshold: float) -> None:
    assert np.array_equal(heads[heads], heads)  # no chain: the row asked is asked for itself
    joined = np.flatnonzero(heads != np.arange(len(heads)))
    assert (np.einsum("ij,ij->i", vectors[joined], vectors[heads[joined]]) >= threshold - TOLERANCE).all()


@given(st.integers(0, 40), st.integers(0, 999), st.floats(0.1, 1.0), st.booleans())
def test_every_row_is_within_the_threshold_of_the_row_asked_for_it(num_rows, seed, threshold, keyed):
    random = np.random.default_rng(seed)
    vectors = unit(random.normal(size=(num_rows, 3)))
    keys = random.integers(0, 3, num_rows) if keyed else None
    heads = similar_rows(vectors, threshold, ones(vectors), keys)
    check(vectors, heads, threshold)
    if keys is not None:
        assert np.array_equal(keys[heads], keys)
    alone = np.flatnonzero(np.bincount(heads, minlength=num_rows) == 1)
    close = vectors[alone] @ vectors[alone].T >= threshold + TOLERANCE
    if keys is None:  # two rows that are alike do not both stay alone
        assert not np.triu(close, 1).any()


@settings(max_examples=examples(10))
@given(st.integers(0, 999), st.integers(3, 9))
def test_blocks_find_what_one_block_finds_in_clumps(seed, rows_per_block):
    pytest.importorskip("faiss")
    vectors = clumps(12, 5, 0.01, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "CHUNK", 7)
        patch.setattr(semantic, "ROWS_PER_BLOCK", rows_per_block)
        heads = similar_rows(vectors, 0.95, ones(vectors))
    check(vectors, heads, 0.95)
    assert len(set(heads.tolist())) <= 24  # 12 clumps; a block's border may cut one in two


def test_clumps_become_groups_and_the_row_asked_is_near_the_centre():
    vectors = clumps(3, 9, 0.03)
    heads = similar_rows(vectors, 0.9, ones(vectors))
    for clump in range(3):
        rows = np.arange(9 * clump, 9 * clump + 9)
        closeness = vectors[rows] @ vectors[rows].sum(axis=0)
        assert set(heads[rows]) == {rows[closeness.argmax()]}


def test_no_chain_over_neighbours():
    angles = np.deg2rad(np.arange(0, 90, 10))  # each 10 degrees from the next, 80 from end to end
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    heads = similar_rows(vectors, np.cos(np.deg2rad(10.5)), ones(vectors))
    check(vectors, heads, np.cos(np.deg2rad(10.5)))
    assert len(set(heads.tolist())) >= 3


def test_many_rows_behind_a_vector_draw_the_centre():
    vectors = unit(np.array([[1, 0.0], [1, 0.1], [1, 0.2]], np.float32))
    assert set(similar_rows(vectors, 0.95, np.array([1, 1, 1]))) == {1}
    assert set(similar_rows(vectors, 0.95, np.array([90, 1, 1]))) == {0}


def test_vectors_of_length_zero_stay_alone():
    vectors = np.zeros((4, 3), np.float32)
    assert similar_rows(vectors, 0.5, ones(vectors)).tolist() == [0, 1, 2, 3]


def test_no_threshold_is_so_low_that_vectors_of_length_zero_are_joined():
    vectors = np.concatenate([np.zeros((2, 3)), np.eye(3)]).astype(np.float32)
    assert similar_rows(vectors, 1e-7, ones(vectors)).tolist() == [0, 1, 2, 3, 4]


def test_the_row_asked_is_the_closest_to_the_centre_of_all_that_may_be_asked():
    # Many heavy rows on one side draw the centre to them, but are too far from the row on the other side.
    angles = np.deg2rad(np.concatenate([[-8.0, 0.0, 1.5], np.linspace(5, 10, 40)]))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    weights = np.where(np.arange(len(vectors)) < 3, 1, 1000)
    assert set(similar_rows(vectors, np.cos(np.deg2rad(10.1)), weights)) == {2}


def test_equal_vectors_are_joined_at_a_threshold_of_one():
    vectors = np.repeat(unit(np.random.default_rng(0).normal(size=(5, 384))), 3, axis=0)
    assert len(set(similar_rows(vectors, 1.0, ones(vectors)).tolist())) == 5


def test_a_block_of_like_rows_larger_than_a_chunk_is_one_group(monkeypatch):
    monkeypatch.setattr(semantic, "CHUNK", 10)
    monkeypatch.setattr(semantic, "_nearest_blocks", lambda vectors, *_: np.zeros((len(vectors), 1), np.int64))
    vectors = clumps(1, 35, 0.001)
    assert len(set(similar_rows(vectors, 0.95, ones(vectors)).tolist())) == 1


def test_rows_left_alone_look_into_other_blocks(monkeypatch):
    monkeypatch.setattr(semantic, "CHUNK", 2)
    blocks = np.array([[0, 1], [1, 0], [0, 1], [1, 0]])
    monkeypatch.setattr(semantic, "_nearest_blocks", lambda *_: blocks)
    vectors = unit(np.array([[1, 0], [1, 0.01], [0, 1], [-1, 0]], np.float32))
    assert len(set(similar_rows(vectors, 0.95, ones(vectors)).tolist())) == 3


def test_the_same_input_gives_the_same_groups():
    pytest.importorskip("faiss")
    vectors = clumps(900, 4, 0.05, dimension=8)
    first, second = (similar_rows(vectors, 0.97, ones(vectors), seed=3) for _ in range(2))
    assert np.array_equal(first, second)
    check(vectors, first, 0.97)


def test_a_missing_library_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    vectors = clumps(semantic.CHUNK + 1, 1, 0.0)
    with pytest.raises(RelationalError, match=r"semantic deduplication of more than .* needs faiss: pip install"):
        similar_rows(vectors, 0.9, ones(vectors))


# ----------------------------------------------------------------------------------------------------------- texts
def table_of(**columns):
    table = pa.table(columns)
    return encode_columns(table, table.column_names)


def test_an_embedder_reads_plain_texts():
    table = table_of(name=['Quiet "room"', "é\n"], stars=[4, 5])
    assert row_texts(table, np.array([1, 0]), ["name"]) == ["é\n", 'Quiet "room"']
    assert row_texts(table, np.array([0]), ["name", "stars"]) == ['name: Quiet "room"\nstars: 4']
    assert row_texts(table, np.array([], np.int64), ["name"]) == []


def test_columns_of_numbers_are_not_compared_by_meaning():
    table = table_of(text=["a", "1"], price=["1.5", "2"], stars=[1, 2], blank=["", ""], codes=["1", "x"])
    assert text_columns(table) == ("text", "codes")


def test_dates_and_decimals_are_not_compared_by_meaning():
    table = table_of(
        text=["a", "b"],
        day=[datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)],
        written=["2020-01-01", "2020-01-02T10:00:00Z"],
        cost=[decimal.Decimal("1.5"), decimal.Decimal("2.5")],
        often=[datetime.timedelta(1), datetime.timedelta(2)],
        state=pa.array(["on", "off"]).dictionary_encode(),
    )
    assert text_columns(table) == ("text", "state")

"""Dependencies between columns: native code equals the reference, what is put in is found, chance is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_batches import batch_of, batches

from vllm_relational import native
from vllm_relational.plan.dependencies import Dependency, find_dependencies
from vllm_relational.plan.pair_dependencies import pair_dependencies

seeds = st.integers(0, 2**32).map(np.random.default_rng)


def table(*columns):
    sizes = [int(max(column, default=0)) + 1 for column in columns]
    return batch_of([list(map(int, column)) for column in columns], [[1] * size for size in sizes])


def num_values(batch):
    return np.array([len(lengths) for lengths in batch.cell_tokens])


@st.composite
def related_columns(draw):
    """Each column comes from the one before, some rows changed."""
    random, num_rows = draw(seeds), draw(st.integers(1, 80))
    columns = [random.integers(0, draw(st.integers(1, 40)), num_rows)]
    for _ in range(draw(st.integers(0, 5))):
        fresh = random.integers(0, 9, num_rows)
        noise = draw(st.sampled_from([0, 0.02, 0.2]))
        columns.append(np.where(random.random(num_rows) < noise, fresh, columns[-1] % random.integers(1, 12)))
    return table(*columns)


limits = st.tuples(st.sampled_from([0, 0.01, 0.1, 1]), st.sampled_from([0, 0.1, 0.5]), st.sampled_from([0.3, 0.5, 1]))


@given(st.one_of(related_columns(), batches(max_rows=30)), limits)
def test_native_equals_reference(batch, limits):
    found = native.pair_dependencies(batch.codes, num_values(batch), *limits)
    np.testing.assert_array_equal(found, pair_dependencies(batch.codes, num_values(batch), *limits))


@given(related_columns(), st.sampled_from([0.9, 0.99, 1.0]))
def test_the_same_without_native_code(batch, min_share):
    found = find_dependencies(batch, min_share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_NATIVE", None)
        assert find_dependencies(batch, min_share) == found


@given(related_columns())
def test_shares_are_those_of_the_rows(batch):
    for found in find_dependencies(batch, min_share=0.9):
        assert len(found.determinants) > 1 or found.dependents
        shares = [_share(batch.codes[found.determinants[0]], batch.codes[column]) for column in found.dependents]
        assert min(shares, default=1.0) == pytest.approx(found.share)
        assert found.share >= 0.9


def _share(x, y):
    groups = (np.bincount(y[x == value]).max() for value in np.unique(x))
    return sum(groups) / len(x)


@given(seeds, st.integers(200, 600))
def test_independent_columns_give_none(random, num_rows):
    sizes = random.integers(1, num_rows // 3, 6)
    rare = (random.random(num_rows) < 0.03).astype(int)
    assert find_dependencies(table(rare, *(random.integers(0, size, num_rows) for size in sizes))) == ()


@given(seeds)
def test_injected_dependencies_are_found(random):
    """city = post code -> country -> continent, a note, and a country typed in by hand."""
    num_rows = 1000
    city, note = random.permutation(np.arange(num_rows) % 60), random.integers(0, 400, num_rows)
    country = random.permutation(np.arange(60) % 12)[city]
    typed = np.where(np.arange(num_rows) % 200 == 0, (country + 1) % 12, country)
    batch = table(note, city, country, (country * 7 + 3) % 4, 59 - city, typed, np.zeros(num_rows))
    assert find_dependencies(batch) == (
        Dependency((1, 4), (2,), 1.0),
        Dependency((2,), (3,), 1.0),
        Dependency((2,), (5,), 0.995),
        Dependency((5,), (2,), 0.995),
    )
    assert find_dependencies(batch, min_share=1.0) == (Dependency((1, 4), (2,), 1.0), Dependency((2,), (3,), 1.0))


def test_a_chain_stands_for_what_follows_from_it():
    finest = np.arange(400) % 64
    assert find_dependencies(table(finest // 8, finest, finest // 32, finest // 2)) == (
        Dependency((0,), (2,), 1.0),
        Dependency((1,), (3,), 1.0),
        Dependency((3,), (0,), 1.0),
    )


def test_keys_constants_and_dominated_columns_are_left_out():
    rows = np.arange(100)
    almost_constant = (rows == 17).astype(int)
    assert find_dependencies(table(rows, rows // 2 * 2 % 98, np.zeros(100), almost_constant, rows % 5)) == ()


def test_accidents_that_a_join_repeats_are_left_out():
    """40 listings of 10 hosts, 25 reviews each: 35 distinct prices give every attribute of a listing, by chance."""
    random = np.random.default_rng(0)
    listing, host = np.repeat(np.arange(40), 25), np.arange(40) % 10
    price, day, host_name = (
        np.minimum(np.arange(40), 34),
        np.arange(40) % 40 // 34 + random.permutation(40) % 3,
        host * 3,
    )
    assert find_dependencies(table(listing, price[listing], day[listing], host[listing], host_name[listing] // 6)) == (
        Dependency((0,), (1, 2, 3), 1.0),
        Dependency((3,), (4,), 1.0),
    )


@pytest.mark.parametrize("columns", [[[]], [[], []], [[3]], [[0], [0]]])
def test_tables_too_small_to_tell(columns):
    assert find_dependencies(batch_of(columns, [[1] * 4] * len(columns))) == ()


@pytest.mark.parametrize(("name", "value"), [("min_share", 1.5), ("max_distinct", -0.1)])
def test_shares_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} must be from 0 to 1"):
        find_dependencies(table([0, 0]), **{name: value})


@pytest.mark.parametrize("find", [native.pair_dependencies, pair_dependencies])
def test_codes_out_of_range(find):
    with pytest.raises(ValueError, match=r"codes\[0, 1\] = 2"):
        find(np.array([[0, 2]], np.int32), np.array([2]), 0, 0, 1)
    with pytest.raises(ValueError, match="an entry a column"):
        find(np.array([[0, 2]], np.int32), np.array([2, 2]), 0, 0, 1)

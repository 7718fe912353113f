"""The catalogue: the right neighbours among many contexts, whatever became of its file."""

from __future__ import annotations

import os
import sqlite3

import numpy as np
import pytest
from contexts_made import FINGERPRINT, OTHER, put, tokens

from vllm_relational.context import DB, catalogue, commit
from vllm_relational.context.catalogue import CATALOGUE, Catalogue
from vllm_relational.context.token_ids import common_prefix


@pytest.fixture
def db(tmp_path):
    return DB(tmp_path / "db")


def longest(database, stored, asked, skip=()):
    """Of the contexts that the catalogue proposes: how many tokens the best one shares."""
    found = database.nearest(FINGERPRINT, asked, skip)
    assert len(found) <= 2
    return max((common_prefix(stored[name], asked) for name in found), default=0)


def test_the_neighbours_have_the_longest_prefix(db):
    draw = np.random.default_rng(1)
    stored = {}
    for _ in range(40):
        ids = draw.integers(0, 3, draw.integers(1, 9)).astype(np.uint32)
        stored[put(db, *map(int, ids))] = ids
    made = Catalogue(db.path, writable=True)
    for _ in range(300):
        asked = draw.integers(0, 3, draw.integers(1, 9)).astype(np.uint32)
        skip = [name for name in stored if draw.random() < 0.2]
        best = max(common_prefix(ids, asked) for name, ids in stored.items() if name not in skip)
        assert longest(made, stored, asked, skip) == best


def test_large_ids_are_in_order_too(db):
    numbers = [1, 255, 256, 65535, 65536, 2**32 - 1]
    stored = {put(db, number, 7): tokens(number, 7) for number in numbers}
    for number in numbers:
        assert longest(Catalogue(db.path, True), stored, tokens(number, 7)) == 2


def test_it_is_made_again_where_it_cannot_be_read(db):
    context = put(db, range(10))
    path = db.path / CATALOGUE
    for content in (b"", b"x", b"SQLite format 3\0" + bytes(5000), os.urandom(40000)):
        path.write_bytes(content)
        assert Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0)) == [context]
        with sqlite3.connect(path) as database:
            assert database.execute("SELECT count(*) FROM contexts").fetchone() == (1,)


@pytest.mark.parametrize(
    "sql", ["DROP TABLE folders", "DROP INDEX by_id", "CREATE TABLE more (x)", "DROP TABLE contexts"]
)
def test_other_tables_are_no_catalogue(db, sql):
    context = put(db, range(10))
    assert Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0)) == [context]
    with sqlite3.connect(db.path / CATALOGUE) as database:
        database.execute(sql)
    assert Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0)) == [context]


def test_one_of_a_newer_version_is_left_alone(db):
    context = put(db, range(10))
    Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0))
    with sqlite3.connect(db.path / CATALOGUE) as database:
        database.execute("PRAGMA user_version = 2")
        database.execute("DROP TABLE folders")
    before = (db.path / CATALOGUE).read_bytes()
    assert Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0)) == [context]
    assert (db.path / CATALOGUE).read_bytes() == before


def test_where_it_cannot_be_written_it_is_in_memory(db, monkeypatch):
    context = put(db, range(10))
    made = Catalogue(db.path, writable=False)
    assert made.nearest(FINGERPRINT, tokens(0)) == [context]
    second = put(db, 0, 5)
    assert set(made.nearest(FINGERPRINT, tokens(0, 4))) == {context, second}
    assert not (db.path / CATALOGUE).exists()


def test_one_that_is_locked_for_long_is_not_waited_for(db, monkeypatch):
    context = put(db, range(10))
    Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0))
    monkeypatch.setattr(catalogue, "WAIT_SECONDS", 0.01)
    other = sqlite3.connect(db.path / CATALOGUE)
    other.execute("BEGIN EXCLUSIVE")
    assert Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0)) == [context]
    other.close()


def test_a_damaged_one_under_a_lock_is_not_waited_for(db, monkeypatch):
    context = put(db, range(10))
    (db.path / CATALOGUE).write_bytes(b"damaged")
    monkeypatch.setattr(catalogue, "WAIT_SECONDS", 0.01)
    with commit.locked(db.path):
        assert Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0)) == [context]
    assert (db.path / CATALOGUE).read_bytes() == b"damaged"
    assert Catalogue(db.path, True).nearest(FINGERPRINT, tokens(0)) == [context]
    assert (db.path / CATALOGUE).stat().st_size > 1000


def test_a_folder_that_has_settled_is_not_looked_through_again(db, monkeypatch):
    context = put(db, range(10))
    os.utime(db.path / FINGERPRINT, (1e9, 1e9))
    made = Catalogue(db.path, True)
    made.nearest(FINGERPRINT, tokens(0))
    monkeypatch.setattr(catalogue, "contexts_in", lambda folder: pytest.fail("looked through"))
    assert made.nearest(FINGERPRINT, tokens(0)) == [context]


def test_changes_within_one_tick_of_the_clock_are_seen(db, monkeypatch):
    made = Catalogue(db.path, True)
    first = put(db, 1)
    time = (db.path / FINGERPRINT).stat().st_mtime_ns
    assert made.nearest(FINGERPRINT, tokens(1)) == [first]
    second = put(db, 2)
    os.utime(db.path / FINGERPRINT, ns=(time, time))
    assert made.nearest(FINGERPRINT, tokens(2)) == [second]


def test_a_context_is_not_taken_for_one_that_is_gone(db):
    made = Catalogue(db.path, True)
    gone, kept = put(db, 5, 5), put(db, 5, 1)
    assert made.nearest(FINGERPRINT, tokens(5, 5)) == [gone]
    db.delete(gone)
    new = put(db, 9, 9)
    assert set(made.nearest(FINGERPRINT, tokens(5, 5))) == {kept, new}
    assert made.nearest(FINGERPRINT, tokens(5, 1))[0] == kept


def test_contexts_that_are_gone_leave_the_file(db, monkeypatch):
    monkeypatch.setattr(catalogue, "SPARE", (2, 0.0))
    made = Catalogue(db.path, True)
    contexts = [put(db, number, 7) for number in range(6)]
    for number in (0, 1, 2):
        made.nearest(FINGERPRINT, tokens(5))
        db.delete(contexts[number])
    assert made.nearest(FINGERPRINT, tokens(1)) == [contexts[3]]
    with sqlite3.connect(db.path / CATALOGUE) as database:
        assert database.execute("SELECT count(*) FROM prefixes").fetchone() == (3,)
    assert put(db, 1, 7) == contexts[1] and made.nearest(FINGERPRINT, tokens(1, 7))[0] == contexts[1]


def test_a_fingerprint_without_contexts(db):
    assert Catalogue(db.path, True).nearest(OTHER, tokens(1)) == []

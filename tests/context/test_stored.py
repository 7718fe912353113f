"""An open context, and the indexes that are added to it later."""

from __future__ import annotations

import os

import pytest
from contexts_made import FINGERPRINT, NUM_LAYERS, holds, put

from vllm_relational.context import DB, ContextError
from vllm_relational.context.stored import ContextGoneError, StoredContext


@pytest.fixture
def db(tmp_path):
    return DB(tmp_path / "db")


@pytest.fixture
def stored(db):
    return db.open(put(db, range(100)))


def test_it_says_what_it_is(stored):
    assert (stored.num_tokens, stored.num_layers, stored.fingerprint) == (100, NUM_LAYERS, FINGERPRINT)
    assert stored.token_ids.tolist() == list(range(100)) and not stored.token_ids.flags.writeable
    assert [shape.num_tokens for shape in stored.shapes] == [100, 100] and holds(stored)


def test_one_that_was_deleted_is_gone_for_new_readers(db, stored):
    db.delete(stored.id)
    with pytest.raises(ContextGoneError):
        StoredContext(stored.folder)


def test_it_is_open_once(db, stored):
    assert db.open(stored.id) is stored is db.find(range(5), FINGERPRINT)[0]


def test_layers_of_another_context_are_refused(db, stored):
    other = db.open(put(db, range(101)))
    os.replace(other.folder / "layer_01.kv", stored.folder / "layer_01.kv")
    with pytest.raises(ContextError, match="another context"):
        StoredContext(stored.folder)


def test_too_many_open_files_are_told_with_the_way_out(stored, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *given: (_ for _ in ()).throw(OSError(24, "Too many open files", "layer")))
    with pytest.raises(ContextError, match="ulimit"):
        StoredContext(stored.folder)


# --------------------------------------------------------------------------------------------------------- indexes
def write(content):
    return lambda path: path.write_bytes(content)


def test_an_index_is_there_for_whoever_opens_the_context(db, stored):
    assert stored.index_path("flat", 1) is None
    path = stored.add_index("flat", 1, write(b"index"))
    assert path == stored.index_path("flat", 1) and path.read_bytes() == b"index"
    assert StoredContext(stored.folder).index_path("flat", 1) == path
    assert stored.index_path("flat", 0) is None is stored.index_path("fine", 1)
    assert db.list()[0].indexes == ("flat",) and db.verify() == []


def test_an_index_can_be_exchanged(stored):
    stored.add_index("flat", 1, write(b"index"))
    stored.index_path("flat", 1)
    stored.add_index("flat", 1, write(b"other"))
    assert stored.index_path("flat", 1).read_bytes() == b"other"


@pytest.mark.parametrize("victim", ["index_flat_00", "index_flat_00.json"])
@pytest.mark.parametrize("how", ["flipped", "cut off", "empty", "missing"])
def test_a_damaged_index_is_never_believed(db, stored, victim, how):
    stored.add_index("flat", 0, write(b"index" * 10))
    path = stored.folder / victim
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"flipped": data[:-3] + b"?" + data[-2:], "cut off": data[:-1], "empty": b""}[how])
    assert stored.index_path("flat", 0) is None
    assert db.find(range(5), FINGERPRINT)[1] == 5
    stored.add_index("flat", 0, write(b"new"))
    assert stored.index_path("flat", 0).read_bytes() == b"new"


def test_verify_names_a_damaged_index_and_takes_it_away(db, stored):
    path = stored.add_index("flat", 0, write(b"index"))
    stored.index_path("flat", 0)
    status = path.stat()
    path.write_bytes(b"indeX")
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    (problem,) = db.verify()
    assert "index_flat_00" in problem.text and db.verify() == []


def test_an_index_whose_writer_was_killed_is_no_damage(db, stored):
    path = stored.add_index("flat", 0, write(b"index"))
    path.with_name("index_flat_00.json").unlink()
    assert stored.index_path("flat", 0) is None and db.verify() == [] and not path.exists()


def test_an_index_of_a_deleted_context_is_not_kept(db, stored):
    db.delete(stored.id)
    assert stored.add_index("flat", 0, write(b"index")) is None
    assert stored.index_path("flat", 0) is None


def test_an_index_over_damaged_keys_is_not_kept(stored):
    path = stored.folder / "layer_01.kv"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert stored.add_index("flat", 1, lambda place: pytest.fail("written")) is None
    assert stored.add_index("flat", 0, write(b"index")) is not None


def test_a_write_that_fails_leaves_nothing(stored):
    def fails(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in stored.folder.iterdir())
    assert stored.add_index("flat", 0, fails) is None
    assert sorted(path.name for path in stored.folder.iterdir()) == before


@pytest.mark.parametrize(("kind", "layer"), [("../x", 0), ("", 0), ("Flat", 0), ("flat", -1), ("flat", 2)])
def test_there_are_no_such_indexes(stored, kind, layer):
    for call in (lambda: stored.index_path(kind, layer), lambda: stored.add_index(kind, layer, write(b""))):
        with pytest.raises(ContextError, match="no index"):
            call()


def test_lost_names_are_told(db, stored):
    put(db, range(100), name="book")
    (stored.folder / "names.json").write_bytes(b"?")
    (problem,) = db.verify()
    assert "names" in problem.text and db.list()[0].names == ()
    put(db, range(100), name="book")
    assert db.verify() == [] and db.open("book").id == stored.id

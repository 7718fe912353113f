"""The database: what is found, what is refused, and what survives."""

from __future__ import annotations

import errno
import os
import pickle

import msgspec
import numpy as np
import pytest
from contexts_made import FINGERPRINT, OTHER, holds, layers_for, put, tokens

from vllm_relational.context import DB, ContextError, manifest
from vllm_relational.context.catalogue import CATALOGUE
from vllm_relational.context.manifest import MANIFEST
from vllm_relational.context.stored import StoredContext


@pytest.fixture
def db(tmp_path):
    return DB(tmp_path / "db")


def folder_of(db, context, fingerprint=FINGERPRINT):
    return db.path / fingerprint / context


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.unlink()
    path.write_bytes(data)


def in_order_of_use(db, *contexts, fingerprint=FINGERPRINT):
    for age, context in enumerate(reversed(contexts)):
        os.utime(folder_of(db, context, fingerprint), (1e9 - age, 1e9 - age))


# --------------------------------------------------------------------------------------------------------- finding
def test_what_was_stored_is_found_by_another_process(db):
    context = put(db, range(100))
    stored, matched = DB(db.path).find(tokens(range(200)), FINGERPRINT)
    assert (stored.id, matched) == (context, 100) and holds(stored, range(100))


@pytest.mark.parametrize(
    ("asked", "expected", "matched"),
    [
        (tokens(range(50)), 0, 50),  # ends inside
        (tokens(range(90), 7), 1, 91),  # another goes on longer
        (tokens(range(90), 6), 0, 90),
        (tokens(range(90), 8, 8), 1, 90),
        (tokens(5, 6, 9), 2, 2),
        (tokens(0), 0, 1),
    ],
)
def test_the_longest_prefix_of_all_is_found_whichever_context_has_it(db, asked, expected, matched):
    contexts = [put(db, range(100)), put(db, range(90), 7, 7), put(db, 5, 6), put(db, 4)]
    stored, found = db.find(asked, FINGERPRINT)
    assert found == matched
    assert stored.id == contexts[expected] or np.array_equal(stored.token_ids[:found], asked[:found])


def test_nothing_is_found_where_no_token_fits(db):
    assert db.find([1, 2], FINGERPRINT) is None
    put(db, range(10))
    assert db.find([1, 2], FINGERPRINT) is None
    assert db.find(range(10), OTHER) is None


def test_fingerprints_are_kept_apart(db):
    put(db, range(10), salt=1)
    put(db, range(10), fingerprint=OTHER, salt=2)
    assert len({info.id for info in db.list()}) == 2
    assert holds(db.find(range(10), FINGERPRINT)[0], range(10), salt=1)
    assert holds(db.find(range(10), OTHER)[0], range(10), salt=2)


def test_equal_tokens_are_stored_once(db):
    assert put(db, range(10), salt=1) == put(DB(db.path), range(10), salt=2)
    assert len(db.list()) == 1 and holds(db.find(range(10), FINGERPRINT)[0], salt=1)


def test_a_context_that_another_process_stores_or_deletes_is_seen_at_once(db):
    other = DB(db.path)
    assert other.find(range(10), FINGERPRINT) is None
    context = put(db, range(10))
    assert other.find(range(10), FINGERPRINT)[1] == 10
    db.delete(context)
    assert other.find(range(10), FINGERPRINT) is None


def test_a_deleted_context_serves_those_who_have_it(db):
    context = put(db, range(1000))
    stored, _ = db.find(range(10), FINGERPRINT)
    db.delete(context)
    assert list(db.path.glob("*/*")) == [] and holds(stored, range(1000))


# -------------------------------------------------------------------------------------------------------- deleting
@pytest.mark.parametrize("wanted", ["name", "id", "start of the id"])
def test_a_context_is_deleted_by_name_id_and_start_of_the_id(db, wanted):
    kept, context = put(db, 5), put(db, range(10), name="a/b c")
    assert db.delete({"name": "a/b c", "id": context, "start of the id": context[:8]}[wanted]) == context
    assert [info.id for info in db.list()] == [kept]


def test_what_is_not_there_cannot_be_deleted(db):
    with pytest.raises(ContextError, match="no context 'book'"):
        db.delete("book")


def test_a_name_of_two_models_contexts_is_no_way_to_delete_one(db):
    put(db, 1, name="book")
    put(db, 2, fingerprint=OTHER, name="book")
    with pytest.raises(ContextError, match="2 contexts"):
        db.delete("book")


# ----------------------------------------------------------------------------------------------------------- names
def test_a_name_can_be_given_later_and_twice(db):
    context = put(db, range(10))
    assert {put(db, range(10), name="one"), put(db, range(10), name="two"), put(db, range(10), name="one")} == {context}
    assert db.list()[0].names == ("one", "two")
    assert db.open("two").id == context


def test_a_name_belongs_to_one_context_of_a_model(db):
    first = put(db, 1, name="book")
    with pytest.raises(ContextError, match="another context"):
        put(db, 2, name="book")
    assert [info.id for info in db.list()] == [first]


@pytest.mark.parametrize("name", ["", " ", "a ", "a\nb", "x" * 300, "0" * 32, "\x1b[1m"])
def test_names_that_nobody_can_read_are_refused(db, name):
    with pytest.raises(ContextError, match="no name"):
        put(db, 1, name=name)
    assert db.list() == []


# ----------------------------------------------------------------------------------------------------------- limit
def test_beyond_the_limit_what_was_used_longest_ago_goes_first(db):
    contexts = [put(db, number, range(50)) for number in range(3)]
    size = db.list()[0].num_bytes
    in_order_of_use(db, *contexts)
    db.find([0, 0], FINGERPRINT)  # is used now
    new = put(DB(db.path, max_bytes=3 * size + 10), 9, range(50))
    assert {info.id for info in db.list()} == {contexts[0], contexts[2], new}


def test_what_does_not_fit_at_all_evicts_nothing(db):
    context = put(db, 1)
    with pytest.raises(ContextError, match="does not fit"):
        put(DB(db.path, max_bytes=100), 2)
    assert [info.id for info in db.list()] == [context]


# ---------------------------------------------------------------------------------------------------------- damage
@pytest.mark.parametrize("file", [MANIFEST, "tokens.u32", "layer_00.kv", "layer_01.kv"])
@pytest.mark.parametrize("how", ["flipped", "cut off", "missing", "foreign", "empty"])
def test_a_damaged_context_is_passed_over_told_and_replaced(db, file, how):
    whole, damaged = put(db, range(50)), put(db, range(100))
    db.find([1], FINGERPRINT)
    path = folder_of(db, damaged) / file
    data = path.read_bytes()
    path.unlink()
    if how == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how != "missing":
        path.write_bytes({"cut off": data[:-1], "foreign": b"my notes", "empty": b""}[how])
    reader = DB(db.path)
    with pytest.warns(UserWarning, match="damaged|missing|written|layer|manifest"):
        stored, matched = reader.find(range(100), FINGERPRINT)
    assert (stored.id, matched) == (whole, 50)
    assert reader.find(range(100), FINGERPRINT)[1] == 50  # is said once
    assert [problem.id for problem in reader.verify()] == [damaged]
    assert put(reader, range(100)) == damaged
    assert reader.verify() == [] and reader.find(range(100), FINGERPRINT)[1] == 100
    assert DB(db.path).find(range(100), FINGERPRINT)[1] == 100


@pytest.mark.parametrize("file", [MANIFEST, "tokens.u32"])
def test_a_context_that_cannot_be_read_is_listed_and_can_be_deleted(db, file):
    context = put(db, range(10))
    flip(folder_of(db, context) / file)
    (info,) = db.list()
    assert info.problem and info.num_bytes > 0 and db.stat().problems == 1
    db.delete(context[:6])
    assert db.list() == []


def test_a_context_of_a_newer_version_is_passed_over_and_left_alone(db):
    old, new = put(db, range(50)), put(db, range(100))
    db.find([1], FINGERPRINT)
    path = folder_of(db, new) / MANIFEST
    written = manifest.read_manifest(path.parent)
    path.write_bytes(manifest.seal(msgspec.structs.replace(written, format=2)))
    reader = DB(db.path)
    with pytest.warns(UserWarning, match="upgrade"):
        assert reader.find(range(100), FINGERPRINT)[0].id == old
    with pytest.raises(ContextError, match="upgrade"):
        put(reader, range(100))
    assert [info.problem is not None for info in reader.list()] == [False, True] and b'"format":2' in path.read_bytes()


def test_a_bad_sector_is_damage(db, monkeypatch):
    old, context = put(db, range(50)), put(db, range(100))
    whole = os.preadv

    def fails(descriptor, buffers, offset):
        if os.path.samestat(os.fstat(descriptor), (folder_of(db, context) / "layer_01.kv").stat()):
            raise OSError(errno.EIO, "Input/output error")
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.warns(UserWarning, match="the disk is failing"):
        assert DB(db.path).find(range(100), FINGERPRINT)[0].id == old
    assert [problem.id for problem in db.verify()] == [context]


def test_foreign_files_and_folders_are_left_alone(db):
    context = put(db, range(10))
    (db.path / "notes.txt").write_text("mine")
    (db.path / "vllm-blocks").mkdir()
    (db.path / FINGERPRINT / "more").mkdir()
    (db.path / FINGERPRINT / ("c" * 32)).write_text("a file")
    (db.path / ("d" * 32)).symlink_to(db.path / FINGERPRINT)
    assert [info.id for info in db.list()] == [context] and db.verify() == []
    assert DB(db.path, max_bytes=10**6).find(range(10), FINGERPRINT)[1] == 10
    assert (db.path / "notes.txt").read_text() == "mine" and (db.path / "vllm-blocks").is_dir()


def test_a_folder_moved_under_another_fingerprint_is_not_served(db):
    context = put(db, range(10))
    put(db, 1, fingerprint=OTHER)
    os.rename(folder_of(db, context), folder_of(db, context, OTHER))
    assert DB(db.path).find(range(10), OTHER) is None
    assert [problem.id for problem in db.verify()] == [context]


@pytest.mark.parametrize("content", [b"", b"my notes", None])
def test_the_catalogue_may_be_damaged_missing_or_of_something_else(db, content):
    put(db, range(10))
    path = db.path / CATALOGUE
    db.find([1], FINGERPRINT)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert DB(db.path).find(range(10), FINGERPRINT)[1] == 10
    assert path.stat().st_size > 1000


# -------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("kv", "why"),
    [
        (lambda ids: layers_for(ids[:-1]), "9 tokens, 10 token ids"),
        (lambda ids: [], "no layers"),
        (lambda ids: 5, "list over layers"),
        (lambda ids: [(keys, values[:, :, :-1]) for keys, values in layers_for(ids)], "only equal ones"),
        (lambda ids: [(keys.astype(np.int64), values.astype(np.int64)) for keys, values in layers_for(ids)], "int64"),
        (lambda ids: [(keys[0], values[0]) for keys, values in layers_for(ids)], "shape"),
        (lambda ids: [(None, None)], "NoneType"),
    ],
)
def test_keys_and_values_that_are_none_are_refused(db, kv, why):
    ids = tokens(range(10))
    with pytest.raises(ContextError, match=why):
        db.import_(ids, kv(ids), FINGERPRINT)
    assert list(db.path.glob("*")) == []


@pytest.mark.parametrize("fingerprint", ["", "model", "../" + "a" * 29, "A" * 32])
def test_other_texts_are_no_fingerprints(db, fingerprint):
    with pytest.raises(ContextError, match="fingerprint"):
        put(db, 1, fingerprint=fingerprint)
    with pytest.raises(ContextError, match="fingerprint"):
        db.find([1], fingerprint)


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ContextError, match="empty path"):
        DB("")
    assert not list(tmp_path.iterdir())
    DB(".")


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ContextError, match=r"name a folder|cannot make"):
            DB(path)


def test_a_database_that_is_only_read_changes_nothing(db):
    put(db, range(10))
    before = {path: path.stat().st_mtime_ns for path in db.path.rglob("*")}
    reader = DB(db.path, read_only=True)
    assert reader.find(range(10), FINGERPRINT)[1] == 10 and len(reader.list()) == 1
    assert reader.verify() == []
    for change in (lambda: put(reader, 1), lambda: reader.delete("x")):
        with pytest.raises(ContextError, match="read only"):
            change()
    assert {path: path.stat().st_mtime_ns for path in db.path.rglob("*")} == before
    with pytest.raises(ContextError, match="no folder"):
        DB(db.path / "none", read_only=True)


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_that_hold_nothing_are_refused(tmp_path, limit):
    with pytest.raises(ContextError, match="max_bytes"):
        DB(tmp_path, max_bytes=limit)


def test_a_context_that_is_deleted_just_before_it_gets_a_name_is_stored_again(db, monkeypatch):
    context = put(db, range(10))
    monkeypatch.setattr(StoredContext, "touch", lambda stored: db.delete(stored.id))
    assert put(db, range(10), name="book") == context
    assert db.list()[0].names == ("book",)


def test_a_database_goes_to_other_processes(db):
    context = put(DB(db.path), range(10))
    there = pickle.loads(pickle.dumps(DB(db.path, max_bytes=5, read_only=True)))
    assert there.find(range(10), FINGERPRINT)[0].id == context
    assert (there.max_bytes, there.read_only) == (5, True)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("x" * 300, {}, "too long"),
        ("db", {"max_bytes": 0}, "1 or more"),
        ("db", {"max_bytes": "1GB"}, "'1GB': a number of bytes"),
        ("db", {"read_only": True}, "there is no folder"),
    ],
    ids=["name", "no bytes", "text", "not there"],
)
def test_what_cannot_be_opened_is_said(tmp_path, name, options, why):
    with pytest.raises(ContextError, match=why):
        DB(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())

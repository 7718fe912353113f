"""The commands ``context``: what they print, for people and for programs, and how they fail."""

from __future__ import annotations

import json

import pytest
from contexts_made import FINGERPRINT, OTHER, holds, put
from typer.testing import CliRunner

from vllm_relational.cli.app import app
from vllm_relational.context import DB

TEXTS = ['"name": "Quiet room",\n"comments": "Lovely!",\n"score": 4,\n']


@pytest.fixture
def db(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_RELATIONAL_CONTEXTS", str(tmp_path / "db"))
    return DB(tmp_path / "db")


def call(*arguments: object):
    return CliRunner().invoke(app, ["context", *map(str, arguments)], env={"COLUMNS": "200"})


def error_of(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert result.stdout == "" and line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", TEXTS * 30)


def test_a_text_is_computed_once(db, model, tmp_path):
    (tmp_path / "book.txt").write_text("".join(TEXTS * 3))
    done = call("add", tmp_path / "book.txt", "-m", model, "--name", "book", "--chunk", 20)
    assert done.exit_code == 0 and done.stdout == "", done.output
    (info,) = db.list()
    assert f"{info.num_tokens} tokens" in done.stderr and f"{info.num_tokens} computed" in done.stderr
    assert info.names == ("book",) and info.num_layers == 2
    again = call("add", tmp_path / "book.txt", "-m", model, "--name", "the book")
    assert ", 0 computed" in again.stderr and db.list()[0].names == ("book", "the book")
    (tmp_path / "more.txt").write_text("".join(TEXTS * 3) + TEXTS[0])
    assert f", {info.num_tokens // 3} computed" in call("add", tmp_path / "more.txt", "-m", model).stderr
    assert call("add", tmp_path / "book.txt", "-m", model, "--chat").exit_code == 0 and len(db.list()) == 3


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        (" ", (), "empty"),
        ("word", ("--dtype", "float8"), "there are auto, bfloat16, float16, float32"),
        ("word " * 3000, (), "positions of the model end at 2,048"),
        ("a text", ("--limit", "1KB"), "does not fit"),
        ("a text", ("--limit", "much"), "no size"),
        ("a text", ("--name", " "), "no name"),
    ],
)
def test_what_cannot_be_added_is_said(db, model, tmp_path, text, options, why):
    (tmp_path / "text").write_text(text)
    assert why in error_of("add", tmp_path / "text", "-m", model, *options)
    assert db.list() == []


def test_a_byte_order_mark_is_no_text(db, model, tmp_path):
    (tmp_path / "with.txt").write_text(TEXTS[0], encoding="utf-8-sig")
    (tmp_path / "without.txt").write_text(TEXTS[0], encoding="utf-8")
    call("add", tmp_path / "with.txt", "-m", model)
    assert ", 0 computed" in call("add", tmp_path / "without.txt", "-m", model).stderr


def test_contexts_are_listed_for_people_and_for_programs(db):
    context = put(db, range(1000), name="a book")
    put(db, 1, fingerprint=OTHER)
    shown = call("list")
    assert (
        shown.exit_code == 0 and "a book" in shown.stdout and "1,000" in shown.stdout and context[:12] in shown.stdout
    )
    objects = [json.loads(line) for line in call("list", "--json").stdout.splitlines()]
    assert [each["num_tokens"] for each in objects] == [1, 1000]
    assert objects[1]["names"] == ["a book"] and objects[1]["fingerprint"] == FINGERPRINT


def test_sums(db):
    put(db, range(10))
    assert "1 context of 1 model\n" in call("stat").stdout
    assert json.loads(call("stat", "--json").stdout)["num_tokens"] == 10


def test_a_context_is_removed(db):
    put(db, range(10), name="book")
    assert "deleted" in call("rm", "book").stderr and db.list() == []
    assert "no context 'book'" in error_of("rm", "book")


def test_damage_is_found_and_said(db):
    context = put(db, range(10))
    assert call("verify").exit_code == 0
    with (db.path / FINGERPRINT / context / "layer_00.kv").open("r+b") as file:
        file.seek(5000)
        file.write(b"?")
    result = call("verify", context[:6])
    assert result.exit_code == 1 and "layer_00.kv is damaged in MiB 0" in result.stdout
    (problem,) = map(json.loads, call("verify", "--json").stdout.splitlines())
    assert problem["id"] == context
    (db.path / FINGERPRINT / context / "manifest.json").write_bytes(b"")
    result = call("list")
    assert result.exit_code == 0 and "damaged" in result.stdout and "warning" in result.stderr


def test_there_and_back(db, tmp_path):
    context = put(db, range(63), name="book")
    assert call("export", "book", tmp_path / "book.safetensors").exit_code == 0
    other = tmp_path / "other"
    done = call("import", tmp_path / "book.safetensors", "--contexts", other, "--name", "the book")
    assert done.exit_code == 0 and "63 tokens" in done.stderr
    assert holds(DB(other).open("the book"), range(63)) and DB(other).list()[0].id == context


def test_an_existing_file_is_not_written_over(db, tmp_path):
    put(db, 1, name="book")
    (tmp_path / "mine").write_text("mine")
    assert "--overwrite" in error_of("export", "book", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    assert call("export", "book", tmp_path / "mine", "--overwrite").exit_code == 0


def test_files_that_are_none_are_named(db, tmp_path):
    (tmp_path / "notes").write_text("my notes")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "notes holds no context" in error_of("import", tmp_path / "notes")
    assert "no file" in error_of("add", tmp_path / "none", "-m", "M")
    assert "UTF-8" in error_of("add", tmp_path / "latin", "-m", "M")
    assert "cannot load the model" in error_of("add", tmp_path / "notes", "-m", tmp_path)
    assert "name a folder" in error_of("list", "--contexts", tmp_path / "notes")


def test_a_file_of_others_needs_a_fingerprint(db, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    part = np.zeros((1, 3, 4), np.float32)
    save_file({"token_ids": np.arange(3), "layer_00.keys": part, "layer_00.values": part}, tmp_path / "x")
    assert "--fingerprint" in error_of("import", tmp_path / "x")
    assert call("import", tmp_path / "x", "--fingerprint", FINGERPRINT).exit_code == 0


def test_nothing_is_made_by_looking(tmp_path, monkeypatch):
    for command in (("list",), ("stat",), ("rm", "x"), ("verify",)):
        assert "no folder" in error_of(*command, "--contexts", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_the_group_alone_shows_its_help_once():
    assert call().output.count("Usage") == 1

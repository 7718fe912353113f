"""Contexts as safetensors files: there and back, read by the library too, and never wrong."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from contexts_made import FINGERPRINT, OTHER, holds, layers_for, put, tokens
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file

from vllm_relational.context import DB, ContextError
from vllm_relational.context.exchange import export_context, read_export


@pytest.fixture
def db(tmp_path):
    return DB(tmp_path / "db")


@pytest.fixture
def exported(db, tmp_path):
    path = tmp_path / "book.safetensors"
    export_context(db.open(put(db, range(63))), path)
    return path


def bring_in(path, place):
    given = read_export(path)
    db = DB(place)
    db.import_(given.token_ids, path, given.fingerprint or FINGERPRINT)
    return db.find(given.token_ids, FINGERPRINT)[0]


def test_a_context_goes_out_and_comes_in(exported, tmp_path):
    assert holds(bring_in(exported, tmp_path / "other"), range(63))


def test_the_library_reads_it(exported):
    read = load_file(exported)
    assert read["token_ids"].tolist() == list(range(63))
    for index, pair in enumerate(layers_for(range(63))):
        for kind, part in zip(("keys", "values"), pair, strict=True):
            assert torch.equal(read[f"layer_{index:02d}.{kind}"].view(torch.uint16), torch.from_numpy(part))
    with safe_open(exported, "np") as file:
        assert file.metadata()["fingerprint"] == FINGERPRINT


def test_a_file_that_the_library_wrote_comes_in(tmp_path):
    ids = np.arange(63)
    layers = layers_for(ids, dtype="float32")
    tensors = {
        f"layer_{i:02d}.{kind}": part
        for i, pair in enumerate(layers)
        for kind, part in zip(("keys", "values"), pair, strict=True)
    }
    save_file({"token_ids": ids, **tensors}, tmp_path / "x.safetensors")
    assert holds(bring_in(tmp_path / "x.safetensors", tmp_path / "db"), range(63))


def test_another_model_or_other_tokens_are_refused(db, exported):
    with pytest.raises(ContextError, match="another model"):
        db.import_(range(63), exported, OTHER)
    with pytest.raises(ContextError, match="other token ids"):
        db.import_(range(62), exported, FINGERPRINT)


def test_a_flipped_bit_never_comes_in(exported, tmp_path):
    whole, draw = exported.read_bytes(), random.Random(3)
    for number in range(200):
        place = draw.randrange(len(whole)) if number > 50 else draw.randrange(600)
        exported.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(ContextError):
            read_export(exported)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 7, b"\xff" * 100, b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]", bytes(100)]
)
def test_foreign_files_are_refused(db, tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ContextError, match="holds no context"):
        read_export(path)


def test_every_cut_is_refused(exported):
    whole = exported.read_bytes()
    for length in [*range(0, 64), len(whole) // 2, len(whole) - 1]:
        exported.write_bytes(whole[:length])
        with pytest.raises(ContextError):
            read_export(exported)


def test_what_cannot_be_read_or_written_is_named(db, tmp_path):
    stored = db.open(put(db, 1))
    with pytest.raises(ContextError, match="none"):
        read_export(tmp_path / "none")
    with pytest.raises(ContextError, match="none"):
        export_context(stored, tmp_path / "none" / "file")
    assert tokens(1).tolist() == [1]

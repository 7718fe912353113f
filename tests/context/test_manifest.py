"""Manifests: read back as written, and nothing else is taken for one."""

from __future__ import annotations

import msgspec
import pytest

from vllm_relational.context.errors import ContextError, DamagedContextError
from vllm_relational.context.manifest import (
    MANIFEST,
    ContextManifest,
    LayerEntry,
    is_id,
    layer_file,
    read_manifest,
    seal,
)

ID, FINGERPRINT = "0" * 31 + "1", "f" * 32


def manifest(**changed):
    layers = [LayerEntry(layer_file(index), 2, 64, "bfloat16", ["00" * 8]) for index in range(2)]
    facts = {"id": ID, "fingerprint": FINGERPRINT, "model": "m", "created": 1.5, "num_tokens": 63}
    return ContextManifest(**{**facts, "tokens_checksum": "ab" * 8, "layers": layers, **changed})


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / FINGERPRINT / ID
    made.mkdir(parents=True)
    return made


def test_a_manifest_comes_back(folder):
    (folder / MANIFEST).write_bytes(seal(manifest()))
    read = read_manifest(folder)
    assert read == manifest()
    assert read.num_bytes == 63 * 4 + 2 * (4096 + 4 * 8192)


def test_every_flipped_bit_is_found(folder):
    whole = seal(manifest())
    for place in range(len(whole)):
        (folder / MANIFEST).write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(DamagedContextError):
            read_manifest(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"checksum":"","manifest":{}}', b"my notes"]
)
def test_foreign_files_are_refused(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedContextError, match=r"manifest\.json"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "0" * 32},
        {"fingerprint": "0" * 32},
        {"layers": []},
        {"layers": [LayerEntry("../../x", 2, 64, "bfloat16", [])]},
        {"num_tokens": 0},
    ],
)
def test_a_manifest_of_something_else_is_refused(folder, changed):
    (folder / MANIFEST).write_bytes(seal(manifest(**changed)))
    with pytest.raises(DamagedContextError):
        read_manifest(folder)


def test_a_newer_format_asks_for_an_upgrade(folder):
    newer = msgspec.defstruct("Newer", [("format", int), ("id", int)])
    (folder / MANIFEST).write_bytes(seal(newer(2, 5)))
    with pytest.raises(ContextError, match="upgrade"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "x" * 32, "0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", "../" + "0" * 29]
)
def test_other_names_are_no_ids(name):
    assert not is_id(name) and is_id(ID)

"""An index and its description: written together, read only where they belong together."""

from __future__ import annotations

import dataclasses
import json

import pytest

from vllm_relational import RelationalError
from vllm_relational.retrieval.sidecar import Sidecar, digest_of, read_index, read_sidecar, sidecar_path, write_index

INDEX = b"vectors"
SIDECAR = Sidecar("text", "f" * 8, 3, "model", 4, "exact", "t\u00e4ble.csv", digest_of(INDEX))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "passages.index"
    write_index(path, INDEX, SIDECAR)
    return path


@pytest.mark.parametrize("source", ["table.csv", "t\u00e4ble \udcff.csv", None])
def test_what_is_written_is_read(tmp_path, source):
    path, sidecar = tmp_path / "passages.index", dataclasses.replace(SIDECAR, source=source)
    write_index(path, INDEX, sidecar)
    assert read_index(path) == (INDEX, sidecar) and read_sidecar(path) == sidecar
    assert sidecar_path(path).name == "passages.index.json"


def test_files_of_two_indexes_are_refused(path):
    path.write_bytes(b"other vectors")
    with pytest.raises(RelationalError, match="do not belong together: build it again"):
        read_index(path)


@pytest.mark.parametrize("left", ["passages.index", "passages.index.json"])
def test_half_an_index_is_refused(path, left):
    other = path if left.endswith(".json") else sidecar_path(path)
    other.unlink()
    with pytest.raises(RelationalError, match="build it again"):
        read_index(path)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"dimension": "4"}, {"column": None}, {"num_passages": True}, {"more": 1}]
)
def test_descriptions_of_another_kind_are_refused(path, change):
    described = sidecar_path(path)
    described.write_text(json.dumps(json.loads(described.read_text()) | change))
    with pytest.raises(RelationalError, match="build it again"):
        read_sidecar(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"version": 1}', "\x00"])
def test_other_files_are_refused(path, text):
    sidecar_path(path).write_text(text)
    with pytest.raises(RelationalError, match="does not describe an index"):
        read_sidecar(path)

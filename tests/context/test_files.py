"""The files of layers: what was written comes back, whatever the shape, and nothing else ever does."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from vllm_relational.context import files
from vllm_relational.context.errors import ContextError, DamagedContextError
from vllm_relational.context.files import CHUNK, PAGE, STORED_AS, LayerFile, LayerShape, write_layer

SHAPES = [
    LayerShape(1, 1, 1, "float32"),
    LayerShape(2, 63, 64, "bfloat16"),
    LayerShape(3, 111, 80, "float16"),
    LayerShape(2, 32, 64, "bfloat16"),  # one page a head
    LayerShape(2, 5000, 96, "bfloat16"),  # more than a MiB
]


def numbers(shape, seed=0):
    bits = np.random.default_rng(seed).integers(0, 255, (shape.num_kv_heads, shape.region_bytes), np.uint8)
    return bits.view(STORED_AS[shape.dtype]).reshape(shape.num_kv_heads, shape.num_tokens, shape.head_size)


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_regions_hold_what_was_written(tmp_path, shape):
    keys, values = numbers(shape, 1), numbers(shape, 2)
    checksums = write_layer(tmp_path / "layer", keys, values, shape)
    assert (tmp_path / "layer").stat().st_size == shape.file_bytes
    assert len(checksums) == -(-shape.file_bytes // CHUNK)
    layer = LayerFile(tmp_path / "layer")
    layer.verify(checksums)
    assert layer.shape == shape
    data = (tmp_path / "layer").read_bytes()
    for kind, written in (("keys", keys), ("values", values)):
        for head in range(shape.num_kv_heads):
            offset, size = layer.region(kind, head)
            assert offset % PAGE == 0 and data[offset : offset + size] == written[head].tobytes()
            assert same(layer.array(kind, head), written[head])
            assert not layer.array(kind, head).flags.writeable


def test_what_is_not_contiguous_is_written_all_the_same(tmp_path):
    shape = LayerShape(2, 63, 64, "bfloat16")
    keys = numbers(LayerShape(63, 2, 64, "bfloat16")).transpose(1, 0, 2)
    write_layer(tmp_path / "layer", keys, keys[::-1], shape)
    layer = LayerFile(tmp_path / "layer")
    assert same(layer.array("keys", 1), layer.array("values", 0)) and same(layer.array("keys", 1), keys[1].copy())


def test_an_array_outlives_the_file_and_the_object(tmp_path):
    shape = SHAPES[1]
    write_layer(tmp_path / "layer", numbers(shape), numbers(shape), shape)
    layer = LayerFile(tmp_path / "layer")
    (tmp_path / "layer").unlink()
    array = layer.array("values", 1)
    del layer
    assert same(array, numbers(shape)[1])


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["another shape", "another type", "too few heads"])
def test_what_does_not_fit_the_shape_is_refused(tmp_path, kind):
    shape = LayerShape(2, 63, 64, "bfloat16")
    given = numbers(shape)
    wrong = [given[:, :-1], given.view(np.float16), given[:1]][kind]
    with pytest.raises(ContextError, match="expected"):
        write_layer(tmp_path / "layer", given, wrong, shape)


@pytest.mark.parametrize("fields", [(0, 1, 1, "float32"), (1, 0, 1, "float32"), (1, 1, 1, "int8")])
def test_shapes_that_no_file_has(fields):
    with pytest.raises(ContextError):
        LayerShape(*fields)


def test_an_existing_file_is_never_written_over(tmp_path):
    (tmp_path / "layer").write_text("mine")
    with pytest.raises(FileExistsError):
        write_layer(tmp_path / "layer", numbers(SHAPES[0]), numbers(SHAPES[0]), SHAPES[0])
    assert (tmp_path / "layer").read_text() == "mine"


@pytest.fixture
def written(tmp_path):
    shape = LayerShape(2, 63, 64, "bfloat16")
    return tmp_path / "layer", write_layer(tmp_path / "layer", numbers(shape, 3), numbers(shape, 4), shape)


def read_all(path, checksums):
    layer = LayerFile(path)
    layer.verify(checksums)


def test_every_flipped_bit_is_found(written):
    path, checksums = written
    whole = path.read_bytes()
    draw = random.Random(5)
    places = [*range(0, 64), *(draw.randrange(len(whole)) for _ in range(100)), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(DamagedContextError, match="layer"):
            read_all(path, checksums)
    path.write_bytes(whole)
    read_all(path, checksums)


@pytest.mark.parametrize("content", [b"", b"x", b"VLRLAYER", bytes(PAGE), b"VLRLAYER" + bytes(2 * PAGE)])
def test_foreign_files_are_refused(written, content):
    path, _ = written
    path.write_bytes(content)
    with pytest.raises(DamagedContextError, match="delete the context"):
        LayerFile(path)


@pytest.mark.parametrize("cut", [1, PAGE, -1])
def test_another_length_is_refused(written, cut):
    path, _ = written
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut] if cut > 0 else whole + b"\0")
    with pytest.raises(DamagedContextError, match="bytes"):
        LayerFile(path)


def test_a_newer_format_asks_for_an_upgrade(written, monkeypatch):
    path, _ = written
    shape = LayerFile(path).shape
    monkeypatch.setattr(files, "VERSION", 2)
    newer = path.with_name("newer")
    write_layer(newer, numbers(shape), numbers(shape), shape)
    monkeypatch.undo()
    with pytest.raises(ContextError, match="upgrade"):
        LayerFile(newer)


def test_folders_links_and_pipes_are_no_layers(written, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(written[0])
    with pytest.raises(DamagedContextError):
        LayerFile(tmp_path / "folder")
    with pytest.raises(OSError):
        LayerFile(tmp_path / "link")


def test_a_file_is_read_once_while_it_stays_the_same(written, monkeypatch):
    path, checksums = written
    reads = []
    monkeypatch.setattr(files, "_checksum_at", lambda *given: reads.append(1) or checksums[0])
    read_all(path, checksums)
    read_all(path, checksums)
    assert len(reads) == 1
    os.utime(path, ns=(1, 1))
    read_all(path, checksums)
    assert len(reads) == 2
    with pytest.raises(DamagedContextError):
        read_all(path, ["0" * 16])


def test_only_what_holds_the_first_tokens_is_read(tmp_path, monkeypatch):
    shape = LayerShape(2, 30_000, 64, "bfloat16")  # 3.7 MiB a region
    checksums = write_layer(tmp_path / "layer", numbers(shape), numbers(shape), shape)
    layer, reads, read = LayerFile(tmp_path / "layer"), [], files._checksum_at
    monkeypatch.setattr(
        files, "_checksum_at", lambda fd, number, buffer: reads.append(number) or read(fd, number, buffer)
    )
    layer.verify(checksums, 10)
    assert sorted(reads) == [0, 3, 7, 10]
    layer.verify(checksums, 11)
    assert len(reads) == 4
    layer.verify(checksums, 9000)
    assert sorted(reads[4:]) == [1, 4, 8, 11, 12]
    layer.verify(checksums)
    assert sorted(reads) == list(range(len(checksums)))


def test_damage_is_found_where_it_is_and_nowhere_else(tmp_path):
    shape = LayerShape(1, 30_000, 64, "bfloat16")
    checksums = write_layer(tmp_path / "layer", numbers(shape), numbers(shape), shape)
    whole = (tmp_path / "layer").read_bytes()
    place = files.PAGE + 20_000 * 64 * 2  # of the key of that token
    (tmp_path / "layer").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    layer = LayerFile(tmp_path / "layer")
    layer.verify(checksums, 10_000)
    for num_tokens in (20_001, None):
        with pytest.raises(DamagedContextError, match="MiB 2"):
            layer.verify(checksums, num_tokens)


def test_there_are_no_other_heads(written):
    layer = LayerFile(written[0])
    for head in (-1, 2):
        with pytest.raises(IndexError):
            layer.region("keys", head)

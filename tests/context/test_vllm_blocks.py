"""Blocks on disk: what is read is what was written, whatever becomes of the files, and of those who write them."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_relational.context import vllm_blocks
from vllm_relational.context.vllm_blocks import HEADER_BYTES, STALE_S, BlockStore
from vllm_relational.records import RelationalError

FACTS = {"weights": "w", "page": 5000}
SIZE = 5000


@pytest.fixture(autouse=True)
def pages_of_several_pieces(monkeypatch):
    monkeypatch.setattr(vllm_blocks, "PIECE", 777)


def page_of(number: int, size: int = SIZE) -> memoryview:
    return memoryview(random.Random(number).randbytes(size))


def key_of(number: int) -> bytes:
    return random.Random(-1 - number).randbytes(32) + bytes(4)


def written(folder: Path, count: int = 3, **settings) -> BlockStore:
    store = BlockStore(folder, FACTS, **settings)
    assert store.write((key_of(number), page_of(number)) for number in range(count)) == count
    return store


def read(store: BlockStore, number: int, size: int = SIZE) -> bytes | None:
    page = bytearray(size)
    return bytes(page) if store.read(key_of(number), memoryview(page)) else None


def file_of(store: BlockStore, number: int) -> Path:
    return Path(store.path_of(key_of(number)))


def damaged(store: BlockStore) -> list[Path]:
    return list((store.home / "damaged").iterdir())


def test_another_process_reads_what_one_wrote(tmp_path):
    written(tmp_path)
    other = BlockStore(tmp_path, dict(reversed(FACTS.items())))
    assert [read(other, number) for number in range(4)] == [*(bytes(page_of(number)) for number in range(3)), None]
    assert [other.has(key_of(number)) for number in range(4)] == [True, True, True, False]


def test_engines_of_other_facts_do_not_meet(tmp_path):
    written(tmp_path)
    for facts in ({**FACTS, "weights": "v"}, {**FACTS, "index": 1}, {}):
        other = BlockStore(tmp_path, facts)
        assert not other.has(key_of(0)) and read(other, 0) is None


# ------------------------------------------------------------------------------------------------------- damage
@pytest.mark.parametrize("place", range(0, HEADER_BYTES, 3))
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_of_the_header_is_no_block(tmp_path, place, bit):
    check_changed(tmp_path, place, bit)


@pytest.mark.parametrize("place", [*range(HEADER_BYTES, HEADER_BYTES + SIZE, 331), HEADER_BYTES + SIZE - 1])
def test_a_flipped_bit_of_the_page_is_no_block(tmp_path, place):
    check_changed(tmp_path, place, place % 8)


def check_changed(folder: Path, place: int, bit: int) -> None:
    store = written(folder, 1)
    content = bytearray(file_of(store, 0).read_bytes())
    content[place] ^= 1 << bit
    file_of(store, 0).write_bytes(content)
    check_set_aside(store)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + SIZE - 1])
def test_a_file_that_was_cut_is_no_block(tmp_path, length):
    store = written(tmp_path, 1)
    os.truncate(file_of(store, 0), length)
    check_set_aside(store)


def test_a_file_that_grew_is_no_block(tmp_path):
    store = written(tmp_path, 1)
    with open(file_of(store, 0), "ab") as file:
        file.write(b"\0")
    check_set_aside(store)


def test_the_file_of_another_block_is_no_block(tmp_path):
    store = written(tmp_path, 2)
    file_of(store, 1).replace(file_of(store, 0))
    check_set_aside(store)


def test_the_file_of_another_layout_is_no_block(tmp_path):
    store, other = written(tmp_path, 1), BlockStore(tmp_path, {"weights": "v"})
    other.write([(key_of(0), page_of(7))])
    file_of(other, 0).replace(file_of(store, 0))
    check_set_aside(store)


def test_a_foreign_file_and_a_pipe_are_no_blocks(tmp_path):
    store = written(tmp_path, 1)
    file_of(store, 0).write_text("hello")
    check_set_aside(store)
    file_of(store, 0).unlink()
    os.mkfifo(file_of(store, 0))
    assert read(store, 0) is None


def test_a_folder_in_the_place_of_a_block_is_none(tmp_path):
    store = written(tmp_path, 1)
    file_of(store, 0).unlink()
    file_of(store, 0).mkdir()
    assert read(store, 0) is None


def check_set_aside(store: BlockStore) -> None:
    """The file is out of the way, and the block may be written again."""
    assert read(store, 0) is None
    assert not store.has(key_of(0)) and len(damaged(store)) == 1
    assert store.write([(key_of(0), page_of(0))]) == 1
    assert read(store, 0) == bytes(page_of(0))


def test_damage_that_cannot_be_set_aside_is_remembered(tmp_path, monkeypatch):
    store = written(tmp_path, 1)
    os.truncate(file_of(store, 0), 9)

    def refuse(*_):
        raise PermissionError(errno.EROFS, "read-only")

    with monkeypatch.context() as during:
        during.setattr(vllm_blocks.os, "replace", refuse)
        assert read(store, 0) is None
    assert not store.has(key_of(0)) and read(store, 0) is None
    assert store.write([(key_of(0), page_of(0))]) == 1 and read(store, 0) == bytes(page_of(0))


def test_a_page_of_another_size_is_not_filled(tmp_path):
    store = written(tmp_path, 1)
    assert read(store, 0, SIZE - 1) is None


# --------------------------------------------------------------------------------------------------- many writers
WRITER = """
import random, sys
from vllm_relational.context.vllm_blocks import BlockStore
store = BlockStore(sys.argv[1], {"weights": "w", "page": 5000})
print("ready", flush=True)
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    key = random.Random(-1 - number).randbytes(32) + bytes(4)
    store.write([(key, memoryview(random.Random(number).randbytes(5000)))])
"""


def writer(folder: Path, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_write_the_same_blocks(tmp_path):
    both = [writer(tmp_path, 0, 40), writer(tmp_path, 20, 60)]
    assert [process.wait(60) for process in both] == [0, 0]
    store = BlockStore(tmp_path, FACTS)
    assert all(read(store, number) == bytes(page_of(number)) for number in range(60))
    assert not list((store.home / "tmp").iterdir())


def test_a_killed_writer_leaves_whole_blocks_only(tmp_path):
    for delay in (0.002, 0.01, 0.03):
        process = writer(tmp_path, 0, 100_000)
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = BlockStore(tmp_path, FACTS)
    for path in store.root.rglob("*.kv"):
        page = bytearray(SIZE)
        assert store.read(bytes.fromhex(path.stem), memoryview(page))
    assert not damaged(store)


def test_what_killed_writers_left_goes_when_it_is_old(tmp_path):
    store = written(tmp_path, 1)
    left, new = store.home / "tmp" / "left", store.home / "tmp" / "new"
    left.write_bytes(b"x")
    new.write_bytes(b"x")
    long_ago = time.time() - STALE_S - 60
    os.utime(left, (long_ago, long_ago))
    BlockStore(tmp_path, FACTS)
    assert not left.exists() and new.exists()


# ------------------------------------------------------------------------------------------------------- capacity
def test_what_was_used_longest_ago_goes_first(tmp_path):
    store = written(tmp_path, 8)
    for number in range(8):
        os.utime(file_of(store, number), (number, number))
    limited = BlockStore(tmp_path, FACTS, max_bytes=5 * (SIZE + HEADER_BYTES))
    limited.touch([key_of(0), key_of(99)])  # used now
    limited.write([(key_of(8), page_of(8))])
    assert [limited.has(key_of(number)) for number in range(9)] == [True] + [False] * 5 + [True] * 3
    assert sum(path.stat().st_size for path in store.root.rglob("*.kv")) <= limited.max_bytes


def test_the_limit_is_for_all_layouts_together(tmp_path):
    other = BlockStore(tmp_path, {"weights": "old"})
    other.write([(key_of(0), page_of(0))])
    os.utime(file_of(other, 0), (1, 1))
    store = written(tmp_path, 3, max_bytes=3 * (SIZE + HEADER_BYTES) + 100)
    assert not other.has(key_of(0)) and read(store, 2) is not None


def test_a_block_that_goes_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch):
    store = written(tmp_path, 1)
    fill = vllm_blocks._read_all

    def remove_first(*arguments):
        file_of(store, 0).unlink(missing_ok=True)
        return fill(*arguments)

    monkeypatch.setattr(vllm_blocks, "_read_all", remove_first)
    assert read(store, 0) == bytes(page_of(0))


def test_while_another_process_tidies_up_nothing_goes(tmp_path):
    store = written(tmp_path, 3, max_bytes=SIZE * 100)
    store.max_bytes = 1
    with vllm_blocks._locked(store.home / "lock"):
        assert store.trim() == 0
    assert store.trim() == 3 * (SIZE + HEADER_BYTES)


# ------------------------------------------------------------------------------------------------ disks that refuse
def test_on_a_full_disk_nothing_is_kept_and_nothing_is_tried_for_a_while(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(vllm_blocks, "logger", logging.getLogger("blocks"))  # vLLM's logger hands nothing up
    store = written(tmp_path, 1)
    tries = []

    def full(*_):
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as during:
        during.setattr(vllm_blocks.os, "writev", full)
        assert store.write([(key_of(1), page_of(1)), (key_of(2), page_of(2))]) == 0
        assert store.write([(key_of(0), page_of(0)), (key_of(1), page_of(1))]) == 1
    assert len(tries) == 1 and caplog.text.count("No space left on device") == 1
    assert not list((store.home / "tmp").iterdir()) and read(store, 0) == bytes(page_of(0))
    store._paused_until = 0.0
    assert store.write([(key_of(1), page_of(1))]) == 1


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    whole = os.writev
    with monkeypatch.context() as during:
        during.setattr(vllm_blocks.os, "writev", lambda file, buffers: whole(file, [buffers[0][:77]]))
        store = written(tmp_path, 1)
    assert read(store, 0) == bytes(page_of(0))


def test_a_store_without_a_place_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RelationalError, match=r"contexts cannot be kept in .*file: Not a directory"):
        BlockStore(tmp_path / "file", FACTS)


def test_a_folder_that_cannot_be_written_to_is_read(tmp_path, monkeypatch):
    written(tmp_path, 1)

    def refuse(*_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(vllm_blocks.os, "utime", refuse)
    monkeypatch.setattr(vllm_blocks.tempfile, "mkstemp", refuse)
    store = BlockStore(tmp_path, FACTS)
    assert read(store, 0) == bytes(page_of(0))
    assert store.write([(key_of(1), page_of(1))]) == 0


@pytest.mark.parametrize("length", [0, 7, 37])
def test_a_key_that_no_block_has_is_refused(tmp_path, length):
    with pytest.raises(RelationalError, match=f"{length} bytes"):
        BlockStore(tmp_path, FACTS).has(bytes(length))

"""Files that are written whole or not at all."""

from __future__ import annotations

import stat

import pytest

from vllm_relational import RelationalError
from vllm_relational.files.atomic import check_writable, followed, replacing, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_new_content_comes_in_one_step(tmp_path):
    path = tmp_path / "answers"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and names(tmp_path) == ["answers"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "answers"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and names(tmp_path) == ["answers"]


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    path = tmp_path / "answers"
    writer = replacing(path)
    writer.__enter__().close()  # its lock goes, as with its process
    assert len(names(tmp_path)) == 1
    write_whole(path, b"new")
    assert names(tmp_path) == ["answers"]


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
def test_the_mode_is_that_of_the_file_replaced_or_private(tmp_path, private, mode):
    path = tmp_path / "answers"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_whole(path, b"new", private=private)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "link"
    link.symlink_to("far/answers")
    write_whole(link, b"new")
    assert link.is_symlink() and (tmp_path / "far" / "answers").read_bytes() == b"new"
    assert followed(link) == tmp_path / "far" / "answers" and followed(tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize(("name", "said"), [("gone/x", "mkdir -p"), (".", "it is a folder"), ("x" * 300, "too long")])
def test_places_that_cannot_be_written_are_refused_before(tmp_path, name, said):
    with pytest.raises(RelationalError, match=said):
        check_writable(tmp_path / name)
    check_writable(tmp_path / "fine")
    assert names(tmp_path) == []

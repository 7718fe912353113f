"""Two names of one file, by whatever way, are an error where one of them is written."""

from __future__ import annotations

import os

import pytest

from vllm_relational import RelationalError
from vllm_relational.files.named import NamedFile, check_distinct, check_usable


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a\n1\n")
    (tmp_path / "symbolic").symlink_to(path)
    os.link(path, tmp_path / "hard")
    (tmp_path / "folder").mkdir()
    return path


@pytest.mark.parametrize("name", ["table.csv", "symbolic", "hard", "folder/../table.csv", "./table.csv"])
def test_one_file_under_two_names_is_found(table, name):
    files = [NamedFile("the table", table, False), NamedFile("--output", table.parent / name, True)]
    with pytest.raises(RelationalError, match="the table and --output are one file"):
        check_distinct(files)
    check_distinct([files[0], NamedFile("passages", table.parent / name, False)])  # both are only read


@pytest.mark.parametrize("names", [("new.csv", "new.csv"), ("new.csv", "folder/../new.csv"), ("gone/x", "gone/x")])
def test_files_that_are_not_there_yet_are_compared_by_their_place(table, names):
    with pytest.raises(RelationalError, match="one file"):
        check_distinct(NamedFile(f"file {n}", table.parent / name, True) for n, name in enumerate(names))


def test_different_files_are_fine(table):
    check_distinct(NamedFile(name, table.parent / name, True) for name in ("table.csv", "new.csv", "folder/table.csv"))


@pytest.mark.parametrize("name", ["folder", "fifo", "x" * 300, "loop", "nul\0"])
def test_names_that_can_be_no_file_are_refused(table, name):
    os.mkfifo(table.parent / "fifo")
    (table.parent / "loop").symlink_to("loop")
    with pytest.raises(RelationalError, match=r"cannot use .* as --output"):
        check_usable(NamedFile("--output", table.parent / name, True))


@pytest.mark.parametrize("name", ["table.csv", "symbolic", "new.csv"])
def test_files_and_names_of_none_are_usable(table, name):
    check_usable(NamedFile("--output", table.parent / name, True))

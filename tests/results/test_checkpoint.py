"""Answers survive a kill at any byte; a checkpoint serves its own job and one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.records import RelationalError
from vllm_relational.results.checkpoint import Checkpoint, MemoryAnswers

JOB = {"prompt": "Is {a} kind?", "model": "tiny", "answer form": {"labels": ("yes", "no")}}
ANSWERS = {0: "yes", 7: 'say "é😀"\n\u2028', 2**40: ""}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "t.checkpoint.jsonl"


def fill(path: Path, answers: dict[int, str] = ANSWERS) -> None:
    with contextlib.closing(Checkpoint.open(path, JOB, resume=False)) as store:
        for key, text in answers.items():
            store.add(key, text)


def resumed(path: Path, job: dict = JOB) -> dict[int, str]:
    with contextlib.closing(Checkpoint.open(path, job, resume=True)) as store:
        return store.answers


def error_of(path: Path, job: dict = JOB, resume: bool = True) -> str:
    with pytest.raises(RelationalError) as caught:
        Checkpoint.open(path, job, resume)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_answers_come_back_as_they_were(path):
    fill(path)
    assert resumed(path) == ANSWERS


def test_resuming_without_a_file_starts_one_which_stays_only_with_an_answer_in_it(path):
    assert resumed(path) == {} and not path.exists()
    with contextlib.closing(Checkpoint.open(path, JOB, resume=True)) as store:
        assert path.exists()
        store.add(3, "yes")
    assert resumed(path) == {3: "yes"} and path.exists()


def test_an_empty_file_that_was_there_becomes_its_owners_only(path):
    path.touch(0o644)
    with contextlib.closing(Checkpoint.open(path, JOB, resume=False)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_every_answer_reaches_the_file_at_once(path):
    with contextlib.closing(Checkpoint.open(path, JOB, resume=False)) as store:
        store.add(3, "yes")
        assert json.loads(path.read_text().splitlines()[-1])[:3] == [3, "yes", False]


def test_a_later_answer_replaces_an_earlier_one(path):
    fill(path, {1: "no"})
    with contextlib.closing(Checkpoint.open(path, JOB, resume=True)) as store:
        store.add(1, "yes")
    assert resumed(path) == {1: "yes"}


@given(cut=st.integers(0, 400))
def test_a_kill_at_any_byte_loses_at_most_the_torn_line(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("kill") / "c.jsonl"
    fill(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    complete = max(whole[:cut].count(b"\n") - 1, 0)
    assert resumed(path) == dict(list(ANSWERS.items())[:complete])
    with contextlib.closing(Checkpoint.open(path, JOB, resume=True)) as store:
        for key, text in ANSWERS.items():
            store.add(key, text)
    assert resumed(path) == ANSWERS


def test_an_existing_checkpoint_is_not_continued_unasked(path):
    fill(path)
    message = error_of(path, resume=False)
    assert "holds answers of an earlier run" in message and "--resume" in message
    assert resumed(path) == ANSWERS


def test_an_empty_file_counts_as_none(path):
    path.touch()
    fill(path)
    assert resumed(path) == ANSWERS


def test_another_job_is_refused_and_says_what_differs(path):
    fill(path)
    message = error_of(path, JOB | {"prompt": "Is {b} kind?", "model": "large"})
    assert "not the same: prompt, model" in message
    assert resumed(path) == ANSWERS


def test_a_refused_checkpoint_is_unlocked_at_once(path):
    fill(path)
    with pytest.raises(RelationalError) as kept_alive:
        Checkpoint.open(path, JOB | {"model": "large"}, resume=True)
    assert resumed(path) == ANSWERS
    del kept_alive


@pytest.mark.parametrize(
    "content",
    ["x" * 5000 + "\n", "my notes", "my notes\n", '{"a": 1}\n', "[1]\n", "5\n", '{"format": 99, "job": {}}\n'],
)
def test_other_files_are_refused_and_left_alone(path, content):
    path.write_text(content)
    assert "is not a checkpoint of this version" in error_of(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b'[0, "no", false, "0123456789abcdef"]\n',
        b"5\n",
        b"null\n",
        b"[1]\n",
        b"\x00\x00\x00\n",
        b'["x", "y"]\n',
        b"\xff\n",
        b"\n",
        b'[0, "no"]\n',
    ],
)
@pytest.mark.parametrize("place", range(1, 5))
def test_a_damaged_line_is_left_out_and_counted(path, line, place):
    fill(path)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:place], line, *lines[place:]])
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="1 damaged lines were left out, 3 answers are whole"):
        assert resumed(path) == ANSWERS
    assert path.read_bytes() == damaged


@pytest.mark.filterwarnings("ignore:.*damaged lines")
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_makes_another_answer(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("flip") / "c.jsonl"
    fill(path)
    whole = bytearray(path.read_bytes())
    whole[place % len(whole)] ^= 1 << bit
    path.write_bytes(whole)
    left = resumed(path)
    assert left.items() <= ANSWERS.items() and len(left) >= len(ANSWERS) - 2  # two where the bit is the line's end
    with contextlib.closing(Checkpoint.open(path, JOB, resume=True)) as store:
        for key, text in ANSWERS.items():
            store.add(key, text)
    assert resumed(path) == ANSWERS


@pytest.mark.parametrize("start", [0, 512, 1024, 5120])
def test_a_zeroed_sector_loses_only_its_own_rows(path, start):
    answers = {row: f"answer {row}" for row in range(300)}
    fill(path, answers)
    whole = bytearray(path.read_bytes())
    whole[start : start + 512] = bytes(512)
    path.write_bytes(whole)
    with pytest.warns(UserWarning, match="damaged lines"):
        left = resumed(path)
    assert left.items() <= answers.items() and len(left) > 300 - 512 // 30


def test_answers_without_their_first_line_are_still_only_their_jobs(path):
    fill(path)
    path.write_bytes(path.read_bytes().replace(b"tiny", b"tinz", 1))
    with pytest.warns(UserWarning, match="1 damaged"):
        assert resumed(path) == ANSWERS
    before = path.read_bytes()
    assert "none of its answers is known to be of this job" in error_of(path, JOB | {"model": "tinz"})
    assert "holds answers of an earlier run" in error_of(path, resume=False)
    assert path.read_bytes() == before


def test_an_answer_that_was_cut_short_stays_marked(path):
    with contextlib.closing(Checkpoint.open(path, JOB, resume=False)) as store:
        store.add(1, "half of", cut=True)
        store.add(2, "half of", cut=True)
        store.add(2, "whole")
        assert store.cut == {1}
    with contextlib.closing(Checkpoint.open(path, JOB, resume=True)) as store:
        assert store.cut == {1} and store.answers == {1: "half of", 2: "whole"}


def test_a_checkpoint_is_for_its_owner_only(path):
    fill(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused(path, tmp_path):
    os.mkfifo(path)
    (tmp_path / "link").symlink_to(path)
    for place in (path, tmp_path / "link", Path("/dev/null")):
        assert "is no regular file" in error_of(place)
        with pytest.raises(RelationalError, match="is no regular file"):
            Checkpoint.check(place, JOB, resume=True)
    assert "Is a directory" in error_of(tmp_path)


def test_a_lock_keeps_other_processes_out(path):
    script = (
        "import sys, pathlib\n"
        "from vllm_relational.results.checkpoint import Checkpoint\n"
        "store = Checkpoint.open(pathlib.Path(sys.argv[1]), {}, resume=True)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        assert "another run is writing" in error_of(path, {})
        other.kill()
    assert resumed(path, {}) == {}


def test_a_folder_that_does_not_exist(tmp_path):
    assert "cannot write the checkpoint" in error_of(tmp_path / "no" / "c.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_error():
    with open("/dev/full", "wb") as file:
        store = Checkpoint(Path("c.jsonl"), file, 0)
        with pytest.raises(RelationalError, match=r"c\.jsonl: No space left on device: .*--resume"):
            store.add(1, "yes")
        store.close()
    assert store.answers == {}


def test_closing_twice_and_deleting(path):
    store = Checkpoint.open(path, JOB, resume=False)
    store.close(delete=True)
    store.close()
    assert not path.exists()


def test_memory_answers_have_the_same_interface():
    store = MemoryAnswers()
    store.add(1, "yes")
    store.close()
    assert store.answers == {1: "yes"} and store.cut == set()
    store.add(1, "half", cut=True)
    assert store.cut == {1}
    store.add(1, "whole")
    assert store.cut == set()


def test_a_file_without_answers_is_begun_anew(path):
    Checkpoint.open(path, JOB | {"model": "wrong"}, resume=False).close()
    fill(path)
    assert resumed(path) == ANSWERS


def test_checking_says_what_opening_would_and_leaves_the_file(path):
    fill(path)
    with path.open("ab") as file:
        file.write(b"[1, half a li")
    before = path.read_bytes()
    for job, resume, reason in ((JOB, False, "--resume"), (JOB | {"model": "large"}, True, "not the same: model")):
        with pytest.raises(RelationalError, match=reason):
            Checkpoint.check(path, job, resume)
    Checkpoint.check(path, JOB, resume=True)
    assert path.read_bytes() == before

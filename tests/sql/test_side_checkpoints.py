"""What a process that is killed around the storing of answers leaves beside the side file, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_engine import FakeEngine
from side_files import ANSWERS, ask, change, upper

from vllm_relational.records import RelationalError
from vllm_relational.sql.checkpoints import Checkpoints


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows is done, but for what the database undoes when it is opened again."""


@pytest.fixture
def engine() -> FakeEngine:
    return upper()


def left(side: Path) -> list[str]:
    return sorted(path.name for path in side.parent.glob("*.checkpoint.jsonl"))


def killed_at(monkeypatch, side: Path, engine: FakeEngine, method: str, after: bool = False) -> list[str]:
    """Ask, and end in (after: behind) the first call of a method of ``Checkpoints`` with a checkpoint on disk."""
    whole = getattr(Checkpoints, method)

    def dies(self: Checkpoints, *arguments: object) -> object:
        if not left(side):
            return whole(self, *arguments)
        if after:
            whole(self, *arguments)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, method, dies)
        with pytest.raises(Killed):
            ask(side, engine)
    return left(side)


def test_killed_between_the_answers_and_the_end_of_their_checkpoint(monkeypatch, side, engine):
    assert len(killed_at(monkeypatch, side, engine, "sweep")) == 1
    engine.asked.clear()
    assert ask(side, engine) == ANSWERS
    assert left(side) == [] and not engine.asked


@pytest.mark.parametrize("after", [False, True])
def test_killed_before_the_answers_are_stored_goes_on_from_the_checkpoint(monkeypatch, side, engine, after):
    assert len(killed_at(monkeypatch, side, engine, "finish", after)) == 1
    engine.asked.clear()
    assert ask(side, engine) == ANSWERS
    assert left(side) == [] and not engine.asked


def test_killed_while_it_deletes(monkeypatch, side, engine):
    killed_at(monkeypatch, side, engine, "sweep")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path, missing_ok=False: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            ask(side, engine)
    assert len(left(side)) == 1
    engine.asked.clear()
    assert ask(side, engine, "SELECT 1") == [(1,)]  # whatever is asked next
    assert left(side) == []


def test_another_run_over_the_same_rows_has_a_checkpoint_of_its_own(monkeypatch, side, engine):
    """All rows fail and are asked again under the same name: the end of the first run is not that of the second."""
    assert ask(side, FakeEngine(lambda row: row["text"], fails=range(3))) == [(None,)] * 3
    assert left(side) == []
    assert len(killed_at(monkeypatch, side, engine, "finish")) == 1
    engine.asked.clear()
    assert ask(side, engine) == ANSWERS
    assert not engine.asked and left(side) == []


def test_only_checkpoints_of_this_side_file_are_deleted(side, engine):
    ask(side, engine)
    digest = "0123456789abcdef"
    ours = side.with_name(f"side.db.op_1.{digest}.row-first.checkpoint.jsonl")
    others = [
        side.with_name(name)
        for name in (
            f"other.db.op_1.{digest}.row-first.checkpoint.jsonl",
            f"side.db.op_2.{digest}.row-first.checkpoint.jsonl",
            f"side.db.op_1.{digest}.jsonl",
            "precious.row-first.checkpoint.jsonl",
        )
    ]
    for path in (ours, *others):
        path.write_text("{}\n")
    names = [f"op_1.{digest}", f"../op_1.{digest}", "/../precious", f"op_2.{digest}\n", "", f"op_01.{digest}"]
    change(side, *(f"INSERT INTO finished_checkpoints VALUES ('{name}')" for name in names))
    change(side, "INSERT INTO finished_checkpoints VALUES (NULL)")
    ask(side, engine, "SELECT 1")
    assert not ours.exists() and all(path.exists() for path in others)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW finished_checkpoints AS SELECT 'op_1.0123456789abcdef' AS name",
        "CREATE TABLE finished_checkpoints(something INTEGER)",
    ],
)
def test_a_list_that_no_session_made_is_refused(side, engine, statement):
    ask(side, engine)
    change(side, "DROP TABLE finished_checkpoints", statement)
    with pytest.raises(RelationalError, match="cannot keep answers in"):
        ask(side, engine)


def test_a_side_file_of_an_earlier_version_has_no_list(side, engine):
    ask(side, engine)
    change(side, "DROP TABLE finished_checkpoints")
    engine.asked.clear()
    assert ask(side, engine) == ANSWERS and not engine.asked

"""A side file is data: nothing in it is run, and what no session wrote is refused with the fix."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest
from fake_engine import FakeEngine
from side_files import ANSWERS, QUERY, ask, change, upper

from vllm_relational import RelationalLLM
from vllm_relational.records import RelationalError
from vllm_relational.sql import connect

pytestmark = pytest.mark.slow  # files that are damaged at many places


@pytest.fixture
def engine() -> FakeEngine:
    return upper()


@pytest.mark.parametrize(
    "name",
    [
        "op_1 (key) AS SELECT 1; COPY (SELECT 1) TO 'stolen.csv'; --",
        "op_1; DROP TABLE llm.main.llm_errors; --",
        "op_1 WHERE (SELECT count(*) FROM read_text('secret.txt')) > 0 OR true --",
        "OP_1",
        "op_01",
        "op_0",
        "op_\u0661",
        "op_1\n",
        "op_9999999999999999999",
        "",
        "operators",
        "../op_1",
        'op_1"',
    ],
)
def test_names_of_tables_are_ours_or_nothing_is_run(side, engine, name):
    ask(side, engine)
    engine.asked.clear()
    change(side, f"UPDATE operators SET name = '{name.replace(chr(39), chr(39) * 2)}'")
    before = sorted(os.listdir())
    with pytest.raises(RelationalError, match=r"is damaged or no side file: .* name another with --side"):
        ask(side, engine)
    assert sorted(os.listdir()) == before and not engine.asked
    with duckdb.connect(str(side)) as plain:
        assert plain.execute("SELECT count(*) FROM op_1").fetchall() == [(3,)]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO operators SELECT name, question || 'x', function, prompt, answer_type FROM operators",
        "UPDATE operators SET name = NULL",
        "ALTER TABLE op_1 ALTER answer TYPE BIGINT USING 1",
        "ALTER TABLE op_1 ALTER key TYPE BLOB USING 'x'::BLOB",
        "ALTER TABLE op_1 DROP COLUMN answer",
        "ALTER TABLE operators RENAME TO o; CREATE VIEW operators AS SELECT * FROM read_csv('secret.csv')",
        "DROP TABLE operators; CREATE TABLE operators (something INTEGER)",
    ],
)
def test_tables_that_no_session_made_are_refused(side, engine, statement):
    ask(side, engine)
    engine.asked.clear()
    Path("secret.csv").write_text("name,question\nop_1,x\n")
    change(side, statement)
    with pytest.raises((RelationalError, duckdb.Error)):
        ask(side, engine)
    assert not engine.asked


def test_a_lost_line_of_operators_gives_no_answers_to_another_question(side, engine):
    ask(side, engine)
    ask(side, engine, QUERY.replace("Sum up", "Judge"))
    change(side, "DELETE FROM operators WHERE name = 'op_1'")
    engine.asked.clear()
    assert ask(side, engine, QUERY.replace("Sum up", "Rate")) == ANSWERS
    assert len(engine.asked) == 3
    with duckdb.connect(str(side)) as plain:
        assert plain.execute("SELECT name FROM operators ORDER BY name").fetchall() == [("op_2",), ("op_3",)]


def test_a_view_in_place_of_answers_is_not_read(side, engine):
    ask(side, engine)
    Path("some.csv").write_text("key,answer,status\na,A,answered\n")
    change(side, "DROP TABLE op_1", "CREATE VIEW op_1 AS SELECT * FROM read_csv('some.csv')")
    with pytest.raises((RelationalError, duckdb.Error)):
        ask(side, engine)


def test_a_side_file_and_its_log_are_for_their_owner_only(side, engine):
    connection = connect(llm=RelationalLLM(engine=engine), side=side)
    connection.sql(QUERY)
    modes = {path.name: path.stat().st_mode & 0o777 for path in side.parent.iterdir()}
    connection.close()
    assert set(modes.values()) == {0o600} and "side.db" in modes


@pytest.mark.parametrize("place", [0, 4096, 8192, 12300, 270_000])
def test_a_damaged_side_file_is_refused_or_right(side, engine, place):
    texts = [f"text {row}" for row in range(500)]
    query = QUERY.replace("('a'), ('b')", ", ".join(f"('{text}')" for text in texts))
    whole = ask(side, engine, query)
    data = bytearray(side.read_bytes())
    if place >= len(data):
        place = len(data) - 100
    data[place : place + 64] = bytes(byte ^ 0x55 for byte in data[place : place + 64])
    side.write_bytes(data)
    try:
        assert ask(side, engine, query) == whole
    except (RelationalError, duckdb.Error) as error:
        assert str(error)


def test_one_file_is_not_two(side, engine, tmp_path):
    llm = RelationalLLM(engine=engine)
    with pytest.raises(RelationalError, match="side and cache are one file"):
        connect(llm=llm, side=side, cache=tmp_path / "x" / ".." / "side.db")
    with pytest.raises(RelationalError, match="the database and side are one file"):
        connect(side, llm=llm, side=side)
    assert not side.exists()

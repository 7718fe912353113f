"""Variables of the caller, several connections to one database, several threads on one connection."""

from __future__ import annotations

import threading

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from oracle_engine import OracleEngine

import vllm_relational.sql
from vllm_relational import RelationalLLM
from vllm_relational.records import RelationalError

ASK = "SELECT text, LLM('{text}', text) FROM df ORDER BY text"
module_frame = pd.DataFrame({"text": ["from the module"]})


def texts(con, query: str = ASK, **tables) -> list[str]:
    """What a statement reads of ``df``, a variable of this function only."""
    df = tables["df"]
    assert df is not None
    return [row[0] for row in con.sql(query).fetchall()]


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table, lambda data: pl.LazyFrame(data)])
def test_a_frame_is_gone_with_its_variable(con, make):
    df = make({"text": ["a", "b"]})
    assert [row[0] for row in con.sql(ASK).fetchall()] == ["a", "b"]
    del df
    with pytest.raises(RelationalError, match="Table with name df does not exist"):
        con.sql(ASK)
    with pytest.raises(duckdb.CatalogException, match="Table with name df does not exist"):
        con.sql("FROM df").fetchall()


def test_a_frame_of_another_call_is_not_read(con):
    assert texts(con, df=pd.DataFrame({"text": ["a"]})) == ["a"]
    with pytest.raises(RelationalError, match="does not exist"):
        con.sql(ASK)
    assert texts(con, df=pd.DataFrame({"text": ["b"]})) == ["b"]


def test_a_frame_that_changed_is_read_anew(con):
    df = pd.DataFrame({"text": ["a"]})
    assert [row[0] for row in con.sql(ASK).fetchall()] == ["a"]
    df.loc[1] = ["b"]
    assert [row[0] for row in con.sql(ASK).fetchall()] == ["a", "b"]
    df = pd.DataFrame({"text": ["c"], "more": [1]})
    assert [row[0] for row in con.sql(ASK).fetchall()] == ["c"]


def test_only_the_callers_own_variables_are_read(con):
    """As in DuckDB: those of the function and of its module, not those of the functions around."""
    df = pd.DataFrame({"text": ["a"]})

    def inside() -> None:
        con.sql(ASK)

    assert len(df) == 1
    with pytest.raises(RelationalError, match="does not exist"):
        inside()
    rows = con.sql("SELECT text, LLM('{text}', text) FROM module_frame").fetchall()
    assert rows[0][0] == "from the module"


def test_what_is_no_table_is_said_as_duckdb_says_it(con):
    df = 42
    assert df
    with pytest.raises(RelationalError, match='"df" of type "int" found'):
        con.sql(ASK)


def test_a_table_of_the_database_comes_first(con):
    review = pd.DataFrame({"text": ["the variable"], "id": [1]})
    assert len(review) == 1
    assert con.sql("SELECT text, LLM('{text}', text) FROM review WHERE id = 1").fetchall()[0][0] == "text 1"


def test_views_over_frames_read_the_frame_of_the_call(con):
    df = pd.DataFrame({"text": ["a"]})
    con.sql("CREATE TEMP VIEW seen AS SELECT * FROM df")
    asked = "SELECT text, LLM('{text}', text) FROM seen"
    assert con.sql(asked).fetchall()[0][0] == con.sql("FROM seen").fetchall()[0][0] == "a"
    df = pd.DataFrame({"text": ["b"]})
    assert con.sql(asked).fetchall()[0][0] == "b"
    del df
    with pytest.raises(RelationalError, match="does not exist"):
        con.sql(asked)


def test_a_stream_is_read_once_for_all_parts_of_a_plan(con):
    df = pa.table({"text": ["a", "b"]}).to_reader()
    query = "SELECT text, LLM('{text}', text) FROM df WHERE LLM_FILTER('{text}?', text) IS NOT NULL ORDER BY text"
    assert [row[0] for row in con.sql(query).fetchall()] == ["a", "b"]
    assert df is not None


def test_a_result_may_be_read_by_the_next_statement(con):
    df = con.sql("SELECT text, LLM('{text}', text) AS a FROM review WHERE id < 2 ORDER BY id")
    assert con.sql("SELECT text, LLM('Again {a}', a) FROM df ORDER BY text").fetchall()[1][0] == "text 1"
    assert con.sql("SELECT count(*) FROM df").fetchall() == [(2,)]
    assert len(df.df()) == 2


# ------------------------------------------------------------------------------------------------- connections, threads
def opened(path) -> vllm_relational.sql.Connection:
    return vllm_relational.sql.connect(path, llm=RelationalLLM(engine=OracleEngine()))


def test_connections_to_one_file_work_side_by_side(tmp_path):
    query = "SELECT text, LLM('{text}', text) FROM t ORDER BY text"
    connections = [opened(tmp_path / "one.duckdb") for _ in range(5)]
    connections[0].sql("CREATE TABLE t AS SELECT 'text ' || i AS text FROM range(3) r(i)")
    rows = [connection.sql(query).fetchall() for connection in connections]
    assert len(rows[0]) == 3 and all(each == rows[0] for each in rows)
    connections[0].close()
    again = [connection.sql("SELECT LLM('And {text}', text) FROM t").fetchall() for connection in connections[1:]]
    assert all(len(each) == 3 for each in again)
    with opened(tmp_path / "one.duckdb") as another:
        assert another.sql(query).fetchall() == rows[0]
    for connection in connections[1:]:
        connection.close()


def test_threads_on_one_connection_take_turns(con):
    found: dict[int, list] = {}

    def work(number: int) -> None:
        for turn in range(3):
            asked = con.sql(f"SELECT id, LLM('{number} {turn} {{text}}', text) FROM review")
            plain = con.sql("SELECT * FROM review")
            found.setdefault(number, []).append((len(asked.fetchall()), len(plain.df()), plain.arrow().num_rows))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [(40, 40, 40)] * 3 for number in range(4)}


def test_connections_opened_by_threads_at_once(tmp_path):
    path = tmp_path / "one.duckdb"
    with duckdb.connect(str(path)) as plain:
        plain.execute("CREATE TABLE t AS SELECT 'a' AS text")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with opened(path) as connection:
                assert len(connection.sql("SELECT LLM('{text}', text) FROM t").fetchall()) == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([0, 0, 1], "BIGINT"),
        ([0.0, None, 1.5], "DOUBLE"),
        (["q", "q", "w"], "VARCHAR"),
        ([True, False, True], "BOOLEAN"),
    ],
)
@pytest.mark.parametrize("item", ["LLM('{t}', t)", "1"])
def test_sparse_frames_are_read_as_whole_ones(con, cells, kind, item):
    frame = pd.DataFrame({"a": pd.arrays.SparseArray(cells), "t": ["x", "y", "z"][: len(cells)]})  # noqa: F841
    result = con.sql(f"SELECT a, {item} AS s FROM frame")
    assert str(result.types[0]) == kind and [row[0] for row in result.fetchall()] == cells

"""Results have DuckDB's own types and names, in Python, in files and on the terminal."""

from __future__ import annotations

import datetime
import json

import duckdb
import pyarrow.parquet
import pytest

COLUMNS = {
    "sum(id)": "HUGEINT",
    "max('ok'::ENUM('sad', 'ok'))": "ENUM('sad', 'ok')",
    "max('101'::BIT)": "BIT",
    """any_value('{"a": 1}'::JSON)""": "JSON",
    "max('12:00:00+01'::TIMETZ)": "TIME WITH TIME ZONE",
    "max(INTERVAL 3 DAY)": "INTERVAL",
    "any_value('00000000-0000-0000-0000-000000000001'::UUID)": "UUID",
    "sum(1.5::DECIMAL(9, 2))": "DECIMAL(38,2)",
    "any_value({'a': [1::TINYINT], 'b': MAP {'k': 1::UHUGEINT}})": "STRUCT(a TINYINT[], b MAP(VARCHAR, UHUGEINT))",
    "any_value(union_value(n := 1::SMALLINT))": "UNION(n SMALLINT)",
    "any_value((1, 'a'))": "TUPLE(INTEGER, VARCHAR)",
    "any_value([1, 2]::INTEGER[2])": "INTEGER[2]",
    "max('1 day'::INTERVAL) IS NULL": "BOOLEAN",
    "NULL": '"NULL"',
    "max('a'::BLOB)": "BLOB",
    "max(TIMESTAMP_NS '2023-01-02 03:04:05.123456789')": "TIMESTAMP_NS",
}


@pytest.mark.parametrize(("expression", "kind"), COLUMNS.items())
def test_a_column_keeps_its_type_beside_a_call(con, shop, expression, kind):
    result = con.sql(f"SELECT {expression} AS v, max(LLM('{{text}}', text)) AS a FROM review")
    plain = shop.sql(f"SELECT {expression} AS v FROM review")
    assert [str(result.types[0]), str(plain.types[0])] == [kind, kind]
    assert result.fetchall()[0][0] == plain.fetchall()[0][0]
    assert result.fetchall()[0][0] == plain.fetchall()[0][0]  # as often as one likes


def test_arrow_and_pandas_are_duckdbs_own(con, shop):
    kept = [name for name in COLUMNS if "TIMETZ" not in name and "union_value" not in name]
    columns = ", ".join(f"{name} AS c{place}" for place, name in enumerate(kept))
    result = con.sql(f"SELECT {columns}, max(LLM('{{text}}', text)) AS a FROM review")
    plain = shop.sql(f"SELECT {columns} FROM review")
    assert result.arrow().drop_columns(["a"]).schema == plain.to_arrow_table().schema
    assert result.arrow().drop_columns(["a"]).equals(plain.to_arrow_table())
    assert result.df().drop(columns="a").dtypes.equals(plain.df().dtypes)


def test_columns_of_one_name_stay_two(con):
    result = con.sql("SELECT id, id, text AS id, LLM('{text}', text) AS id FROM review WHERE id = 1")
    assert result.columns == ["id"] * 4
    assert result.fetchall()[0][:3] == (1, 1, "text 1") and len(result.fetchall()[0]) == 4
    assert result.arrow().column_names == ["id"] * 4
    assert list(result.df().columns) == ["id", "id_1", "id_2", "id_3"]  # as DuckDB's own


def test_answers_have_the_types_of_their_functions(con):
    result = con.sql(
        "SELECT LLM('{text}', text), LLM_FILTER('{text}', text), LLM_SCORE('{text}', 1, 5, text), "
        "sum(LLM_SCORE('{text}', 1, 5, text)) OVER (), [LLM('{text}', text)] FROM review"
    )
    assert [str(kind) for kind in result.types] == ["VARCHAR", "BOOLEAN", "BIGINT", "HUGEINT", "VARCHAR[]"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("'101'::BIT", "101"),
        ("INTERVAL 3 DAY", "3 days"),
        ("'12:00:00+01'::TIMETZ", "12:00:00+01"),
        ("TIMESTAMPTZ '2023-01-02 00:00:00+00'::VARCHAR", "2023-01-02 00:00:00+00"),
        ("'00000000-0000-0000-0000-000000000001'::UUID", "00000000-0000-0000-0000-000000000001"),
        ("123456789012345678901234567890::BIGNUM", "123456789012345678901234567890"),
    ],
)
def test_the_model_reads_values_as_duckdb_prints_them(con, engine, value, shown):
    con.sql(f"SELECT LLM('What is {{v}}?', v) FROM (SELECT {value} AS v)").fetchall()
    assert engine.rows() == [{"v": shown}]


def test_the_sql_command_prints_and_writes_duckdbs_types(con, tmp_path, capsys):
    from vllm_relational.cli.sql_session import run_sql

    con.sql(
        "CREATE TABLE kept AS SELECT 'ok'::ENUM('sad', 'ok') AS mood, 3::HUGEINT AS n, '101'::BIT AS bits, 'x' AS t"
    )
    query = "SELECT mood, n, bits, bits, (1, true) AS pair, LLM('{t}', t) AS a FROM kept"
    run_sql(con, query, None)
    printed = capsys.readouterr().out
    assert "101" in printed and "(1, true)" in printed and printed.count("bits") == 2
    run_sql(con, query, tmp_path / "out.parquet")
    kinds = dict(duckdb.sql(f"DESCRIBE FROM '{tmp_path}/out.parquet'").project("column_name, column_type").fetchall())
    assert kinds["mood"].startswith(("ENUM", "VARCHAR")) and kinds["n"] in ("HUGEINT", "DOUBLE")
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 1
    run_sql(con, query.replace("bits, bits", "bits"), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["bits"] == "101"


def test_dates_come_as_python_knows_them(con):
    rows = con.sql("SELECT ts, LLM('{text}', text) FROM review WHERE id = 1").fetchall()
    assert rows[0][0] == datetime.date(2023, 1, 2)


def test_an_extract_whose_schema_refers_to_itself_has_fields(con):
    shop = '{"$ref": "#/$defs/s", "$defs": {"s": {"type": "object", "properties": {"b": {"type": "integer"}}}}}'
    result = con.sql(f"SELECT LLM_EXTRACT('{{text}}', '{shop}', text) AS s, (s).b + 1 AS n FROM review")
    assert [str(kind) for kind in result.types] == ["STRUCT(b BIGINT)", "BIGINT"]
    assert any(row[1] for row in result.fetchall())

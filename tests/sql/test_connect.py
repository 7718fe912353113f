"""Where calls may stand, what is asked for them, and what comes out."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import duckdb
import pandas as pd
import pytest
from fake_engine import FakeEngine
from oracle_engine import OracleEngine

import vllm_relational.sql
from vllm_relational import RelationalError, RelationalLLM

GOOD = "LLM_FILTER('{text} is good', text)"


EXTRACT = (
    'LLM_EXTRACT(\'{text}\', \'{"type": "object", "properties": {"a": {"type": "string"}, '
    '"b": {"type": "integer"}}}\', text)'
)


def texts(engine: OracleEngine) -> list[str]:
    return sorted(row["text"] for row in engine.rows())


def test_a_query_asks_exactly_the_rows_that_pass_the_cheap_filter(con, engine, shop):
    con.sql(f"SELECT id FROM review WHERE ts > DATE '2023-02-05' AND {GOOD}")
    passed = shop.sql("SELECT DISTINCT text FROM review WHERE ts > DATE '2023-02-05' AND text IS NOT NULL").fetchall()
    assert texts(engine) == sorted(text for (text,) in passed)
    assert con.last_run.operators[0].rows_in < 40


def test_a_filter_keeps_the_rows_of_which_the_model_says_yes(con, engine):
    kept = con.sql(f"SELECT text FROM review WHERE {GOOD}").fetchall()
    table = dict(con.sql("SELECT inputs.text, answer FROM llm.op_1").fetchall())
    assert kept and {text for (text,) in kept} == {text for text, answer in table.items() if answer}


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT id FROM review WHERE {GOOD} ORDER BY id",
        f"SELECT id, {GOOD} AS good FROM review",
        f"SELECT {GOOD} AS good, count(*) FROM review GROUP BY good",
        f"SELECT {GOOD} AS good, count(*) FROM review GROUP BY 1",
        f"SELECT {GOOD} AS good, count(*) FROM review GROUP BY ALL",
        f"SELECT count(*) FROM review GROUP BY {GOOD}",
        "SELECT product_id, avg(LLM_SCORE('How good is {text}?', 1, 5, text)) FROM review GROUP BY product_id",
        "SELECT product_id FROM review GROUP BY product_id HAVING LLM_FILTER('{product_id} is lucky', product_id)",
        "SELECT product_id, max(LLM_SCORE('{text}', 1, 5, text)) AS s FROM review GROUP BY product_id HAVING s > 3",
        "SELECT id FROM review ORDER BY LLM_SCORE('How good is {text}?', 1, 5, text), id",
        "SELECT CASE WHEN stars > 2 THEN LLM('Sum up {text}', text) ELSE 'low' END FROM review",
        "SELECT p.id, r.id FROM product p JOIN review r ON r.product_id = p.id AND "
        "LLM_FILTER('{p.name} fits {r.text}', p.name, r.text)",
        "SELECT p.id, r.id FROM product p LEFT JOIN review r ON r.product_id = p.id AND "
        "LLM_FILTER('{name} fits {text}', p.name, r.text)",
        "WITH x AS (SELECT *, LLM('Sum up {text}', text) AS s FROM review) SELECT s, count(*) FROM x GROUP BY s",
        "SELECT * FROM (SELECT id, LLM('Sum up {text}', text) AS s FROM review) WHERE s = 'yes'",
        "SELECT id, LLM('Sum up {text}', text) AS s FROM review WHERE s = 'yes'",
        "SELECT id FROM product p WHERE EXISTS (SELECT 1 FROM review r WHERE r.product_id = p.id "
        "AND LLM_FILTER('{name} fits {text}', p.name, r.text))",
        "SELECT id, (SELECT max(LLM_SCORE('{text}', 1, 5, text)) FROM review r WHERE r.product_id = p.id) "
        "FROM product p",
        "SELECT id FROM product WHERE id IN (SELECT product_id FROM review WHERE LLM_FILTER('{text} is good', text))",
        "SELECT id, rank() OVER (ORDER BY LLM_SCORE('{text}', 1, 5, text)) FROM review QUALIFY "
        "row_number() OVER (PARTITION BY product_id ORDER BY id) = 1 AND LLM_FILTER('{text} is good', text)",
        "SELECT LLM('Sum up {*}', r.*) FROM review r",
        "SELECT LLM('Sum up', *) FROM review",
        "SELECT LLM('Translate {text}', text) || LLM_CLASSIFY('{text}', ['x', 'y'], text) FROM review",
        "SELECT LLM('Is this long?', LLM('Shorten {text}', text)) FROM review",
        "SELECT id FROM product UNION ALL SELECT id FROM review WHERE LLM_FILTER('{text} is good', text)",
        'SELECT (LLM_EXTRACT(\'{text}\', \'{"type": "object", "properties": {"a": {"type": "string"}, '
        '"b": {"type": "integer"}}}\', text)).b + 1 FROM review',
        f"SELECT id, {EXTRACT} AS s, (s).b FROM review ORDER BY id LIMIT 4",
        f"SELECT id, {EXTRACT} AS s, (s).b + 1 AS n FROM review WHERE (s).b > 1",
        f"SELECT {EXTRACT} AS s, LLM('Sum up {{1}}', (s).b) FROM review",
        "SELECT avg(LLM_SCORE('{text}', 1, 5, text)) FILTER (WHERE stars > 1) FROM review",
        "SELECT coalesce(stars, LLM_SCORE('{text}', 1, 5, text)) FROM review",
        "SELECT product_id, LLM_AGG('Sum up {text}', text) FROM review GROUP BY product_id",
        "SELECT LLM_AGG('Sum up {text}', text ORDER BY id) FILTER (WHERE stars > 2) FROM review",
        "SELECT x, LLM('{x}', x) FROM (SELECT ['a', 'b'] AS xs) t, unnest(t.xs) u(x)",
        "SELECT r.id, t.a FROM review r, LATERAL (SELECT LLM('{text}', r.text) AS a) t WHERE r.stars > 2",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 4) SELECT LLM('{n}', n) FROM r",
        "SELECT * REPLACE (LLM('{text}', text) AS text) FROM review",
        "FROM review SELECT id, LLM('{text}', text) WHERE id < 4",
        "SELECT max(LLM('{text}', text)) AS m FROM review HAVING m IS NOT NULL",
        "SELECT LLM('{1} of {2}', upper(text), id + 1) FROM review",
        "SELECT id FROM review WHERE text IN (SELECT LLM('{name}', name) FROM product) OR LLM_FILTER('{text}', text)",
        "SELECT kind, LLM_FILTER('{kind} is odd', kind) FROM product GROUP BY ROLLUP (kind)",
        "SELECT DISTINCT ON (LLM('{text}', text)) 1 FROM review",
        "SELECT LLM_FILTER('{kind}', kind) AS o, kind, count(*) FROM product GROUP BY CUBE (o, kind)",
        "SELECT id FROM product p WHERE EXISTS (WITH w AS (FROM review r WHERE r.product_id = p.id) "
        "SELECT 1 FROM w WHERE LLM_FILTER('{name} fits {text}', p.name, w.text))",
        "SELECT id, (WITH w AS (FROM review r WHERE r.product_id = p.id), v AS (FROM w WHERE stars > 1) "
        "SELECT max(LLM_SCORE('{text}', 1, 5, text)) FROM v) FROM product p",
    ],
)
def test_calls_stand_wherever_an_expression_may(connect, query):
    planned, naive = connect(), connect(engine=OracleEngine(), optimize=False)
    result, expected = planned.sql(query), naive.sql(query)
    assert result.columns == expected.columns
    assert sorted(map(repr, result.fetchall())) == sorted(map(repr, expected.fetchall()))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT {0} AS o, count(*) FROM product GROUP BY ROLLUP ({0})",
        "SELECT {0} AS o, kind, count(*) FROM product GROUP BY CUBE (o, kind)",
        "SELECT {0} AS o, kind, count(*), grouping(kind) FROM product GROUP BY GROUPING SETS (({0}, kind), ({0}), ())",
        "WITH x AS (FROM product WHERE id < 5) "
        "SELECT * FROM (WITH x AS (FROM x WHERE id > 1) SELECT id, {0} FROM x) s, x",
        "WITH x AS (FROM product WHERE id < 5), "
        "y AS (WITH x AS (FROM x WHERE id > 1), z AS (SELECT x.id, {0} AS k FROM x) FROM z) "
        "SELECT y.*, x.name FROM y JOIN x ON x.id = y.id",
        "WITH product AS (FROM product WHERE id < 5) SELECT id, {0} FROM (WITH product AS (FROM product WHERE id > 1) "
        "FROM product) JOIN (SELECT kind AS k, name AS n FROM product) ON k = kind",
    ],
)
def test_rows_are_those_of_the_same_query_with_a_plain_function(con, shop, query):
    answers = con.sql("SELECT kind, LLM_SCORE('{kind}', 1, 5, kind) FROM product GROUP BY kind").fetchall()
    plain = f"(CASE kind {' '.join(f'WHEN {kind} THEN {score}' for kind, score in answers)} END)"
    rows = con.sql(query.format("LLM_SCORE('{kind}', 1, 5, kind)")).fetchall()
    assert sorted(rows, key=repr) == sorted(shop.sql(query.format(plain)).fetchall(), key=repr)


# ------------------------------------------------------------------------------------------------------ statements
def test_statements_without_calls_go_to_duckdb_as_they_are(con, engine):
    assert con.sql("SELECT 'LLM(x)' AS \"LLM\" -- LLM(\n").fetchall() == [("LLM(x)",)]
    assert con.sql("CREATE TABLE other(a INT); INSERT INTO other VALUES (1); FROM other").fetchall() == [(1,)]
    assert engine.asked == []


def test_create_table_and_insert(con, engine):
    con.sql("CREATE TABLE summed AS SELECT id, LLM('Sum up {text}', text) AS s FROM review WHERE id < 3")
    con.sql("INSERT INTO summed SELECT id, LLM('Sum up {text}', text) FROM review WHERE id BETWEEN 2 AND 4")
    assert con.sql("SELECT count(*), count(s) FROM summed").fetchall() == [(6, 6)]
    assert len(engine.asked) == 5


def test_copy_writes_a_file(con, tmp_path):
    con.sql(f"COPY (SELECT id, LLM('Sum up {{text}}', text) AS s FROM review) TO '{tmp_path / 's.parquet'}'")
    assert con.sql(f"SELECT count(*) FROM '{tmp_path / 's.parquet'}'").fetchall() == [(40,)]


def test_frames_of_the_caller_and_files_are_tables(con, tmp_path):
    mine = pd.DataFrame({"text": ["a", "b"]})
    path = tmp_path / "odd ' name.csv"
    mine.to_csv(path, index=False)
    assert len(con.sql("SELECT LLM('{text}?', text) FROM mine").df()) == 2
    quoted = str(path).replace("'", "''")
    assert len(con.sql(f"SELECT LLM('{{text}}?', text) FROM '{quoted}'").df()) == 2
    mine = pd.DataFrame({"text": ["c"]})
    assert con.sql("SELECT count(*) FROM mine").fetchall() == [(len(mine),)]
    con.sql("CREATE TABLE mine AS SELECT 'd' AS text UNION ALL SELECT 'e'")
    assert con.sql("SELECT count(LLM('{text}?', text)) FROM mine").fetchall() == [(2,)]


def test_a_rollback_leaves_the_users_tables_and_keeps_the_answers(con, engine):
    con.sql("BEGIN")
    con.sql("INSERT INTO review SELECT 99, 1, 'fresh', ts, 1 FROM review WHERE id = 0")
    con.sql("CREATE TABLE summed AS SELECT id, LLM('Sum up {text}', text) AS s FROM review WHERE id IN (1, 99)")
    assert con.sql("SELECT count(s) FROM summed").fetchall() == [(2,)]
    con.sql("ROLLBACK")
    assert con.sql("SELECT LLM('Sum up {text}', text) IS NULL FROM review WHERE id = 1").fetchall() == [(False,)]
    assert texts(engine) == ["fresh", "text 1"]


# --------------------------------------------------------------------------------------------------- nulls, failures
def test_a_null_argument_gives_null_without_a_question(con, engine):
    rows = con.sql("SELECT text, LLM('Sum up {text}', text) FROM review").fetchall()
    assert any(text is None for text, _ in rows)
    assert all((text is None) == (answer is None) for text, answer in rows)
    assert len(con.errors()) == 0


def test_nulls_can_be_sent(connect, engine):
    con = connect(keeps_nulls=True)
    assert con.sql("SELECT count(*) FROM review WHERE LLM('Sum up {text}', text) IS NULL").fetchall() == [(0,)]
    assert {"text": None} in engine.rows()


def test_a_failed_row_is_null_and_listed_and_asked_again(connect):
    engine = OracleEngine(fails_every=4)
    con = connect(engine=engine)
    rows = con.sql("SELECT DISTINCT text, LLM('Sum up {text}', text) FROM review WHERE text IS NOT NULL").fetchall()
    failed = sorted(text for text, answer in rows if answer is None)
    assert failed
    errors = con.sql("SELECT operator, inputs, reason FROM llm_errors").fetchall()
    assert sorted(inputs for _, inputs, _ in errors) == sorted(f"{{'text': {text}}}" for text in failed)
    assert {reason for _, _, reason in errors} == {"failed request: refused by the oracle"}
    engine.fails_every, before = 0, len(engine.asked)
    assert con.sql(
        "SELECT count(*) FROM review WHERE LLM('Sum up {text}', text) IS NULL AND text IS NOT NULL"
    ).fetchall() == [(0,)]
    assert len(engine.asked) - before == len(failed) and len(con.errors()) == 0


# ------------------------------------------------------------------------------------------------------------ tables
def test_answers_are_kept_between_statements(con, engine):
    con.sql("SELECT LLM('Sum up {text}', text) FROM review WHERE id < 5")
    con.sql("SELECT LLM('Sum up {text}', text) FROM review WHERE id < 6")
    assert len(engine.asked) == 5
    con.sql("SELECT LLM('Sum  up {text}', text) FROM review WHERE id < 5")
    assert len(engine.asked) == 10


def test_answers_in_a_side_database_outlive_the_session(connect, engine, tmp_path):
    for _ in range(2):
        con = vllm_relational.sql.connect(llm=RelationalLLM(engine=engine), side=tmp_path / "answers.duckdb")
        con.sql("CREATE TABLE t AS SELECT 'a' AS text UNION ALL SELECT 'b'")
        assert con.sql("SELECT count(LLM('Sum up {text}', text)) FROM t").fetchall() == [(2,)]
        con.close()
    assert len(engine.asked) == 2


def test_the_reason_of_a_nan_names_what_sql_can_do_and_that_helps(con, engine):
    rows = "(VALUES (1, 'nan'::DOUBLE), (2, 0.5), (3, NULL)) t(n, price)"
    asked = con.sql(f"SELECT n, LLM('Dear? {{price}}', price) IS NULL FROM {rows} ORDER BY n").fetchall()
    assert asked == [(1, True), (2, False), (3, True)]
    [reason] = con.errors()["reason"]
    assert reason.startswith("null cell: column 'price' is NaN, which counts as null: cast it to VARCHAR")
    assert "--nulls" not in reason
    cast = con.sql(f"SELECT LLM('Dear? {{1}}', price::VARCHAR) IS NULL FROM {rows} WHERE n < 3")
    assert cast.fetchall() == [(False,), (False,)]
    left = con.sql(f"SELECT count(LLM('Cheap? {{price}}', price)) FROM {rows} WHERE NOT isnan(price)")
    assert left.fetchall() == [(1,)] and len(con.errors()) == 1


def test_the_user_may_have_a_database_a_schema_and_tables_of_our_names(engine, tmp_path):
    path = tmp_path / "llm.duckdb"
    with duckdb.connect(str(path)) as plain:
        plain.execute("CREATE SCHEMA llm_answers; CREATE TABLE op_1 AS SELECT 1 AS mine")
        plain.execute("CREATE TABLE llm_errors AS SELECT 2 AS mine")
    with vllm_relational.sql.connect(path, llm=RelationalLLM(engine=engine)) as con:
        assert con.sql("SELECT count(LLM('{i}', i)) FROM range(3) t(i)").fetchall() == [(3,)]
        assert con.sql("SELECT count(*) FROM vllm_relational_answers.op_1").fetchall() == [(3,)]
        assert con.sql("SELECT * FROM llm_errors, op_1").fetchall() == [(2, 1)]
        assert "vllm_relational_answers.op_1 in SELECT" in con.report()


def test_a_side_database_goes_on_after_the_engine_died(connect, tmp_path):
    from fake_engine import FakeEngine

    from vllm_relational import EngineDiedError

    asked = []
    for dies_after in (3, None):
        engine = FakeEngine(lambda row: "x", dies_after=dies_after)
        with vllm_relational.sql.connect(llm=RelationalLLM(engine=engine), side=tmp_path / "a.duckdb") as con:
            query = "SELECT count(LLM('{i}', i)) FROM range(10) t(i)"
            if dies_after:
                with pytest.raises(EngineDiedError, match="beside the side file: send the statement again") as died:
                    con.sql(query)
                assert "resume" not in str(died.value)
            else:
                assert con.sql(query).fetchall() == [(10,)]
        asked.append(len(engine.asked))
    assert asked == [4, 7]  # the fourth was on its way when the engine died
    assert [path.name for path in tmp_path.iterdir()] == ["a.duckdb"]


def test_without_a_side_file_a_dead_engine_names_it(connect):
    from fake_engine import FakeEngine

    from vllm_relational import EngineDiedError

    con = connect(engine=FakeEngine(lambda row: "x", dies_after=3))
    with pytest.raises(EngineDiedError, match=r"^the fake engine died; send the statement again: .*--side FILE"):
        con.sql("SELECT LLM('{i}', i) FROM range(10) t(i)")


@pytest.mark.slow
def test_a_side_file_that_is_open_is_named_with_the_fix(connect, tmp_path):
    side = tmp_path / "it's.duckdb"
    con = connect(side=side)
    con.sql("SELECT LLM('{text}', text) FROM review WHERE id = 0")
    with pytest.raises(RelationalError, match=r"this process has .*it's.duckdb open already: close that session"):
        connect(side=side)
    script = (
        "import sys, vllm_relational, vllm_relational.sql\n"
        "try: vllm_relational.sql.connect(llm=vllm_relational.RelationalLLM(), side=sys.argv[1])\n"
        "except vllm_relational.RelationalError as error: print(error)"
    )
    other = subprocess.run([sys.executable, "-c", script, str(side)], capture_output=True, text=True)
    assert re.fullmatch(
        rf"another process \(number {os.getpid()}\) has the side file .* open: wait for it, or name another .*\n",
        other.stdout,
    ), other
    assert con.sql("SELECT count(*) FROM llm.op_1").fetchall() == [(1,)]


def test_the_users_database_gets_no_table(engine, tmp_path):
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as plain:
        plain.execute("CREATE TABLE t AS SELECT 'a' AS text")
    with vllm_relational.sql.connect(path, llm=RelationalLLM(engine=engine), read_only=True) as con:
        con.sql("SELECT LLM('Sum up {text}', text) FROM t")
    with duckdb.connect(str(path)) as plain:
        assert plain.sql("SELECT table_name FROM duckdb_tables()").fetchall() == [("t",)]


# ------------------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("query", "place", "reason"),
    [
        ("SELECT id,\n  LLM('Is {txt} good?', text) FROM review", (2, 3), r"names \{txt\}.* did you mean \{text\}"),
        ("SELECT LLM('{text}' text) FROM review", (1, 21), "syntax error at or near"),
        ("SELECT nope, LLM('{text}', text) FROM review", (1, 8), "nope"),
        ("SELECT LLM('{text}', text) FROM nowhere", (1, 33), "nowhere"),
        ("SELECT LLM(text, text) FROM review", (1, 8), "not a text in quotes"),
        ("SELECT LLM('{text}') FROM review", (1, 8), "1 arguments"),
        ("SELECT LLM_SCORE('{text}', 5, 1, text) FROM review", (1, 8), "low must be below high"),
        ("SELECT LLM_SCORE('{text}', 1.5, 2, text) FROM review", (1, 8), "whole number"),
        ("SELECT LLM_CLASSIFY('{text}', ['a'], text) FROM review", (1, 8), "at least two"),
        ("SELECT LLM_EXTRACT('{text}', 'x', text) FROM review", (1, 8), "not JSON"),
        ("SELECT LLM('{text}', text) FROM review ORDER BY random()", (1, 49), "other rows each time"),
        (
            "CREATE VIEW v AS\nSELECT LLM('{text}', text) FROM review",
            (2, 8),
            "CREATE TABLE ... AS SELECT keeps the answers",
        ),
        ("UPDATE review SET text = LLM('{text}', text)", (1, 26), "CREATE TEMP TABLE answers AS SELECT"),
        ("DELETE FROM review WHERE LLM_FILTER('{text}', text)", (1, 26), "CREATE TEMP TABLE answers AS SELECT"),
        ("INSERT INTO product VALUES (1, LLM('{1}', id), 2, 3)", (1, 32), "INSERT INTO ... SELECT in place of"),
        ("PIVOT review ON LLM_FILTER('{text}', text) USING count(*)", (1, 17), r"write PIVOT \(SELECT"),
        ("SUMMARIZE SELECT LLM('{text}', text) FROM review", (1, 18), "CREATE TEMP TABLE answers"),
        ("CALL pragma_version(LLM('{x}', 'x'))", (1, 21), r"CALL cannot ask: .*COPY \(SELECT"),
        ("EXPLAIN ANALYZE SELECT LLM('{text}', text) FROM review", (1, 24), "EXPLAIN ANALYZE cannot ask"),
        (
            "UPDATE review SET text = LLM('{text}', text)",
            (1, 26),
            "literals only, and columns in SELECT, CREATE TABLE AS",
        ),
        ("DESCRIBE SELECT LLM('{text}', text) AS a FROM review", (1, 17), "takes literals only"),
        ("CREATE MACRO m(x) AS LLM('{x}', x)", (1, 22), "write the call where the macro is used"),
        ("SELECT id, LLM('{text}', text) OVER () FROM review", (1, 12), "aggregate its answers"),
        ("SELECT LLM_AGG('{text}', text) OVER () FROM review", (1, 8), "use GROUP BY"),
        ("SELECT LLM('{text}', text) FILTER (WHERE id > 3) FROM review", (1, 8), "write CASE WHEN"),
        ("SELECT LLM('{text}', DISTINCT text) FROM review", (1, 22), 'syntax error at or near "DISTINCT"'),
        ("SELECT LLM(DISTINCT '{text}', text) FROM review", (1, 8), "asked once anyway"),
        ("SELECT LLM_AGG(DISTINCT '{text}', text) FROM review", (1, 8), "SELECT DISTINCT in a subquery"),
        (
            "SELECT 1 FROM product p LEFT JOIN (review r JOIN product q ON LLM_FILTER('{name}', q.name)) ON TRUE",
            (1, 63),
            r"write \(SELECT ... FROM a JOIN b",
        ),
        (
            "SELECT x.text FROM (review r JOIN product q ON LLM_FILTER('{name}', q.name)) x",
            (1, 48),
            "parentheses that has a name",
        ),
        ("SELECT id FROM review WHERE LLM_AGG('{text}', text) = 'x'", (1, 29), "use HAVING"),
        ("SELECT abs(LLM('{text}', text)) FROM review", (1, 8), r"'abs\(VARCHAR\)'.*casts\.\n"),
        ("SELECT id, LLM('{text}', text).a FROM review", (1, 32), "the LLM function"),
        ("SELECT LLM('{id}', p.id, r.id) FROM product p, review r", (1, 8), r"\{p.id\} or \{r.id\}"),
        ("SELECT list_transform([1], x -> LLM('{x}', x)) FROM review", (1, 33), "unnest"),
    ],
)
def test_errors_point_at_the_place_and_nothing_is_asked(con, engine, query, place, reason):
    with pytest.raises(RelationalError, match=reason) as caught:
        con.sql(query)
    first, shown, caret = str(caught.value).splitlines()
    assert "__llm" not in first and len(first) < 250
    assert first.startswith(f"line {place[0]}, column {place[1]}: ")
    assert shown.strip() == query.splitlines()[place[0] - 1].strip()
    assert caret.index("^") == place[1] + 1
    assert engine.asked == []


def test_a_collation_merges_no_inputs(con):
    con.sql("CREATE TABLE word(x VARCHAR COLLATE NOCASE); INSERT INTO word VALUES ('Abc'), ('abc'), ('ABC')")
    rows = con.sql("SELECT x, LLM('Sum up {x}', x) FROM word").fetchall()
    assert len(rows) == 3 and all(answer for _, answer in rows)


def test_questions_that_differ_in_case_share_no_answers_under_a_collation(con, engine):
    con.sql("SET default_collation = 'NOCASE'")
    con.sql("SELECT LLM('Rate {text}', text) FROM review")
    con.sql("SELECT LLM('RATE {text}', text) FROM review")
    assert len(engine.asked) == 26


def test_a_scalar_subquery_is_called_as_it_is_written(con):
    """By DuckDB's name for it, not by those of lookups, which differ from session to session."""
    columns = con.sql("SELECT (SELECT LLM('Sum up {text}', r.text)) FROM review r").columns
    assert columns == ["(SELECT llm('Sum up {text}', r.\"text\"))"]


@pytest.mark.parametrize(
    "given",
    ["COLUMNS('t.*')", "upper(COLUMNS(*))", "r.* REPLACE (upper(text) AS text)", "* RENAME (text AS t)", "* LIKE 't%'"],
)
def test_arguments_that_stand_for_several_calls_or_other_columns_are_refused(con, engine, given):
    """Answers would be looked up for columns that were not asked about, or the change of the columns be lost."""
    with pytest.raises(
        RelationalError, match=r"column 8: LLM takes no COLUMNS\(...\) and no star that changes columns"
    ):
        con.sql(f"SELECT LLM('Sum up', {given}) FROM review r")
    assert engine.asked == []


# ---------------------------------------------------------------------------------------------------------- cut answers
@pytest.mark.parametrize("sided", [True, False])
def test_a_text_that_was_cut_off_is_a_value_with_a_mark(connect, tmp_path, sided):
    side = {"side": tmp_path / "side.duckdb"} if sided else {}
    engine = FakeEngine(lambda row: f"on {row['id']}", cuts=[1])
    con = connect(engine=engine, **side)
    query = "SELECT id, LLM('On {id}', id) AS a FROM range(3) t(id) ORDER BY id"
    assert con.sql(query).fetchall() == [(0, "on 0"), (1, "on 1"), (2, "on 2")]
    assert "cut off: 1 answers end at max_tokens (--max-tokens), status 'cut' in llm.op_1" in con.report()
    assert len(con.errors()) == 0
    place = "SELECT status, count(*) FROM llm.op_1 GROUP BY ALL ORDER BY ALL"
    assert con.sql(place).fetchall() == [("answered", 2), ("cut", 1)]
    con.close()
    if sided:  # it is an answer in a later session too
        later = connect(engine=(asked := FakeEngine()), **side)
        assert later.sql(query).fetchall()[1] == (1, "on 1") and asked.asked == []


def test_an_aggregate_of_cut_answers_is_cut(connect):
    con = connect(engine=FakeEngine(lambda row: "sum", cuts=[0]))
    con.sql("SELECT g, LLM_AGG('Sum up', t) FROM (VALUES (1, 'a'), (2, 'b')) v(g, t) GROUP BY g")
    assert sorted(con.sql("SELECT status FROM llm.op_1").fetchall()) == [("answered",), ("cut",)]


def test_half_a_label_is_no_value(connect):
    con = connect(engine=FakeEngine(lambda row: "yes", cuts=[0]))
    rows = con.sql("SELECT id, LLM_FILTER('{id} is one', id) AS a FROM range(2) t(id) ORDER BY id").fetchall()
    assert rows == [(0, None), (1, True)] and con.errors()["reason"].str.contains("cut off").all()


@pytest.mark.parametrize(
    ("labels", "item"),
    [("['a', 1.5]", "label 2 is 1.5"), ("['a', true]", "label 2 is True"), ("['a', ['b']]", r"label 2 is \['b'\]")],
)
def test_labels_of_other_types_are_refused_by_place(connect, labels, item):
    con = connect(engine=FakeEngine())
    with pytest.raises(RelationalError, match=item):
        con.sql(f"SELECT LLM_CLASSIFY('{{id}}', {labels}, id) FROM range(2) t(id)")


def test_labels_may_be_whole_numbers(connect):
    con = connect(engine=FakeEngine(lambda row: str(row["id"])))
    assert con.sql("SELECT LLM_CLASSIFY('{id}', [0, 1], id) FROM range(2) t(id)").fetchall() == [("0",), ("1",)]

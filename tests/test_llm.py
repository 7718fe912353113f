"""The Python interface: answers in the kind of column that belongs to the kind of table."""

from __future__ import annotations

import json

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from fake_engine import FakeEngine

from vllm_relational import EngineDiedError, RelationalError, RelationalLLM
from vllm_relational.records import EngineInfo

ROWS = [{"text": "good", "n": 3}, {"text": "bad", "n": 1}, {"text": "good", "n": 3}]
UPPER = ["GOOD", "BAD", "GOOD"]


def upper(row: dict) -> str:
    return str(row["text"]).upper()


def llm_of(answer=upper, **options) -> RelationalLLM:
    return RelationalLLM(engine=FakeEngine(answer, **options))


@pytest.fixture
def llm():
    with llm_of() as llm:
        yield llm


# --------------------------------------------------------------------------------------------------- return types
@pytest.mark.parametrize("index", [None, [9, 7, 8], ["x", "x", "y"], pd.MultiIndex.from_product([["a"], [1, 2, 3]])])
def test_pandas_gets_a_series_with_its_index(llm, index):
    frame = pd.DataFrame(ROWS, index=index)
    answers = llm.query(frame, "{text}?")
    assert isinstance(answers, pd.Series) and answers.name == "answer"
    assert answers.tolist() == UPPER
    assert answers.index.equals(frame.index)


def test_answers_can_be_assigned_to_the_frame(llm):
    frame = pd.DataFrame(ROWS).sort_values("text").query("n < 9")
    frame["answer"] = llm.query(frame, "{text}?")
    assert (frame["answer"] == frame["text"].str.upper()).all()


@pytest.mark.parametrize("frame", [pl.DataFrame(ROWS), pl.LazyFrame(ROWS)])
def test_polars_gets_a_polars_series(llm, frame):
    answers = llm.query(frame, "{text}?")
    assert isinstance(answers, pl.Series) and answers.dtype == pl.String
    assert answers.to_list() == UPPER


@pytest.mark.parametrize("table", [pa.Table.from_pylist(ROWS), pa.Table.from_pylist(ROWS).to_batches()[0]])
def test_arrow_gets_an_arrow_array(llm, table):
    assert llm.query(table, "{text}?").equals(pa.array(UPPER))


def test_duckdb_gets_an_arrow_array(llm):
    connection = duckdb.connect()
    relation = connection.sql("select * from (values ('good'), ('bad'), ('good')) t(text)")
    assert llm.query(relation, "{text}?").equals(pa.array(UPPER))


def test_a_file_gets_a_pandas_series(llm, tmp_path):
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    assert llm.query(str(tmp_path / "t.parquet"), "{text}?").tolist() == UPPER


def test_numbers_are_nullable_integers():
    with llm_of(lambda row: "5" if row["text"] == "good" else "none") as llm, pytest.warns(UserWarning):
        answers = llm.query(pd.DataFrame(ROWS), "{text}?", range=(1, 5))
        assert answers.dtype == "Int64" and answers.isna().tolist() == [False, True, False]
        assert llm.query(pl.DataFrame(ROWS), "{text}?", range=(1, 5)).dtype == pl.Int64
        assert llm.query(pa.Table.from_pylist(ROWS), "{text}?", range=(1, 5)).type == pa.int64()


def test_columns_without_any_answer_keep_their_type():
    with llm_of(fails=range(3)) as llm, pytest.warns(UserWarning):
        assert llm.query(pl.DataFrame(ROWS), "{text}?").dtype == pl.String
        assert llm.query(pa.Table.from_pylist(ROWS), "{text}?").type == pa.string()
        assert llm.query(pd.DataFrame(ROWS), "{text}?").tolist() == [None] * 3


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.Table.from_pylist])
def test_json_answers_of_one_shape_are_values(make):
    with llm_of(lambda row: '{"k": 1}') as llm:
        answers = llm.query(make(ROWS), "{text}?", schema={"type": "object"})
        assert (answers.to_pylist() if isinstance(answers, pa.Array) else list(answers)) == [{"k": 1}] * 3


def test_json_answers_of_different_fields_lose_none():
    with llm_of(lambda row: '{"k": 1}' if row["text"] == "good" else '{"other": 2}') as llm:
        answers = llm.query(pl.DataFrame(ROWS), "{text}?", schema={"type": "object"})
        assert answers.to_list()[1]["other"] == 2


@pytest.mark.parametrize("make", [pl.DataFrame, pa.Table.from_pylist])
def test_json_answers_of_mixed_types_are_json_texts(make):
    with llm_of(lambda row: '{"k": 1}' if row["text"] == "good" else '"é"') as llm:
        answers = llm.query(make(ROWS), "{text}?", schema={})
        assert (answers.to_pylist() if isinstance(answers, pa.Array) else answers.to_list()) == [
            '{"k": 1}',
            '"é"',
            '{"k": 1}',
        ]


# ------------------------------------------------------------------------------------------------------- warnings
def test_failures_warn_with_count_row_and_reason():
    with llm_of(fails=[1]) as llm:
        with pytest.warns(UserWarning, match=r"1 of 3 rows failed .*row 1: failed request: refused.*last_result"):
            assert llm.query(pd.DataFrame(ROWS), "{text}?").tolist() == ["GOOD", None, "GOOD"]
        assert llm.last_result.errors[1].startswith("failed request")


def test_only_some_reasons_are_shown():
    with llm_of(fails=range(99)) as llm, pytest.warns(UserWarning) as caught:
        llm.query(pd.DataFrame({"text": range(99)}), "{text}?")
    assert len(str(caught[0].message)) < 400


@pytest.mark.filterwarnings("error")
def test_no_failures_no_warning(llm):
    llm.query(pd.DataFrame(ROWS), "{text}?")


# -------------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"choices": ["a", "b"], "range": (1, 2)}, "exclude each other"),
        ({"choices": ["a", "b"], "schema": {}}, "exclude each other"),
        ({"choices": "yes,no"}, "give a list of labels"),
        ({"choices": ["yes"]}, "at least two"),
        ({"range": (5, 1)}, "low must be below high"),
        ({"range": (1, 2, 3)}, "two whole numbers"),
        ({"range": "ab"}, "two whole numbers"),
        ({"range": 5}, "two whole numbers"),
        ({"schema": {"type": "nonsense"}}, "schema is not valid"),
        ({"schema": [1]}, "give a dict"),
        ({"schema": {}, "max_tokens": 0}, "max_tokens is 0: an answer needs at least 1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"order": "best"}, "no order 'best'"),
        ({"pin": "nope"}, "pin names the column 'nope'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"nulls": "drop"}, "nulls is 'drop'"),
        ({"resume": True}, "resume needs a checkpoint"),
    ],
)
def test_wrong_options_are_refused(llm, options, reason):
    with pytest.raises(RelationalError, match=reason):
        llm.query(pd.DataFrame(ROWS), "{text}?", **options)
    assert llm.engine.asked == []


def test_misspelt_options_are_refused(llm):
    with pytest.raises(RelationalError, match=r"no option 'chioces': did you mean choices\? \(options: after, audit"):
        llm.query(pd.DataFrame(ROWS), "{text}?", chioces=["a", "b"])


def test_one_pin_needs_no_list(llm):
    llm.query(pd.DataFrame(ROWS), "{n} {text}?", pin="n")
    assert llm.last_result.report.field_order == ("n", "text")


def test_checkpoints_may_be_named_by_text(tmp_path):
    path = str(tmp_path / "c.jsonl")
    with llm_of(dies_after=1) as llm, pytest.raises(EngineDiedError):
        llm.query(pd.DataFrame(ROWS), "{text}?", checkpoint=path)
    with llm_of() as llm:
        assert llm.query(pd.DataFrame(ROWS), "{text}?", checkpoint=path, resume=True).tolist() == UPPER
        assert len(llm.engine.asked) == 1


def test_the_default_order_is_that_of_the_object():
    with RelationalLLM(engine=FakeEngine(), order="original") as llm:
        assert llm.run(pd.DataFrame(ROWS), "{*}?").report.planner == "original"
        assert llm.run(pd.DataFrame(ROWS), "{*}?", order="fixed").report.planner == "fixed"


def test_planning_asks_nothing(llm):
    report = llm.plan(pd.DataFrame(ROWS), "{text}?", info=EngineInfo("imagined"))
    assert (report.num_distinct, report.model, llm.engine.asked) == (2, "imagined", [])


def test_planning_needs_no_engine():
    with RelationalLLM() as llm:
        assert llm.plan(pd.DataFrame(ROWS), "{text}?").num_rows == 3


def test_asking_without_model_says_what_to_name():
    with RelationalLLM() as llm, pytest.raises(RelationalError, match="name a model"):
        llm.query(pd.DataFrame(ROWS), "{text}?")


def test_leaving_the_block_closes_the_engine():
    with llm_of() as llm:
        engine = llm.engine
    assert engine.closed


# ------------------------------------------------------------------------------------------------------- accessor
def test_map_classify_and_score():
    frame = pd.DataFrame(ROWS, index=[5, 6, 7])
    with llm_of():
        assert frame.llm.map("{text}?").tolist() == UPPER
    with llm_of():
        assert frame.llm.classify("{text}?", labels=["good", "bad"]).tolist() == ["good", "bad", "good"]
    with llm_of(lambda row: str(row["n"])):
        scores = frame.llm.score("{text} {n}?", 1, 5)
        assert scores.tolist() == [3, 1, 3] and scores.dtype == "Int64" and scores.index.tolist() == [5, 6, 7]


def test_filter_keeps_the_rows_for_which_it_holds():
    frame = pd.DataFrame(ROWS, index=[5, 5, 7])
    with llm_of(lambda row: "yes" if row["text"] == "good" else "no"):
        pd.testing.assert_frame_equal(frame.llm.filter("{text} is kind"), frame.iloc[[0, 2]])
    with llm_of(lambda row: "no"):
        assert len(frame.llm.filter("{text} is kind")) == 0


def test_filter_leaves_failed_rows_out_with_a_warning():
    with llm_of(lambda row: "yes", fails=[1]), pytest.warns(UserWarning, match="1 of 3"):
        assert len(pd.DataFrame(ROWS).llm.filter("{text} is kind")) == 2


def test_the_accessor_uses_the_newest_model_or_the_one_named():
    with llm_of(lambda row: "old") as old, llm_of(lambda row: "new"):
        assert pd.DataFrame(ROWS).llm.map("{text}?").tolist() == ["new"] * 3
        assert pd.DataFrame(ROWS).llm.using(old).map("{text}?").tolist() == ["old"] * 3


def test_without_a_model_the_accessor_says_how_to_make_one():
    with llm_of():
        pass
    with pytest.raises(RelationalError, match=r"df\.llm needs a model: .*RelationalLLM\("):
        pd.DataFrame(ROWS).llm.map("{text}?")


@pytest.mark.parametrize("prompt", [5, None, b"{text}", ["{text}"]])
def test_a_prompt_that_is_no_text_is_told_what_to_give(prompt):
    with RelationalLLM(engine=FakeEngine()) as llm, pytest.raises(RelationalError, match="give a text that names"):
        llm.run(pd.DataFrame(ROWS), prompt)


def test_an_earlier_output_has_its_type():
    with RelationalLLM(engine=FakeEngine()) as llm, pytest.raises(RelationalError, match="earlier is of the type int"):
        llm.run(pd.DataFrame(ROWS), "{text}", earlier=5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"base_url": "http://localhost:1/v1", "contexts": "kept"}, "vllm-relational serve MODEL --contexts"),
        ({"engine": FakeEngine(), "contexts": "kept"}, "kept by vLLM itself"),
        ({"model": "M", "contexts_size": 3}, "need a folder: give contexts"),
        ({"model": "M", "contexts": "kept", "contexts_size": 0}, "contexts_size is 0: give GiB above 0"),
        ({"model": "M", "contexts": ""}, "contexts is '': give the path of a folder"),
    ],
)
def test_contexts_that_nobody_would_keep_are_refused(given, message):
    with pytest.raises(RelationalError, match=message):
        RelationalLLM(**given)


def test_contexts_go_to_the_engine(tmp_path):
    llm = RelationalLLM("M", contexts=tmp_path, contexts_size=1)
    config = llm.engine._args["kv_transfer_config"]
    assert str(tmp_path) in json.dumps(config) and config["kv_load_failure_policy"] == "recompute"
    with pytest.raises(RelationalError, match="contexts and kv_transfer_config exclude each other"):
        RelationalLLM("M", contexts=tmp_path, kv_transfer_config={}).engine  # noqa: B018

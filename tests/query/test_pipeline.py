"""A whole query against a fake engine: every row gets its own answer, once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from fake_engine import ByteTokenizer, FakeEngine, canonical, row_of
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.config import QueryConfig
from vllm_relational.plan.objective import total_tokens
from vllm_relational.prompts import FourByteEstimate
from vllm_relational.query.pipeline import run_query
from vllm_relational.query.prepared import prepare
from vllm_relational.records import (
    Choice,
    EngineDiedError,
    EngineInfo,
    FreeText,
    IntegerRange,
    JsonSchema,
    QueryResult,
    RelationalError,
    RowFailedError,
    RunReport,
)

cells = st.none() | st.sampled_from(["x", "y", 'q"\n,', "é😀", "", "a much longer text " * 5])
records = st.fixed_dictionaries({"a": cells, "b": cells, "c": cells})
tables = st.lists(records, min_size=1, max_size=15)
orders = st.sampled_from(["fixed", "original", "tree"])
TEXT = FreeText()
TABLE = [{"a": str(i % 3), "b": "same", "c": str(i % 2)} for i in range(12)]  # 6 distinct rows


def arrow(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in rows[0]]))


def ask(
    rows: list[dict],
    engine: FakeEngine,
    template: str = "{*}?",
    answer_format=TEXT,
    **options,
) -> QueryResult:
    return run_query(arrow(rows), template, answer_format, QueryConfig(**options), engine, ByteTokenizer())


def expected(row: dict) -> str:
    return canonical(row).strip()


def check_counts(result: QueryResult) -> None:
    """Every row is answered or has a reason, and the report agrees."""
    report = result.report
    for answer, error in zip(result.answers, result.errors, strict=True):
        assert (answer is None) == (error is not None)
    failed = sum(error is not None for error in result.errors)
    assert report.num_rows == len(result.answers)
    assert report.num_failed == failed == sum(report.failures.values()) == result.num_failed
    too_long = len({answer for answer in result.errors if answer and answer.startswith("prompt too long")})
    assert report.num_asked + report.num_resumed <= report.num_distinct <= report.num_rows
    assert bool(report.num_asked + report.num_resumed < report.num_distinct) == bool(too_long)


# ---------------------------------------------------------------------------------------------------- the property
@given(tables, orders, st.none() | st.integers(0, 99), st.data())
def test_each_row_gets_the_answer_to_its_own_values(rows, order, shuffle, data):
    keys = range(len(rows))
    fails = data.draw(st.sets(st.sampled_from(keys)))
    loses = data.draw(st.sets(st.sampled_from(keys)))
    pin = data.draw(st.sampled_from([(), ("b",), ("a", "c")]))
    engine = FakeEngine(shuffle=shuffle, fails=fails, loses=loses)
    result = ask(rows, engine, order=order, pin=pin, nulls="keep")
    first = {canonical(row): key for key, row in reversed(list(enumerate(rows)))}
    for row, answer, error in zip(rows, result.answers, result.errors, strict=True):
        bad = first[canonical(row)] in fails | loses
        assert answer == (None if bad else expected(row))
        assert bool(error) == bad
    assert sorted(canonical(row_of(prompt)) for prompt in engine.asked) == sorted(first)
    assert sorted(prompt.key for prompt in engine.asked) == sorted(first.values())
    check_counts(result)


@given(tables, orders)
def test_rows_with_nulls_fail_and_the_others_do_not_notice(rows, order):
    result = ask(rows, FakeEngine(), order=order)
    for row, answer, error in zip(rows, result.answers, result.errors, strict=True):
        if None in row.values():
            assert answer is None and error.startswith("null cell: column ")
        else:
            assert answer == expected(row) and error is None
    check_counts(result)


@given(tables, orders, st.integers(0, 8), st.none() | st.integers(0, 99), orders)
def test_a_resumed_run_asks_only_the_rest_and_ends_the_same(
    tmp_path_factory, rows, order, lived, shuffle, second_order
):
    path = tmp_path_factory.mktemp("run") / "checkpoint.jsonl"
    options = {"nulls": "keep", "checkpoint": path}
    dying, engine = FakeEngine(dies_after=lived, shuffle=shuffle), FakeEngine()
    whole = ask(rows, FakeEngine(), nulls="keep")
    num_distinct = whole.report.num_distinct
    if lived < num_distinct:
        with pytest.raises(EngineDiedError, match=f"{lived} answers are in" if lived else "no row was answered"):
            ask(rows, dying, order=order, **options)
    else:
        ask(rows, dying, order=order, **options)
    result = ask(rows, engine, order=second_order, resume=True, **options)
    answered = min(lived, num_distinct)
    assert (result.answers, result.errors) == (whole.answers, whole.errors)
    assert (result.report.num_resumed, result.report.num_asked) == (answered, num_distinct - answered)
    assert len(engine.asked) == num_distinct - answered
    check_counts(result)


# -------------------------------------------------------------------------------------------------------- failures
def test_nulls_in_columns_that_the_question_does_not_use_do_not_matter():
    assert ask([{"a": "x", "b": None}], FakeEngine(), "{a}?").answers == [expected({"a": "x"})]


def test_kept_nulls_reach_the_model_and_differ_from_the_text_null():
    result = ask([{"a": None}, {"a": "null"}], FakeEngine(), nulls="keep")
    assert result.answers == ['{"a": null}', '{"a": "null"}']
    assert result.report.num_distinct == 2


def test_unparsable_answers_fail_their_rows_only():
    engine = FakeEngine(lambda row: "yes" if row["a"] == "0" else "perhaps")
    result = ask(TABLE, engine, answer_format=Choice(("yes", "no")))
    assert result.answers == ["yes" if row["a"] == "0" else None for row in TABLE]
    assert result.report.failures == {"unusable answer": 8}
    assert all(error is None or error.startswith("unusable answer: answered 'perhaps'") for error in result.errors)
    check_counts(result)


def test_answers_of_each_decision_are_values():
    assert ask(TABLE, FakeEngine(lambda row: row["a"]), answer_format=IntegerRange(0, 2)).answers[:3] == [0, 1, 2]
    schema = JsonSchema({"type": "object"})
    assert ask(TABLE, FakeEngine(), answer_format=schema).answers == TABLE


def test_a_lost_row_does_not_pass_for_answered():
    result = ask(TABLE, FakeEngine(loses=[0]))
    assert result.errors[0] == "failed request: the engine gave no answer" and result.answers[0] is None
    check_counts(result)


def test_failures_are_not_stored_and_are_asked_again(tmp_path):
    path = tmp_path / "c.jsonl"
    first = ask(TABLE, FakeEngine(fails=[0, 1]), checkpoint=path)
    assert first.report.failures == {"failed request": 4}
    engine = FakeEngine()
    second = ask(TABLE, engine, checkpoint=path, resume=True)
    assert sorted(prompt.key for prompt in engine.asked) == [0, 1]
    assert second.answers == [expected(row) for row in TABLE]


def test_a_prompt_too_long_is_not_sent_and_names_its_column():
    rows = [{"a": "short", "b": "x" * 2000}, {"a": "short", "b": "x"}, {"a": "short", "b": "x" * 2000}]
    engine = FakeEngine(max_model_len=1200)
    result = ask(rows, engine)
    assert [prompt.key for prompt in engine.asked] == [1]
    assert result.errors[0] == result.errors[2] and "column 'b'" in result.errors[0]
    assert result.report.failures == {"prompt too long": 2}
    check_counts(result)


def test_no_row_is_refused_on_an_estimate_of_its_length():
    engine = FakeEngine(max_model_len=100)
    table = arrow([{"a": "x" * 2000}])
    result = run_query(table, "{*}?", TEXT, QueryConfig(), engine, FourByteEstimate())
    assert result.num_failed == 0 and len(engine.asked) == 1


def test_every_prompt_too_long():
    result = ask([{"a": "x" * 2000}], FakeEngine(max_model_len=100))
    assert result.answers == [None] and result.report.num_asked == 0
    check_counts(result)


def test_an_answer_of_an_earlier_run_counts_even_if_the_prompt_is_now_too_long(tmp_path):
    rows = [{"a": "x" * 2000}, {"a": "y"}]
    whole = ask(rows, FakeEngine(), checkpoint=tmp_path / "c")
    result = ask(rows, FakeEngine(max_model_len=800), checkpoint=tmp_path / "c", resume=True)
    assert (result.answers, result.errors) == (whole.answers, whole.errors)
    check_counts(result)


# ------------------------------------------------------------------------------------------------ on_error='raise'
@pytest.mark.parametrize(
    ("rows", "engine", "reason"),
    [
        ([{"a": "x"}, {"a": None}], FakeEngine(), "row 1 .*null cell"),
        ([{"a": "x"}, {"a": "y"}], FakeEngine(fails=[1]), "row 1 .*refused by the fake engine"),
        ([{"a": "x"}, {"a": "y"}], FakeEngine(loses=[1]), "row 1 .*no answer"),
        ([{"a": "x"}, {"a": "y" * 9999}], FakeEngine(max_model_len=1200), "row 1 .*too long"),
    ],
    ids=["null", "refused", "lost", "too long"],
)
def test_raise_stops_at_the_first_failed_row(rows, engine, reason):
    with pytest.raises(RowFailedError, match=reason):
        ask(rows, engine, on_error="raise")


def test_raise_stops_what_is_in_flight_at_once():
    engine = FakeEngine(fails=[0])
    with pytest.raises(RowFailedError) as kept_alive:
        ask(TABLE, engine, on_error="raise", order="original")
    assert engine.open_streams == 0 and len(engine.asked) == 1
    del kept_alive


def test_a_dead_engine_without_checkpoint_says_how_to_keep_answers():
    with pytest.raises(EngineDiedError, match="fake engine died; name a checkpoint"):
        ask(TABLE, FakeEngine(dies_after=1))


# ---------------------------------------------------------------------------------------------------- wrong queries
@pytest.mark.parametrize(
    ("template", "options", "reason"),
    [
        ("{nope}?", {}, "names the column 'nope'"),
        ("{a}?", {"order": "best"}, "no order 'best'"),
        ("{a}?", {"pin": ("nope",)}, "pin names the column 'nope'"),
        ("{a}?", {"pin": ("b",)}, "which the prompt does not use"),
        ("{a}?", {"answer_format": Choice(("x",))}, "at least two"),
    ],
)
def test_wrong_queries_are_refused_before_anything_is_sent(tmp_path, template, options, reason):
    engine = FakeEngine()
    with pytest.raises(RelationalError, match=reason):
        ask(TABLE, engine, template, checkpoint=tmp_path / "c", **options)
    assert engine.asked == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"on_error": "ignore"}, {"nulls": "drop"}, {"resume": True}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(RelationalError, match=next(iter(options))):
        QueryConfig(**options)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"template": "{a}!"}, "prompt, table"),
        ({"answer_format": FreeText(9)}, "answer form"),
        ({"engine": FakeEngine(model="other")}, "model"),
        ({"rows": TABLE[1:]}, "table"),
        ({"rows": [row | {"b": "other"} for row in TABLE]}, "table"),
        ({"system_prompt": "Hello."}, "system prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_does_not_serve_another_job(tmp_path, change, what):
    job = {"rows": TABLE, "engine": FakeEngine(), "template": "{*}?", "checkpoint": tmp_path / "c"}
    ask(**job)
    with pytest.raises(RelationalError, match=rf"not the same: {what}\)"):
        ask(**job | change, resume=True)


# --------------------------------------------------------------------------------------------------------- reports
def test_the_report_of_a_run():
    report = ask(TABLE, FakeEngine()).report
    assert (report.num_rows, report.num_distinct, report.num_asked, report.num_resumed) == (12, 6, 6, 0)
    assert (report.measured_prompt_tokens, report.measured_cached_tokens, report.output_tokens) == (60, 24, 12)
    assert report.measured_hit_rate == pytest.approx(0.4) and report.measured_loaded_tokens == 18
    assert report.model == "fake" and report.planner == "tree" and sorted(report.field_order) == ["a", "b", "c"]
    assert report.field_order[0] == "b"
    assert report.predicted.prompt_tokens == report.original.prompt_tokens
    assert 0 < report.ceiling < 1
    assert min(report.stage_seconds.values()) >= 0


def test_a_dry_run_predicts_what_the_run_predicts():
    info = EngineInfo("fake")
    planned = prepare(arrow(TABLE), "{*}?", FreeText(), QueryConfig(), ByteTokenizer()).plan(info).report
    report = ask(TABLE, FakeEngine()).report
    assert (planned.predicted, planned.original, planned.ceiling) == (
        report.predicted,
        report.original,
        report.ceiling,
    )
    assert planned.measured_prompt_tokens is None and planned.num_asked == 6


@given(tables)
def test_forecasts_are_shares_of_the_prompt_tokens(rows):
    info = EngineInfo("fake", block_size=1)
    report = prepare(arrow(rows), "{*}?", FreeText(), QueryConfig(nulls="keep"), FourByteEstimate()).plan(info).report
    for forecast in (report.predicted, report.original):
        assert 0 <= forecast.hit_tokens <= forecast.prompt_tokens
    assert 0 <= report.ceiling <= 1


def test_engines_without_prefix_cache_are_predicted_no_hits():
    info = EngineInfo("fake", prefix_caching=False)
    report = prepare(arrow(TABLE), "{*}?", FreeText(), QueryConfig(), FourByteEstimate()).plan(info).report
    assert report.predicted.hit_tokens == 0 < report.predicted.prompt_tokens


# ------------------------------------------------------------------------------------------------ prepared queries
def facts_of(report: RunReport) -> dict:
    return {**vars(report), "stage_seconds": set(report.stage_seconds)}


@given(tables, st.lists(orders, min_size=1, max_size=3))
def test_a_query_prepared_once_is_planned_as_if_prepared_for_each_plan(rows, names):
    info = EngineInfo("fake", max_model_len=300)
    prepared = prepare(arrow(rows), "{*}?", TEXT, QueryConfig(), ByteTokenizer())
    for name in names:
        alone = prepare(arrow(rows), "{*}?", TEXT, QueryConfig(order=name), ByteTokenizer()).plan(info).report
        assert facts_of(prepared.plan(info, name).report) == facts_of(alone)


@given(tables, orders, st.integers(1, 15))
def test_the_first_rows_of_a_prepared_query_are_a_query_of_their_own(rows, name, num_rows):
    info = EngineInfo("fake", block_size=1)
    prepared = prepare(arrow(rows), "{*}?", TEXT, QueryConfig(order=name), ByteTokenizer())
    alone = prepare(arrow(rows[:num_rows]), "{*}?", TEXT, QueryConfig(order=name), ByteTokenizer()).plan(info).report
    assert facts_of(prepared.first(num_rows).plan(info).report) == facts_of(alone)


def test_preparing_is_measured_once():
    prepared = prepare(arrow(TABLE), "{*}?", TEXT, QueryConfig(), ByteTokenizer())
    first, second = (prepared.plan(EngineInfo("fake"), "fixed").report.stage_seconds for _ in range(2))
    for stage in ("read columns", "deduplicate", "tokenise"):
        assert first[stage] == second[stage] > 0


def test_a_plan_comes_with_what_it_was_made_from():
    planned = prepare(arrow(TABLE), "{a} {c}?", TEXT, QueryConfig(), ByteTokenizer()).plan(EngineInfo("fake"))
    assert planned.table.names == ("a", "c") and planned.table.num_rows == 12
    assert planned.batch.num_rows == len(planned.plan.rows) == planned.report.num_distinct == 6
    assert 0 < 6 * planned.header_tokens + total_tokens(planned.batch) < planned.report.predicted.prompt_tokens


def test_only_planners_that_read_overlaps_have_them_computed(monkeypatch):
    asked = []
    monkeypatch.setattr("vllm_relational.query.planned.value_overlaps", lambda cells: asked.append(1) or ())
    prepared = prepare(arrow(TABLE), "{*}?", TEXT, QueryConfig(), ByteTokenizer())
    for name in ("original", "fixed", "ggr"):
        prepared.plan(EngineInfo("fake"), name)
    assert not asked
    prepared.plan(EngineInfo("fake"), "tree")
    assert asked


def test_a_finished_job_resumed_asks_nothing(tmp_path):
    ask(TABLE, FakeEngine(), checkpoint=tmp_path / "c")
    engine = FakeEngine()
    report = ask(TABLE, engine, checkpoint=tmp_path / "c", resume=True).report
    assert engine.asked == [] and report.num_resumed == 6 and report.measured_hit_rate is None


# ---------------------------------------------------------------------------------------------------- determinism
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import pandas as pd
from fake_engine import FakeEngine
from vllm_relational import RelationalLLM
engine = FakeEngine()
frame = pd.DataFrame({"a": list("zyxzyx"), "b": ["k"] * 6, "c": list("123456")})
RelationalLLM(engine=engine).run(frame, "{c} and {*}?", progress=False)
print(json.dumps([[prompt.key, prompt.user] for prompt in engine.asked]))
"""


@pytest.mark.slow
def test_prompts_are_the_same_in_every_process():
    def prompts(seed: str) -> list:
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1])]
        env = os.environ | {"PYTHONHASHSEED": seed}
        return json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    assert len(prompts("1")) == 6
    assert prompts("1") == prompts("2")


def test_the_users_table_is_not_changed():
    frame = pd.DataFrame(TABLE)
    before = frame.copy(deep=True)
    run_query(pa.Table.from_pandas(frame), "{*}?", FreeText(), QueryConfig(), FakeEngine(), FourByteEstimate())
    pd.testing.assert_frame_equal(frame, before)

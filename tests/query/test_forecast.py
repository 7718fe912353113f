"""One query after another on one engine: the forecast starts from what the first one left in the cache."""

from __future__ import annotations

import pyarrow as pa
import pytest
from fake_engine import ByteTokenizer, FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from token_engine import TokenEngine

from vllm_relational.config import QueryConfig
from vllm_relational.query.pipeline import run_query
from vllm_relational.query.prepared import prepare
from vllm_relational.records import Choice, EngineInfo, FreeText, QueryResult, RelationalError

cells = st.sampled_from(["x", "y", 'q"\n,', "a much longer text " * 3, "another, longer text " * 4])
tables = st.lists(st.fixed_dictionaries({"a": cells, "b": cells, "c": cells}), min_size=1, max_size=12)
layouts = st.sampled_from(["question-first", "row-first"])
LONG = [{"a": f"{i} " + "long and unique " * 9, "b": f"group {i % 3}"} for i in range(20)]


def ask(
    rows: list[dict], engine: FakeEngine, template: str = "Kind? {a} {b}", answer_format=None, **options
) -> QueryResult:
    table = pa.Table.from_pylist(rows)
    return run_query(table, template, answer_format or FreeText(), QueryConfig(**options), engine, ByteTokenizer())


@given(
    rows=tables,
    keep=st.integers(1, 12),
    one=layouts,
    other=layouts,
    templates=st.permutations(["{a} {b}?", "Sum up {c} and {a}", "{*}!", "{b}"]),
    capacity=st.none() | st.integers(2, 60).map(lambda blocks: 16 * blocks),
    order=st.sampled_from(["tree", "fixed", "original"]),
)
def test_the_forecast_after_another_query_is_what_the_cache_serves(rows, keep, one, other, templates, capacity, order):
    engine = TokenEngine(capacity)
    first = ask(rows, engine, templates[0], layout=one, order=order)
    second = ask(rows[:keep], engine, templates[1], layout=other, order=order, after=(first.asked,))
    third = ask(rows, engine, templates[2], layout=one, order=order, after=(first.asked, second.asked))
    for result in (first, second, third):
        report = result.report
        assert report.predicted.prompt_tokens == report.measured_prompt_tokens
        assert report.predicted.hit_tokens == report.measured_cached_tokens
        assert report.num_failed == 0 and report.layout in (one, other)


@given(rows=tables, keep=st.integers(1, 12))
def test_layouts_and_earlier_queries_change_no_answer(rows, keep):
    first = ask(rows, TokenEngine(), layout="row-first")
    plain = ask(rows[:keep], TokenEngine(), "What of {b} and {a}?")
    after = ask(rows[:keep], TokenEngine(), "What of {b} and {a}?", layout="row-first", after=(first.asked,))
    assert after.answers == plain.answers and after.errors == plain.errors


def test_a_second_question_begins_as_the_first_one_did_token_for_token():
    engine = TokenEngine()
    first = ask(LONG, engine, "Kind? {a} {b}", Choice(("yes", "no")), layout="row-first")
    rows = [{**row, "extra": f"only here {i}"} for i, row in enumerate(LONG)][5:]
    second = ask(rows, engine, "Advice on {extra} for {b} {a}", layout="row-first", after=(first.asked,))
    parts = [tuple(bytes(prompt.token_ids).partition(b"}\n\n")[0] for prompt in batch) for batch in engine.batches]
    before = {text.partition(b" long")[0].rpartition(b'"')[2]: text for text in parts[0]}
    for text in parts[1]:
        assert text.startswith(before[text.partition(b" long")[0].rpartition(b'"')[2]])
        assert b'"extra"' in text.rpartition(b'"a"')[2] or b'"extra"' in text.rpartition(b'"b"')[2]
    assert second.report.planner == "follow"
    assert second.report.measured_hit_rate > 0.7 > 0.5 > first.report.measured_hit_rate


def test_nothing_is_followed_where_the_order_was_set():
    first = ask(LONG, TokenEngine(), layout="row-first")
    for options in ({"order": "original"}, {"pin": ("a",)}, {"keep_order": (("a", "b"),)}):
        result = ask(LONG, TokenEngine(), "{b}, {a}?", layout="row-first", after=(first.asked,), **options)
        assert result.report.planner != "follow"


def test_a_cache_that_is_too_small_for_all_rows_is_read_backwards():
    engine = TokenEngine(capacity=2048)
    first = ask(LONG, engine, layout="row-first")
    second = ask(LONG, engine, "Other? {a} {b}", layout="row-first", after=(first.asked,))
    asked = [[prompt.key for prompt in batch] for batch in engine.batches]
    assert asked[1] == asked[0][::-1]
    assert 0.2 < second.report.measured_hit_rate < 0.9


@given(rows=tables, one=layouts, other=layouts)
def test_the_ceiling_counts_what_was_asked_before(rows, one, other):
    first = ask(rows, TokenEngine(block_size=1), layout=one)
    second = ask(rows, TokenEngine(block_size=1), "{b}{a}", layout=other, after=(first.asked,)).report
    alone = ask(rows, TokenEngine(block_size=1), "{b}{a}", layout=other).report
    assert alone.ceiling <= second.ceiling <= 1


def test_nothing_asked_leaves_nothing_behind(tmp_path):
    options = {"cache": tmp_path / "answers.db"}
    assert ask(LONG, TokenEngine(), **options).asked is not None
    assert ask(LONG, TokenEngine(), **options).asked is None


def test_layouts_share_no_cached_answers_and_no_checkpoint(tmp_path):
    engine, options = TokenEngine(), {"cache": tmp_path / "answers.db"}
    ask(LONG, engine, **options)
    assert ask(LONG, engine, layout="row-first", **options).report.num_cached == 0
    assert ask(LONG, engine, layout="row-first", **options).report.num_cached == len(LONG)
    checkpoint = {"checkpoint": tmp_path / "c.jsonl"}
    ask(LONG, engine, **checkpoint)
    with pytest.raises(RelationalError, match="not the same: layout"):
        ask(LONG, engine, layout="row-first", resume=True, **checkpoint)


def test_a_layout_that_there_is_not_is_refused():
    with pytest.raises(RelationalError, match="layout is 'last': use one of question-first, row-first"):
        QueryConfig(layout="last")


def test_without_prefix_caching_nothing_is_served_after_another_query():
    table = pa.Table.from_pylist(LONG)
    first = ask(LONG, TokenEngine(), layout="row-first")
    config = QueryConfig(layout="row-first", after=(first.asked,))
    prepared = prepare(table, "{a} {b}?", FreeText(), config, ByteTokenizer())
    assert prepared.plan(EngineInfo("m", prefix_caching=False)).report.predicted.hit_tokens == 0
    assert prepared.plan(EngineInfo("m", kv_cache_tokens=8)).report.predicted.hit_tokens == 0
    assert prepared.plan(EngineInfo("m")).report.predicted.hit_rate > 0.7

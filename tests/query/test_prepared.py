"""A prepared query is a value: it can be pickled and cut into parts that are queries of their own."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
from fake_engine import ByteTokenizer, FakeEngine
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_relational import RelationalLLM
from vllm_relational.config import QueryConfig
from vllm_relational.query.pipeline import run_prepared
from vllm_relational.query.prepared import Prepared, prepare
from vllm_relational.records import EngineInfo, FreeText

INFO = EngineInfo("fake", kv_cache_tokens=10_000)
rows = st.lists(st.tuples(st.sampled_from(["x", "X ", "y", None]), st.sampled_from("pq")), min_size=1, max_size=9)


def query_of(rows: list[tuple[str | None, str]], dedup: str = "exact") -> Prepared:
    table = pa.table({"a": pa.array([a for a, _ in rows], pa.string()), "b": [b for _, b in rows]})
    return prepare(table, "{*}?", FreeText(), QueryConfig(dedup=dedup), ByteTokenizer())


@settings(max_examples=examples(25))
@given(rows, st.sampled_from(["exact", "normalized"]))
def test_what_was_pickled_gives_the_same_plan_and_answers(rows, dedup):
    query = query_of(rows, dedup)
    again = pickle.loads(pickle.dumps(query))
    one, other = (run_prepared(each, FakeEngine()) for each in (query, again))
    assert (one.answers, one.errors, one.origins) == (other.answers, other.errors, other.origins)
    assert one.report.field_order == other.report.field_order
    assert one.job.job == other.job.job


@settings(max_examples=examples(40))
@given(rows, st.data())
def test_shards_together_answer_what_the_whole_does(rows, data):
    """Exact groups: the answer of a row depends on its cells alone, whichever shard it is in."""
    query = query_of(rows)
    shard_of = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))))
    whole = run_prepared(query, FakeEngine())
    answers: list = [None] * len(rows)
    errors: list = [None] * len(rows)
    for shard in range(3):
        places = np.flatnonzero(shard_of == shard)
        part = run_prepared(query.take(places), FakeEngine())
        for place, answer, error in zip(places.tolist(), part.answers, part.errors, strict=True):
            answers[place], errors[place] = answer, error
    assert (answers, errors) == (whole.answers, whole.errors)


def test_plans_leave_a_query_as_it_is():
    query = query_of([("x", "p"), ("y", "q"), (None, "q")])
    before = pickle.dumps(query)
    query.plan(INFO, "fixed")
    query.ordered("ggr").plan(INFO)
    run_prepared(query, FakeEngine())
    assert pickle.dumps(query) == before


def test_a_query_that_merged_by_a_function_of_the_users_can_be_pickled():
    table = pa.table({"a": ["one text", "another text"]})
    config = QueryConfig(dedup="semantic", embedder=lambda texts: np.eye(2)[: len(texts)])
    query = prepare(table, "{a}?", FreeText(), config, ByteTokenizer())
    again = pickle.loads(pickle.dumps(query))
    assert again.record("m").job == query.record("m").job
    assert "lambda" in query.merging["embedder"]


def test_a_query_with_a_models_own_tokenizer_can_be_pickled(tokenizer_folder):
    with RelationalLLM(tokenizer_folder, engine=FakeEngine()) as llm:
        query = llm.prepare(pa.table({"a": ["x", "y"]}), "{a}?")
    again = pickle.loads(pickle.dumps(query))
    assert again.prompts.counts == "exact" and again.plan(INFO).report.predicted == query.plan(INFO).report.predicted

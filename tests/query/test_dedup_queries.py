"""Whole queries with merged rows, a result cache and an audit, against a fake engine."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from fake_engine import ByteTokenizer, FakeEngine, canonical, row_of
from hashed_embedder import HashedTrigrams
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.config import QueryConfig
from vllm_relational.dedup import normalizer
from vllm_relational.dedup.normalize import DEFAULT_RULES
from vllm_relational.engine import vllm_embedder
from vllm_relational.query.pipeline import run_query
from vllm_relational.query.prepared import prepare
from vllm_relational.records import (
    Choice,
    EngineDiedError,
    EngineInfo,
    FreeText,
    QueryResult,
    RelationalError,
)
from vllm_relational.results.checkpoint_lines import Answer, answer_line, job_digest, read_header

TEXT = FreeText()


def merging(dedup: str = "exact", normalize: dict | None = None, **options) -> dict:
    """Options of deduplication."""
    return {"dedup": dedup, "normalize": normalize or {}, **options}


NORMAL = normalizer(DEFAULT_RULES)
ROWS = [{"a": text, "b": "k"} for text in ["Good", "good!", "GOOD", "good!", "Bad", "bad.", "Ugly"]]
INJECTIONS = ['"; DROP TABLE answers; --', "{a} {{", "<|im_start|>system\n", "\x00\x1f", "é'\""]
cells = st.none() | st.sampled_from(
    ["x", "X ", "x!", "y", "", " ", "a much longer text", "a much longer text.", *INJECTIONS]
)
tables = st.lists(st.fixed_dictionaries({"a": cells, "b": cells}), min_size=1, max_size=12)
modes = st.sampled_from(
    [
        merging(),
        merging("normalized"),
        merging("normalized", {"a": ("case", "whitespace")}),
        merging("semantic", embedder=HashedTrigrams(), similarity=0.8, similar_columns=("a", "b")),
        merging("semantic", {"*": ("default",)}, embedder=HashedTrigrams(), similarity=0.8, similar_columns=("a",)),
    ]
)


def arrow(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in rows[0]]))


def ask(rows: list[dict], engine: FakeEngine | None = None, answer_format=TEXT, dedup=None, **options) -> QueryResult:
    config = QueryConfig(**(dedup or {}), **options)
    return run_query(arrow(rows), "{*}?", answer_format, config, engine or FakeEngine(), ByteTokenizer())


def check(rows: list[dict], result: QueryResult) -> None:
    """Each row has the answer of the row it names, which has the answer to its own values."""
    known = {"asked", "resumed", "cached"}
    for row, (answer, source, origin) in enumerate(
        zip(result.answers, result.source_rows.tolist(), result.origins, strict=True)
    ):
        assert (origin == "failed") == (source == -1) == (answer is None)
        if source == -1:
            continue
        assert answer == canonical(rows[source]).strip()
        assert (origin in known) == (source == row)
        assert result.source_rows[source] == source
        if origin == "exact":
            assert rows[row] == rows[source] and row > source
        elif origin == "normalized":
            assert rows[row] != rows[source]
    merged = Counter(origin for origin in result.origins if origin not in known)
    if not result.num_failed:
        assert {step: rows for step, rows in result.report.dedup.merged.items() if rows} == merged


@given(tables, modes, st.sampled_from(["original", "tree"]), st.none() | st.integers(0, 99))
def test_each_row_has_the_answer_of_the_row_it_names(rows, dedup, order, shuffle):
    engine = FakeEngine(shuffle=shuffle)
    result = ask(rows, engine, dedup=dedup, order=order, nulls="keep")
    check(rows, result)
    assert sorted(prompt.key for prompt in engine.asked) == sorted(set(result.source_rows.tolist()))
    assert all(row_of(prompt) == rows[prompt.key] for prompt in engine.asked)
    if dedup["dedup"] == "normalized" and not dedup["normalize"]:
        for row, source in zip(rows, result.source_rows, strict=True):
            for name, value in row.items():
                other = rows[source][name]
                assert value == other or NORMAL(value) == NORMAL(other)


@given(tables, modes, st.integers(0, 99))
def test_failed_rows_take_those_that_inherit_with_them(rows, dedup, seed):
    fails = [row for row in range(len(rows)) if (row * 7 + seed) % 3 == 0]
    result = ask(rows, FakeEngine(fails=fails), dedup=dedup)
    check(rows, result)
    failed = sum(error is not None for error in result.errors)
    assert failed == result.num_failed == sum(result.report.failures.values())
    assert all(
        (answer is None) == (error is not None) for answer, error in zip(result.answers, result.errors, strict=True)
    )


def test_the_most_frequent_spelling_is_asked():
    engine = FakeEngine()
    result = ask(ROWS, engine, dedup=merging("normalized"))
    assert sorted(prompt.key for prompt in engine.asked) == [1, 4, 6]
    assert result.source_rows.tolist() == [1, 1, 1, 1, 4, 4, 6]
    assert result.origins == ["normalized", "asked", "normalized", "exact", "asked", "normalized", "asked"]
    assert result.report.dedup.merged == {"exact": 1, "normalized": 3}


def test_a_reason_names_the_row_that_was_asked_in_place():
    result = ask(ROWS, FakeEngine(fails=[1]), dedup=merging("normalized"))
    assert result.errors[0] == f"{result.errors[1]} (row 1 was asked for this one)"
    assert result.errors[3] == result.errors[1] == "failed request: refused by the fake engine"


def test_only_what_the_prompt_reads_counts():
    config = QueryConfig(**merging("normalized"))
    rows = [{"a": "Good", "b": "1"}, {"a": "good", "b": "2"}]
    result = run_query(arrow(rows), "{a}?", TEXT, config, FakeEngine(), ByteTokenizer())
    assert result.report.num_distinct == 1


def test_rows_that_differ_in_a_column_not_compared_are_not_merged():
    rows = [{"a": "a fine place", "b": "1"}, {"a": "a fine place!", "b": "2"}, {"a": "a fine place.", "b": "1"}]
    dedup = merging("semantic", similarity=0.8, embedder=HashedTrigrams())
    result = ask(rows, dedup=dedup)
    assert result.source_rows[1] == 1 and result.source_rows[0] == result.source_rows[2] != 1
    assert result.report.dedup.settings["compared by meaning"] == "a; equal: b"
    (example,) = result.report.dedup.examples
    assert example.origin == "semantic" and 0.8 <= example.similarity < 1 and set(example.asked) == {"a"}


def test_by_meaning_a_null_is_not_the_word_null():
    rows = [{"a": text, "b": "k"} for text in ["null", None, "null", None]]
    dedup = merging("semantic", embedder=HashedTrigrams(), similarity=0.9, similar_columns=("a", "b"))
    assert ask(rows, dedup=dedup, nulls="keep").source_rows.tolist() == [0, 1, 0, 1]


def test_texts_that_the_embedder_cuts_are_not_merged():
    class Cutting:
        name = "cutting"

        def __call__(self, texts: list[str]) -> np.ndarray:
            return HashedTrigrams()([text[:5] for text in texts])

        def reads_whole(self, texts: list[str]) -> list[bool]:
            return [len(text) <= 5 for text in texts]

    rows = [{"a": text} for text in ["room one", "room two", "room", "room ", "room one"]]
    result = ask(rows, dedup=merging("semantic", similarity=0.6, embedder=Cutting()))
    assert result.origins[1] == "asked" and result.origins[4] == "exact"
    assert len({int(row) for row in result.source_rows[:2]}) == 2
    assert result.report.dedup.too_long == 2


@pytest.mark.slow
def test_a_real_model_merges_paraphrases(minilm):
    texts = ["The room was very clean.", "The room was really clean.", "Parking costs ten dollars.", "long " * 400]
    result = ask([{"a": text} for text in texts], dedup=merging("semantic", similarity=0.9, embedder=str(minilm)))
    assert result.source_rows[0] == result.source_rows[1]
    assert result.source_rows[2:].tolist() == [2, 3]
    assert result.report.dedup.too_long == 1 and result.report.dedup.examples[0].similarity > 0.9


def test_a_model_in_vllm_is_opened_by_its_name_and_gives_its_memory_back(monkeypatch):
    class InVllm(HashedTrigrams):
        def release(self) -> None:
            released.append(self.name)

    released: list[str] = []
    monkeypatch.setattr(vllm_embedder, "VllmEmbedder", lambda model: InVllm(name=f"vllm:{model}"))
    dedup = merging("semantic", similarity=0.9, embedder="vllm:some/model")
    result = ask([{"a": text} for text in ["Clean room", "clean room", "parking"]], dedup=dedup)
    assert result.source_rows.tolist() == [0, 0, 2] and released == ["vllm:some/model"]
    assert result.report.dedup.settings["embedder"] == "vllm:some/model"


def test_equal_texts_are_embedded_once():
    seen: list[str] = []

    def embedder(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return HashedTrigrams()(texts)

    ask(
        [{"a": "x", "b": str(i)} for i in range(5)],
        dedup=merging("semantic", similar_columns=("a",), embedder=embedder),
    )
    assert seen == ["x"]


@pytest.mark.parametrize(
    ("dedup", "reason"),
    [
        (merging("normalized", {"c": ("case",)}), "'c', which the prompt does not use"),
        (merging("normalized", {"a": ("nope",)}), "no rule 'nope'"),
        (
            merging("semantic", similar_columns=("c",), embedder=HashedTrigrams()),
            "'c', which the prompt does not use",
        ),
        (merging("semantic", embedder=lambda texts: np.zeros(3)), "one row a text"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_sent(dedup, reason):
    engine = FakeEngine()
    with pytest.raises(RelationalError, match=reason):
        ask(ROWS, engine, dedup=dedup)
    assert engine.asked == []


@pytest.mark.parametrize(
    "settings",
    [
        {"dedup": "fuzzy"},
        {"normalize": {"a": ("case",)}},
        {"dedup": "normalized", "similar_columns": ("a",)},
        {"similarity": 0.0},
        {"similarity": 1.1},
        {"similarity": float("nan")},
        {"similarity": "0.9"},
    ],
)
def test_settings_that_contradict_are_refused(settings):
    with pytest.raises(RelationalError):
        QueryConfig(**settings)


@pytest.mark.parametrize(
    "options", [{"audit": -1}, {"seed": -1}, {"audit": 0.1}, {"audit": True}, {"audit": "5"}, {"seed": 1.5}]
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(RelationalError, match=f"{next(iter(options))} is"):
        QueryConfig(**options)


# ------------------------------------------------------------------------------------------------- plan and resume
def test_merging_changes_the_forecast():
    info = EngineInfo("fake")
    exact, merged = (
        prepare(arrow(ROWS), "{*}?", TEXT, QueryConfig(**merging(mode)), ByteTokenizer()).plan(info).report
        for mode in ("exact", "normalized")
    )
    assert (exact.num_asked, merged.num_asked) == (6, 3)
    assert merged.predicted.prompt_tokens < exact.predicted.prompt_tokens


@given(tables, modes, st.integers(1, 12))
def test_the_first_rows_of_a_prepared_query_stay_merged(rows, dedup, num_rows):
    prepared = prepare(arrow(rows), "{*}?", TEXT, QueryConfig(**dedup, nulls="keep"), ByteTokenizer())
    whole, part = prepared.plan(EngineInfo("fake")).report, prepared.first(num_rows).plan(EngineInfo("fake")).report
    assert part.num_rows == min(num_rows, len(rows)) == part.num_distinct + sum(part.dedup.merged.values())
    assert part.num_distinct <= whole.num_distinct


@given(tables, modes, st.integers(0, 6))
def test_a_resumed_run_ends_the_same(tmp_path_factory, rows, dedup, lived):
    path = tmp_path_factory.mktemp("run") / "checkpoint.jsonl"
    whole = ask(rows, dedup=dedup, nulls="keep")
    if lived >= whole.report.num_distinct:
        return
    with pytest.raises(EngineDiedError):
        ask(rows, FakeEngine(dies_after=lived), dedup=dedup, nulls="keep", checkpoint=path)
    result = ask(rows, dedup=dedup, nulls="keep", checkpoint=path, resume=True)
    assert result.answers == whole.answers
    assert np.array_equal(result.source_rows, whole.source_rows)
    assert result.origins.count("resumed") == lived == result.report.num_resumed
    check(rows, result)


def test_a_checkpoint_that_knows_rows_which_are_merged_now_does_no_harm(tmp_path):
    path = tmp_path / "c"
    whole = ask(ROWS, dedup=merging("normalized"), checkpoint=path)
    digest = job_digest(read_header(path.read_bytes().splitlines(keepends=True)[0]))
    with path.open("ab") as lines:
        lines.writelines(answer_line(Answer(row, "of another time", False), digest) for row in (0, 99))
    result = ask(ROWS, dedup=merging("normalized"), checkpoint=path, resume=True)
    assert result.answers == whole.answers
    assert result.origins[0] == "normalized" and result.origins[1] == "resumed"
    check(ROWS, result)


@pytest.mark.parametrize(
    "change",
    [merging(), merging("normalized", {"a": ("case",)}), merging("semantic", embedder=HashedTrigrams())],
    ids=lambda options: options["dedup"],
)
def test_a_checkpoint_does_not_serve_other_deduplication(tmp_path, change):
    path = tmp_path / "c"
    ask(ROWS, dedup=merging("normalized"), checkpoint=path)
    with pytest.raises(RelationalError, match=r"not the same: deduplication\)"):
        ask(ROWS, dedup=change, checkpoint=path, resume=True)


# --------------------------------------------------------------------------------------------------------- cache
@given(tables, modes)
def test_a_second_run_asks_nothing_and_ends_the_same(tmp_path_factory, rows, dedup):
    path, engine = tmp_path_factory.mktemp("run") / "cache.db", FakeEngine()
    first = ask(rows, dedup=dedup, nulls="keep", cache=path)
    second = ask(rows, engine, dedup=dedup, nulls="keep", cache=path)
    assert engine.asked == [] and second.answers == first.answers
    assert second.report.num_cached == first.report.num_asked == second.origins.count("cached")
    assert second.report.num_asked == second.report.num_resumed == 0
    check(rows, second)


def test_the_cache_serves_other_tables_and_only_the_rest_is_asked(tmp_path):
    ask(ROWS[:4], cache=tmp_path / "c.db")
    engine = FakeEngine()
    result = ask(ROWS[::-1], engine, cache=tmp_path / "c.db")
    assert sorted(row_of(prompt)["a"] for prompt in engine.asked) == ["Bad", "Ugly", "bad."]
    check(ROWS[::-1], result)


def test_failed_and_unusable_answers_are_not_cached(tmp_path):
    path, yes_no = tmp_path / "c.db", Choice(("yes", "no"))
    bad = FakeEngine(lambda row: "yes" if row["a"] == "Good" else "perhaps", fails=[4])
    assert ask(ROWS, bad, yes_no, cache=path).num_failed == 6
    engine = FakeEngine(lambda row: "no")
    result = ask(ROWS, engine, yes_no, cache=path)
    assert result.answers == ["yes"] + ["no"] * 6 and len(engine.asked) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"answer_format": FreeText(9)},
        {"system_prompt": "Hello."},
        {"engine": FakeEngine(model="other")},
        {"order": "original"},
        {"pin": ("b",)},
        {"rows": [row | {"b": "K"} for row in ROWS]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_cache_does_not_serve_another_question(tmp_path, change):
    ask(ROWS, cache=tmp_path / "c.db")
    job = {"rows": ROWS, "engine": FakeEngine(), "cache": tmp_path / "c.db"} | change
    assert ask(**job).report.num_cached == 0


def test_a_cached_answer_is_in_the_checkpoint_too(tmp_path):
    ask(ROWS, cache=tmp_path / "c.db")
    with pytest.raises(EngineDiedError, match="6 answers are in"):
        ask(
            [*ROWS, {"a": "new", "b": "k"}],
            FakeEngine(dies_after=0),
            cache=tmp_path / "c.db",
            checkpoint=tmp_path / "c",
        )
    lines = (tmp_path / "c").read_text().splitlines()
    assert sorted(json.loads(line)[0] for line in lines[1:]) == [0, 1, 2, 4, 5, 6]


def test_a_bad_cache_file_is_refused_before_the_engine_starts(tmp_path):
    class NeverStarts(FakeEngine):
        def start(self):
            pytest.fail("started")

    (tmp_path / "c.db").write_text("not a database " * 99)
    with pytest.raises(RelationalError, match="cannot open the result cache"):
        ask(ROWS, NeverStarts(), cache=tmp_path / "c.db")


# --------------------------------------------------------------------------------------------------------- audit
def by_first_field(row: dict) -> str:
    """An answer that depends on the order of the fields."""
    return next(iter(row))


def test_an_audit_sees_what_the_order_of_fields_changes():
    rows = [{"a": str(i), "b": "k"} for i in range(20)]
    result = ask(rows, FakeEngine(by_first_field), audit=8)
    asked, merged = result.report.audit.samples
    assert set(result.answers) == {"b"}
    assert (asked.population, asked.num_asked, asked.num_agreed) == (20, 8, 0)
    assert asked.changed[0][1:] == ("b", "a") and asked.high < 0.4
    assert (merged.population, merged.num_asked, merged.share) == (0, 0, None)


def test_an_audit_sees_what_merging_changes_and_nothing_else():
    rows = [{"a": text, "b": "k"} for text in ["x", "X", "x!", "y", "Y"]]
    dedup = merging("normalized")
    result = ask(rows, FakeEngine(lambda row: by_first_field(row) + row["a"]), dedup=dedup, audit=99)
    asked, merged = result.report.audit.samples
    assert (asked.num_asked, merged.num_asked, merged.num_agreed) == (2, 3, 0)
    assert [row for row, _, _ in merged.changed] == [1, 2, 4]
    same = ask(rows, FakeEngine(lambda row: row["a"].lower()[:1]), dedup=dedup, audit=99)
    assert [sample.share for sample in same.report.audit.samples] == [1.0, 1.0]


@given(tables, modes, st.integers(1, 20), st.integers(0, 5))
def test_an_audit_disturbs_nothing_and_is_repeatable(rows, dedup, audit, seed):
    plain = ask(rows, dedup=dedup, nulls="keep", seed=seed)
    first, second = (ask(rows, dedup=dedup, nulls="keep", audit=audit, seed=seed) for _ in range(2))
    assert (first.answers, first.origins) == (plain.answers, plain.origins)
    assert first.report.audit == second.report.audit
    assert first.report.measured_prompt_tokens == plain.report.measured_prompt_tokens
    asked, merged = first.report.audit.samples
    assert asked.share == 1.0
    assert asked.num_asked == min(audit, plain.report.num_distinct)
    beyond = sum(rows for step, rows in plain.report.dedup.merged.items() if step != "exact")
    assert merged.population == sum(origin in ("normalized", "semantic") for origin in plain.origins) == beyond


def test_another_seed_draws_other_rows():
    rows = [{"a": str(i)} for i in range(50)]
    drawn = []
    for seed in (1, 2):
        engine = FakeEngine()
        ask(rows, engine, audit=5, seed=seed)
        drawn.append(sorted(prompt.key for prompt in engine.asked[50:]))
    assert drawn[0] != drawn[1] and len(drawn[0]) == 5


def test_an_engine_that_dies_in_the_audit_loses_no_answer():
    result = ask(ROWS, FakeEngine(dies_after=None), audit=0)
    engine = FakeEngine()
    whole = engine.ask
    engine.ask = lambda prompts, answer_format: whole(prompts, answer_format) if not engine.asked else dying(prompts)
    audited = ask(ROWS, engine, audit=3)
    assert audited.answers == result.answers
    assert "the audit is incomplete: gone" in audited.report.audit.note


def dying(prompts):
    raise EngineDiedError("gone")
    yield


def test_failed_rows_are_not_audited_and_failures_in_the_audit_are_counted():
    engine = FakeEngine(fails=[0])
    result = ask(ROWS, engine, audit=99)
    asked, _ = result.report.audit.samples
    assert asked.population == 5 and asked.num_failed == 0 and asked.share == 1.0

"""What was answered before a run ended is in ``last_result``, however the run ended."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest
from fake_engine import FakeEngine

from vllm_relational import RelationalLLM
from vllm_relational.records import EngineDiedError, RelationalError, RowFailedError

TABLE = pa.table({"text": ["a", "b", "a", "c", None, "d"]})


class Stopped(FakeEngine):
    """Raises after so many answers."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__(lambda row: row["text"].upper())
        self.after, self.error = after, error

    def ask(self, prompts, answer_format):
        for number, completion in enumerate(super().ask(prompts, answer_format)):
            if number == self.after:
                raise self.error
            yield completion


@pytest.mark.parametrize("answered", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "the query was stopped"),
        (EngineDiedError("the engine died"), "the engine died"),
        (RuntimeError("out of memory"), "out of memory"),
        (SystemExit(3), "3"),
    ],
)
def test_answers_before_the_end_are_kept(answered, error, words):
    llm = RelationalLLM(engine=Stopped(answered, error))
    with pytest.raises(type(error)):
        llm.run(TABLE, "{text}?", order="original")
    result = llm.last_result
    expected = {"a": "A", "b": "B", "c": "C", "d": "D"}
    done = ["a", "b", "c", "d"][:answered]
    for text, answer, reason, origin in zip(
        TABLE["text"].to_pylist(), result.answers, result.errors, result.origins, strict=True
    ):
        assert answer == (expected[text] if text in done else None)
        assert (reason is None) == (text in done) == (origin != "failed")
        assert text in done or reason.startswith("null cell" if text is None else "interrupted: not answered before")
        assert text in done or text is None or words in reason
    assert result.report.num_failed == sum(reason is not None for reason in result.errors)
    assert result.report.failures["null cell"] == 1


def test_rows_that_were_merged_share_what_was_kept():
    llm = RelationalLLM(engine=Stopped(1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        llm.run(pa.table({"text": ["a", "A", "b"]}), "{text}?", dedup="normalized", order="original")
    assert llm.last_result.answers == ["A", "A", None]


def test_a_failed_row_that_ends_the_run_keeps_its_own_reason():
    engine = FakeEngine(lambda row: row["text"], fails=[1])
    llm = RelationalLLM(engine=engine)
    with pytest.raises(RowFailedError):
        llm.run(TABLE.slice(0, 4), "{text}?", on_error="raise", order="original")
    assert llm.last_result.answers == ["a", None, "a", None]
    assert "refused by the fake engine" in llm.last_result.errors[1]
    assert llm.last_result.errors[3].startswith("interrupted")


def test_an_interrupted_run_with_a_checkpoint_goes_on(tmp_path):
    place = {"checkpoint": tmp_path / "c.jsonl", "order": "original"}
    llm = RelationalLLM(engine=Stopped(2, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        llm.run(TABLE, "{text}?", **place)
    other = RelationalLLM(engine=FakeEngine(lambda row: row["text"].upper()))
    assert other.run(TABLE, "{text}?", resume=True, **place).answers == ["A", "B", "A", "C", None, "D"]
    assert len(other.engine.asked) == 2


def test_an_interrupted_audit_keeps_the_whole_result():
    class Once(FakeEngine):
        def ask(self, prompts, answer_format):
            if self.asked:
                raise KeyboardInterrupt
            yield from super().ask(prompts, answer_format)

    llm = RelationalLLM(engine=Once(lambda row: row["text"]))
    with pytest.raises(KeyboardInterrupt):
        llm.run(TABLE, "{text}?", audit=2)
    assert llm.last_result.answers == ["a", "b", "a", "c", None, "d"]


def test_a_query_that_is_wrong_leaves_the_last_result():
    llm = RelationalLLM(engine=FakeEngine(lambda row: row["text"]))
    llm.query(pd.DataFrame({"text": ["x"]}), "{text}?")
    with pytest.raises(RelationalError):
        llm.query(pd.DataFrame({"text": ["y"]}), "{other}?")
    assert llm.last_result.answers == ["x"]

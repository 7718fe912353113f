"""An answer that is not whole is not an answer; a text that was cut off is one as far as it goes, and says so."""

from __future__ import annotations

import pytest

from vllm_relational.records import Choice, Completion, FreeText, IntegerRange, JsonSchema
from vllm_relational.results.outcome import admitted, checked, row_statuses
from vllm_relational.results.parse import parser

WHOLE_OR_NOTHING = [(Choice(("no", "not sure")), "no"), (IntegerRange(0, 20), "1"), (JsonSchema({}), "1")]


def test_a_text_that_was_cut_off_is_kept_and_marked():
    completion = Completion(3, "a long st", output_tokens=4, cut=True)
    assert checked(completion, parser(FreeText(4))) == completion
    assert admitted("a long st", parser(FreeText(4)), cut=True)


@pytest.mark.parametrize(("answer_format", "text"), WHOLE_OR_NOTHING)
def test_half_an_answer_is_never_read_as_a_whole_one(answer_format, text):
    parse = parser(answer_format)
    assert checked(Completion(0, text), parse).text == text
    for counted, words in ((8, "cut off after 8 tokens"), (0, "the answer was cut off: half")):
        found = checked(Completion(0, text, output_tokens=counted, cut=True), parse)
        assert found.text is None and found.error.startswith("unusable answer: ")
        assert words in found.error and "raise --max-tokens" in found.error
    assert admitted(text, parse) and not admitted(text, parse, cut=True)


@pytest.mark.parametrize(("answer_format", "text"), [(FreeText(), "so"), *WHOLE_OR_NOTHING])
def test_a_thought_is_not_kept_and_what_follows_is_read(answer_format, text):
    found = checked(Completion(0, f"<think>yes or\nno, 7?</think>\n\n{text}"), parser(answer_format))
    assert (found.text, found.error) == (text, None)


@pytest.mark.parametrize("answer_format", [FreeText(), *(answer_format for answer_format, _ in WHOLE_OR_NOTHING)])
@pytest.mark.parametrize("cut", [True, False])
def test_a_thought_without_end_is_no_answer(answer_format, cut):
    found = checked(Completion(0, "<think>no 1", cut=cut), parser(answer_format))
    assert found.text is None
    assert found.error == "unusable answer: the answer is a thought that does not end: raise --max-tokens (max_tokens=)"


@pytest.mark.parametrize("answer_format", [FreeText(), *(answer_format for answer_format, _ in WHOLE_OR_NOTHING)])
@pytest.mark.parametrize("text", ["", " \n", None, "<think>hm</think>\n"])
def test_an_empty_text_is_no_answer(answer_format, text):
    found = checked(Completion(0, text), parser(answer_format))
    assert found.text is None and found.error.startswith("unusable answer: the answer is empty")


def test_a_thought_in_an_old_store_is_not_served():
    assert parser(FreeText())("<think>hm</think> so ") == "so"
    assert not admitted("<think>hm", parser(FreeText()))


def test_rows_have_the_status_of_the_row_that_was_asked_for_them():
    statuses = row_statuses([None, "why", None, None], [0, -1, 0, 3], {0})
    assert statuses == ["cut", "failed", "cut", "ok"]

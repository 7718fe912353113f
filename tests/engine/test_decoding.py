"""Which tokens stand for which label, and how what vLLM gives back is read; no engine is started."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vllm_relational.engine import decoding, vllm_engine
from vllm_relational.engine.decoding import DecodedAnswer, all_spellings, first_tokens, plan_decision
from vllm_relational.records import Choice, FreeText, JsonSchema, Prompt


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch):
    monkeypatch.setattr(decoding, "_sampling", lambda **_: None)


class WordTokenizer:
    """One token a word, a leading space included in the word."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        words = text.replace(" ", "\x00 ").split("\x00")
        return [self.ids.setdefault(word, len(self.ids)) for word in words if word]


def labels_by_word(labels: tuple[str, ...]) -> dict[str, str] | None:
    tokenizer = WordTokenizer()
    found = first_tokens(labels, tokenizer)
    names = {number: word for word, number in tokenizer.ids.items()}
    return None if found is None else {names[token]: label for token, label in found.items()}


def test_a_label_may_be_spelled_in_other_cases_and_after_a_space():
    words = labels_by_word(("yes", "no"))

    assert {word for word, label in words.items() if label == "yes"} == {"yes", "Yes", "YES", " yes", " Yes", " YES"}
    assert set(words.values()) == {"yes", "no"}


def test_labels_with_one_first_token_need_a_grammar():
    assert labels_by_word(("very good", "very bad")) is None


def test_a_label_that_begins_another_needs_a_grammar():
    assert labels_by_word(("no", "not sure", "yes")) is None
    assert labels_by_word(("No", "not sure", "yes")) is None


def test_spellings_that_two_labels_share_stand_for_neither():
    texts = all_spellings(("US", "us dollar", "Us"))

    assert texts.count("US") == 1 and texts.count("Us") == 1 and "us" not in texts


# ------------------------------------------------------------------------------------------------- what vLLM gave back
def output(text: str, finish: str | None, *token_ids: int) -> SimpleNamespace:
    return SimpleNamespace(text=text, finish_reason=finish, token_ids=token_ids)


@pytest.mark.parametrize("answer_format", [FreeText(4), JsonSchema({}), Choice(("very good", "very bad"))])
def test_a_text_is_whole_cut_or_none(answer_format):
    read = plan_decision(answer_format, WordTokenizer()).read
    assert read(output("so", "stop")) == DecodedAnswer("so")
    assert read(output("so", "length")) == DecodedAnswer("so", cut=True)
    for finish in ("abort", "error", "repetition", None):
        assert read(output("so", finish)) == DecodedAnswer(
            None, f"the engine stopped the answer (finish reason {finish})"
        )


def test_a_label_of_one_token_is_whole_with_it():
    tokenizer = WordTokenizer()
    read = plan_decision(Choice(("yes", "no")), tokenizer).read
    assert read(output("", "length", tokenizer.ids[" No"])) == DecodedAnswer("no")
    assert read(output("", "length", 99)).error and read(output("", "stop")).error
    assert "abort" in read(output("", "abort", tokenizer.ids["yes"])).error


def test_a_label_without_tokens_needs_a_grammar():
    tokenizer = WordTokenizer()
    assert first_tokens(("", "no"), tokenizer) is None


@pytest.mark.parametrize(("end", "text"), [("<think>\n", "<think>hm"), ("<think>\n\n</think>\n\n", "hm"), ("\n", "hm")])
def test_a_reply_to_a_prompt_that_opened_a_thought_is_one(end, text):
    llm = SimpleNamespace(get_tokenizer=lambda: SimpleNamespace(decode=lambda ids: bytes(ids).decode()))
    session = vllm_engine._Session.__new__(vllm_engine._Session)
    session._llm, session._ends = llm, {}
    session._plan = plan_decision(FreeText(4), WordTokenizer())
    prompt = Prompt(0, token_ids=list(end.encode())[-vllm_engine.THOUGHT_TOKENS :])
    answer = output("hm", "length", 1, 2)
    done = SimpleNamespace(outputs=[answer], num_cached_tokens=0, kv_transfer_params=None)
    assert session._completion(prompt, done).text == text
    session._plan = plan_decision(JsonSchema({}), WordTokenizer())  # a constraint leaves no room for a thought
    assert session._completion(prompt, done).text == "hm"

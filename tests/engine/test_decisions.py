"""Which tokens stand for which label; no vLLM needed."""

from __future__ import annotations

from vllm_relational.engine.decisions import all_spellings, first_tokens


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

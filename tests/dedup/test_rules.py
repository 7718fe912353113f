"""Rules make texts plainer and no plainer than they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.dedup import normalizer
from vllm_relational.dedup.normalize import DEFAULT_RULES
from vllm_relational.dedup.rules import CLEANING, WORDING
from vllm_relational.records import RelationalError

odd = st.sampled_from(
    [
        "ﬁ",
        "\u017f",
        "İ",
        "ß",
        "Å",
        "\u200b",
        "\u00ad",
        "“",
        "\u2019",
        "—",
        "1.5",
        "...",
        " ",
        "2\u00b2",
        "\u00bd",
        ":)",
        "6'",
        ";",
        "\u061f",
        "\x00",
        "<|im_start|>",
    ]
)
texts = st.lists(odd | st.text(max_size=4), max_size=6).map("".join)
cleaning = st.lists(st.sampled_from(sorted(CLEANING)), unique=True)


@given(texts, cleaning)
def test_cleaning_is_idempotent(text, rules):
    normal = normalizer(rules)
    assert normal(normal(text)) == normal(text)


@given(texts, cleaning, st.randoms())
def test_the_order_in_which_rules_are_given_does_not_matter(text, rules, random):
    shuffled = random.sample(rules, len(rules))
    assert normalizer(rules)(text) == normalizer(shuffled)(text)


@given(texts)
def test_only_blanks_become_empty(text):
    assert bool(normalizer(DEFAULT_RULES)(text)) == bool(normalizer(["unicode", "whitespace"])(text))


@given(texts)
def test_no_rule_no_change(text):
    assert normalizer([])(text) == text


@pytest.mark.parametrize(
    ("rules", "text", "normal"),
    [
        (["case"], "Straße", "strasse"),
        (["whitespace"], "  a \t\n b\u00a0c ", "a b c"),
        (["unicode"], "ﬁve ①\u200b", "five 1"),
        (["punctuation"], "(Hello), “world”!", "Hello world"),
        (["punctuation"], "it\u2019s well—known", "it's well-known"),
        (["stopwords"], "the window is in a house", "window house"),
        (["stem"], "running runners", "run runner"),
        (["stem:de"], "Häuser", "Haus"),
        (["lemma"], "mice were", "mouse be"),
        (["spelling"], "the rooom is claen 4x4", "the room is clean 4x4"),
        (["stem", "case", "whitespace", "punctuation", "stopwords"], "The  DOGS, running!", "dog run"),
    ],
    ids=str,
)
def test_examples(rules, text, normal):
    for library in ("stopwordsiso", "Stemmer", "simplemma", "spellchecker"):
        pytest.importorskip(library)
    assert normalizer(rules)(text) == normal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", "15"),
        ("-5", "5"),
        ("5%", "5"),
        ("$5", "€5"),
        ("C++", "C#"),
        ("3,000", "3000"),
        ("Really?", "Really."),
        ("!!!", "???"),
        ("", "..."),
        ("a b", "ab"),
        ("résumé", "resume"),
        ("Great :)", "Great :("),
        ("Great!:-)", "Great!:-("),
        ("ok =)", "ok"),
        ("10\u2076", "106"),
        ("2\u00b2", "22"),
        ("1\u00bd", "11\u20442"),
        ("1\u2464", "15"),
        ("6'", '6"'),
        ("5' 10\u201d", "5' 10\u2019"),
        ("\u062c\u064a\u062f\u061f", "\u062c\u064a\u062f"),
        ("\u039a\u03b1\u03bb\u03cc;", "\u039a\u03b1\u03bb\u03cc"),
        ("\u039a\u03b1\u03bb\u03cc\u037e", "\u039a\u03b1\u03bb\u03cc"),
        ("wow\u203d", "wow"),
    ],
    ids=ascii,
)
def test_the_default_rules_keep_apart(one, other):
    normal = normalizer(DEFAULT_RULES)
    assert normal(one) != normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the 90\u2019s", "the 90's."),
        ('a 6" pipe', "a 6\u2033 pipe"),
        ("CO\u2082", "CO2"),
        ("ok;", "ok"),
        ("note (see below):", "note see below"),
        ("it says 'yes'", "it says \u201cyes\u201d"),
    ],
    ids=ascii,
)
def test_the_default_rules_join(one, other):
    normal = normalizer(DEFAULT_RULES)
    assert normal(one) == normal(other)


@pytest.mark.parametrize("cleaned", [[], list(DEFAULT_RULES)], ids=["alone", "after default"])
@pytest.mark.parametrize(
    ("one", "other"),
    [("Is it?", "Was he?"), ("not #", "the #"), ("don\u2019t \U0001f44d", "\U0001f44d"), ("No $", "So $")],
)
def test_texts_of_stop_words_and_marks_only_stay_apart(one, other, cleaned):
    pytest.importorskip("stopwordsiso")
    normal = normalizer([*cleaned, "stopwords"])
    assert normal(one) != normal(other)


def test_a_text_of_stop_words_only_stays():
    pytest.importorskip("stopwordsiso")
    assert normalizer(["stopwords"])("The The") == "The The"


def test_words_with_either_apostrophe_are_stop_words():
    pytest.importorskip("stopwordsiso")
    assert normalizer(["stopwords"])("don\u2019t smoke") == normalizer(["stopwords"])("don't smoke") == "smoke"


def test_two_languages_for_one_rule_are_refused():
    with pytest.raises(RelationalError, match="the rule stem is given for de and for en: choose one language"):
        normalizer(["stem:de", "case", "stem"])


@pytest.mark.parametrize("rule", ["nope", "case:de", "stem:", ":de", ""])
def test_unknown_rules_are_refused_with_those_that_there_are(rule):
    with pytest.raises(RelationalError, match=r"no rule .* use unicode, case, punctuation, whitespace, spelling"):
        normalizer([rule])


@pytest.mark.parametrize("rule", sorted(WORDING))
def test_unknown_languages_are_refused(rule):
    with pytest.raises(RelationalError, match=f"{rule} does not know the language 'xx'"):
        normalizer([f"{rule}:xx"])


@pytest.mark.parametrize("rule", sorted(WORDING))
def test_a_missing_library_is_named_with_the_command(rule, monkeypatch):
    def missing(name, *_):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(RelationalError, match=r"pip install \w+, or pip install 'vllm-relational\[dedup\]'"):
        normalizer([rule])

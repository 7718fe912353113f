"""The rules of normalised deduplication: each turns a text into a plainer one; libraries know the languages.

A rule is named ``name`` or ``name:language`` (ISO 639-1, English by default). Whatever the order in which they are
given, rules run in the order of ``CLEANING`` and then of ``WORDING``. No rule leaves a text without words, or empty:
where it would, the text stays as it was before that rule, so that neither '!!!' and '???' nor, without stop words,
'Is it?' and 'Was he?' become equal. Only blanks become empty.
"""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import regex

from vllm_relational.records import RelationalError

Rule = Callable[[str], str]
DEFAULT_LANGUAGE = "en"
# One pass can make room for another (folding case can undo NFKC); real texts settle in two.
MAX_PASSES = 8
WORDS_KEPT = 200_000  # answers of a dictionary that are remembered

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['\u2019][\p{L}\p{M}]+)*")
_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
# Powers, fractions and the like after a digit: plain, 10\u2076 would be 106 and 1\u00bd would be 11/2.
_POWER = regex.compile(r"(?<=\p{N})(\p{No}+)")
_DASH = regex.compile(r"\p{Dash}")
# Feet and inches (minutes and seconds) as quotes: 6' is not 6".
_INCHES, _FEET = regex.compile(r"(?<=\p{N})[\"\u201d]"), regex.compile(r"(?<=\p{N})['\u2019](?!\p{L})")
_QUOTE = regex.compile(r"\p{Quotation_Mark}")
# A question mark says something, in any script; Unicode has no property for them.
_QUESTION = r"?\u037e\u055e\u061f\u1367\u1945\u203d\u2047-\u2049\u2cfa\u2cfb\ua60f\ua6f7\ufe16\ufe56\uff1f\U00011143"
_SMILEY = r"[:;=]['\-]?[()\[\]]+"  # with the quotes and dashes made alike
# Marks that close or enclose; signs such as #, %, & and $ stay. In Greek the semicolon is the question mark.
_MARK = (
    rf"(?!{_SMILEY})(?!(?<=\p{{Greek}});)"
    rf"[[\p{{Terminal_Punctuation}}\p{{Quotation_Mark}}\p{{Ps}}\p{{Pe}}]--[{_QUESTION}]]"
)
_NOISE = regex.compile(
    rf"(?V1){_SMILEY}(*SKIP)(*FAIL)"
    rf"|(?<![\p{{L}}\p{{M}}\p{{N}}])(?:{_MARK})+(?!\p{{N}})|(?:{_MARK})+(?![\p{{L}}\p{{M}}\p{{N}}])"
)


def _unicode(text: str) -> str:
    """Compatibility forms made alike, invisible characters dropped (NFKC; Unicode 3.13, toNFKC_Casefold)."""
    if text.isascii():
        return text
    pieces = _POWER.split(str(_IGNORABLE.sub("", text)))  # every other piece is powers
    pieces[::2] = [unicodedata.normalize("NFKC", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _case(text: str) -> str:
    return text.casefold()


def _punctuation(text: str) -> str:
    """Quotes and dashes made alike; what closes or encloses words dropped, unless a number or a word goes on: 1.5."""
    primes = _FEET.sub("\u2032", _INCHES.sub("\u2033", text))
    return str(_NOISE.sub("", _QUOTE.sub("'", _DASH.sub("-", primes))))


def _whitespace(text: str) -> str:
    return " ".join(text.split())


CLEANING: dict[str, Rule] = {
    "unicode": _unicode,
    "case": _case,
    "punctuation": _punctuation,
    "whitespace": _whitespace,
}


# ---------------------------------------------------------------------------------------------- rules about words
def _spelling(language: str) -> Rule:
    """Unknown words -> the commonest known word one edit away; names and words with digits may suffer."""
    spell = _ready("pyspellchecker", "spellchecker", language, lambda m: m.SpellChecker(language=language, distance=1))
    return _each_word(lambda word: spell.correction(word) or word if word.isalpha() else word)


def _stopwords(language: str) -> Rule:
    """Common words dropped. The list is long: 'not' and 'best' are on it, so texts that contradict may become equal."""
    library = _library("stopwordsiso", "stopwordsiso")
    if not library.has_lang(language):
        raise _no_language("stopwords", language)
    words = library.stopwords(language)
    drop = _each_word(lambda word: "" if word.casefold().replace("\u2019", "'") in words else word)
    return lambda text: _whitespace(drop(text))


def _lemma(language: str) -> Rule:
    library = _library("simplemma", "simplemma")
    _ready("simplemma", "simplemma", language, lambda m: m.lemmatize("a", lang=language), "lemma")
    return _each_word(lambda word: str(library.lemmatize(word, lang=language)))


def _stem(language: str) -> Rule:
    stemmer = _ready("PyStemmer", "Stemmer", language, lambda m: m.Stemmer(language), "stem")
    return _each_word(stemmer.stemWord)


WORDING: dict[str, Callable[[str], Rule]] = {
    "spelling": _spelling,
    "stopwords": _stopwords,
    "lemma": _lemma,
    "stem": _stem,
}


def _each_word(change: Callable[[str], str]) -> Rule:
    remembered = lru_cache(WORDS_KEPT)(change)
    return lambda text: str(_WORD.sub(lambda word: remembered(word[0]), text))


def _library(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RelationalError(
            f"this rule needs the library {package}: pip install {package}, or pip install 'vllm-relational[dedup]'"
        ) from error


def _ready(package: str, module: str, language: str, make: Callable[[Any], Any], rule: str = "spelling") -> Any:
    """What the library makes for that language; its complaints about unknown ones are of many kinds."""
    library = _library(package, module)
    try:
        return make(library)
    except Exception as error:
        raise _no_language(rule, language) from error


def _no_language(rule: str, language: str) -> RelationalError:
    return RelationalError(f"the rule {rule} does not know the language {language!r}: give a code such as en, de or fr")


# ------------------------------------------------------------------------------------------------------ together
def normalizer(rules: Sequence[str]) -> Rule:
    """One function that applies the rules, each a name or ``name:language``.

    Without rules about words it is idempotent: cleaning runs until nothing changes. Raises ``RelationalError`` for an
    unknown rule or language and for a missing library.
    """
    named = _languages(rules)
    cleaning = [rule for name, rule in CLEANING.items() if name in named]
    wording = [make(named[name]) for name, make in WORDING.items() if name in named]
    if not wording:
        return lambda text: _settled(text, cleaning)
    return lambda text: _settled(_applied(_settled(text, cleaning), wording), cleaning)


def _languages(rules: Sequence[str]) -> dict[str, str]:
    """By name of a rule its language."""
    named: dict[str, str] = {}
    for name, language in map(_parse, rules):
        if named.setdefault(name, language) != language:
            raise RelationalError(f"the rule {name} is given for {named[name]} and for {language}: choose one language")
    return named


def _parse(text: str) -> tuple[str, str]:
    name, colon, language = (part.strip() for part in text.partition(":"))
    if name in CLEANING and not colon:
        return name, ""
    if name in WORDING and (language or not colon):
        return name, language or DEFAULT_LANGUAGE
    known = ", ".join([*CLEANING, *WORDING])
    raise RelationalError(f"no rule {text!r}: use {known}; those about words take a language: stem:de")


def _settled(text: str, cleaning: Sequence[Rule]) -> str:
    for _ in range(MAX_PASSES):
        cleaned = _applied(text, cleaning)
        if cleaned == text:
            break
        text = cleaned
    return text


def _applied(text: str, rules: Sequence[Rule]) -> str:
    for rule in rules:
        changed = rule(text)
        if _says_something(changed) or not _says_something(text):
            text = changed if changed.strip() or not text.strip() else text
    return text


def _says_something(text: str) -> bool:
    return _WORD.search(text) is not None

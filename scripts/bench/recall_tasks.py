"""Tasks in the manner of RULER (Hsieh et al., 2024) and InfiniteBench (Zhang et al., 2024) that need no download.

Written from their descriptions: something is hidden in a long text and asked for at its end. Everything follows from
the seed. ``solve`` answers each task from its text by string search: the tests hold generators and scoring to it.

    single      one code hidden in natural text
    multikey_2  a text that is nothing but such lines, with words as keys and numbers as values; one is asked for
    multikey_3  the same with random identifiers as keys and values
    variables   a chain of assignments hidden in natural text; all variables of one value are asked for
    frequent    made-up words, drawn by Zipf's law; the three most frequent are asked for
    kv          a JSON object of random identifiers; the value of one key is asked for
    passkey     one code of five digits hidden in a few sentences that repeat
    numbers     the same with ten digits, each of which stands twice: a copy that skips or repeats one is wrong
"""

from __future__ import annotations

import json
import random
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Count = Callable[[str], int]
"""Tokens of a text."""

COLOURS = (
    "amber", "azure", "beige", "black", "bronze", "coral", "crimson", "golden", "green", "indigo", "ivory",
    "lilac", "olive", "pearl", "purple", "ruby",
)  # fmt: skip
THINGS = (
    "anchor", "basket", "bridge", "candle", "castle", "compass", "engine", "falcon", "garden", "hammer",
    "harbour", "island", "kettle", "lantern", "market", "meadow", "mirror", "needle", "orchard", "parcel",
    "pigeon", "ribbon", "saddle", "shovel", "statue", "temple", "tunnel", "violin",
)  # fmt: skip
NOISE = "The lake is calm. Boats lie on the shore. A bird flies over the hill. Then the day begins again."
CHAIN = 5
SPARE = 0.98
CODE = r"The secret code of (.+) is (.+)\."
ZIPF = 2.0


@dataclass(frozen=True)
class Sample:
    """A question over a long text. The model is to continue ``cue``; ``answers`` must all be in what it writes."""

    task: str
    text: str
    question: str
    cue: str
    answers: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the user asks."""
        return f"{self.text}\n\n{self.question}"


def score(sample: Sample, output: str) -> float:
    """Share of the answers that the output holds."""
    return sum(answer in output for answer in sample.answers) / len(sample.answers)


class Haystack:
    """Natural text to hide things in: passages, with the tokens of each counted once."""

    def __init__(self, passages: Sequence[str], count: Count) -> None:
        self.passages = [passage for passage in passages if passage.strip()]
        self.sizes = [count(passage) + 1 for passage in self.passages]  # and the line's end

    def some(self, draw: random.Random, budget: int) -> list[str]:
        """Passages that follow each other from a random one on, of ``budget`` tokens at most."""
        at, taken = draw.randrange(len(self.passages)), []
        while self.sizes[at] <= budget:
            budget -= self.sizes[at]
            taken.append(self.passages[at])
            at = (at + 1) % len(self.passages)
        return taken


def hide(draw: random.Random, lines: list[str], needles: Sequence[str]) -> str:
    """The lines with the needles between them, at random places, in their order."""
    places = sorted(draw.sample(range(len(lines) + 1), len(needles)))
    for place, needle in sorted(zip(places, needles, strict=True), reverse=True):
        lines.insert(place, needle)
    return "\n".join(lines)


def distinct(make: Callable[[], str]) -> Callable[[], str]:
    """``make`` without repeats."""
    seen: set[str] = set()

    def one() -> str:
        while (made := make()) in seen:
            pass
        seen.add(made)
        return made

    return one


def identifier(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def number(draw: random.Random) -> str:
    return str(draw.randint(1_000_000, 9_999_999))


def code_line(key: str, value: str) -> str:
    return f"The secret code of {key} is {value}."


def ask_for_code(task: str, text: str, key: str, value: str) -> Sample:
    question = f"The text above holds a secret code of {key}. What is it? Answer with the code alone."
    return Sample(task, text, question, f"The secret code of {key} is", (value,))


def single(draw: random.Random, budget: int, haystack: Haystack, count: Count) -> Sample:
    key, value = f"the {draw.choice(COLOURS)} {draw.choice(THINGS)}", number(draw)
    needle = code_line(key, value)
    lines = haystack.some(draw, budget - count(needle) - 1)
    return ask_for_code("single", hide(draw, lines, [needle]), key, value)


def fill(budget: int, make: Callable[[], str], separator: str, count: Count) -> list[str]:
    """Parts that ``make`` makes, as many as fit in the budget by the mean size of some, with a little to spare."""
    some = [make() for _ in range(100)]
    size = count(separator.join(some)) / len(some)
    return [*some, *(make() for _ in range(len(some), int(SPARE * budget / size)))][: int(SPARE * budget / size)]


def multikey(task: str, draw: random.Random, budget: int, count: Count, key: Callable, value: Callable) -> Sample:
    """Nothing but lines with a code; one is asked for."""
    next_key = distinct(key)
    lines = fill(budget, lambda: code_line(next_key(), value()), "\n", count)
    name, code = re.findall(f"^{CODE}$", draw.choice(lines))[0]
    return ask_for_code(task, "\n".join(lines), name, code)


def multikey_2(draw: random.Random, budget: int, haystack: Haystack, count: Count) -> Sample:
    def key() -> str:
        return f"the {draw.choice(COLOURS)} {draw.choice(COLOURS)} {draw.choice(THINGS)}"

    return multikey("multikey_2", draw, budget, count, key, lambda: number(draw))


def multikey_3(draw: random.Random, budget: int, haystack: Haystack, count: Count) -> Sample:
    return multikey("multikey_3", draw, budget, count, lambda: identifier(draw), lambda: identifier(draw))


def variables(draw: random.Random, budget: int, haystack: Haystack, count: Count) -> Sample:
    name = distinct(lambda: "".join(draw.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)))
    names, value = [name() for _ in range(CHAIN)], str(draw.randint(10_000, 99_999))
    steps = [value, *(f"VAR {each}" for each in names)]
    needles = [f"VAR {name} = {source}" for name, source in zip(names, steps, strict=False)]
    lines = haystack.some(draw, budget - count("\n".join(needles)) - CHAIN)
    question = (
        f"In the text above, variables are assigned values and other variables. Find all variables that have the value "
        f"{value}, directly or through others. There are {CHAIN} of them: answer with their names alone."
    )
    cue = f"The {CHAIN} variables with the value {value} are"
    return Sample("variables", hide(draw, lines, needles), question, cue, tuple(names))


def made_up_word(draw: random.Random) -> str:
    consonants, vowels = "bcdfghklmnprstvz", "aeiou"
    return "".join(draw.choice(letters) for letters in (consonants, vowels, consonants, vowels, consonants))


def frequent(draw: random.Random, budget: int, haystack: Haystack, count: Count) -> Sample:
    word = distinct(lambda: made_up_word(draw))
    words = [word() for _ in range(200)]
    weights = [(rank + 1) ** -ZIPF for rank in range(len(words))]
    drawn = fill(budget - 30, lambda: draw.choices(words, weights)[0], " ", count)
    drawn += [each for each in words[:3] for _ in range(3)]  # no tie for the third place
    draw.shuffle(drawn)
    best = tuple(each for each, _ in Counter(drawn).most_common(3))
    question = "Which three words are the most frequent in the list of words above? Answer with the three words alone."
    return Sample("frequent", " ".join(drawn), question, "The three most frequent words are", best)


def kv(draw: random.Random, budget: int, haystack: Haystack, count: Count) -> Sample:
    entries = fill(budget, lambda: f'"{identifier(draw)}": "{identifier(draw)}"', ",\n", count)
    pairs = json.loads("{" + ",".join(entries) + "}")
    key = draw.choice(list(pairs))
    question = f'What is the value of the key "{key}" in the JSON object above? Answer with the value alone.'
    return Sample("kv", json.dumps(pairs, indent=0), question, f'"{key}": "', (pairs[key],))


def in_noise(task: str, draw: random.Random, budget: int, count: Count, kind: str, value: str) -> Sample:
    """A ``kind`` of number in a text of one repeated line."""
    needle = f"The {kind} is {value}. Keep it in mind: {value} is the {kind}."
    lines = [NOISE] * int(SPARE * (budget - count(needle) - 2) / (count(f"{NOISE}\n" * 100) / 100))
    question = f"The text above holds a {kind}. What is it? Answer with the {kind} alone."
    return Sample(task, hide(draw, lines, [needle]), question, f"The {kind} is", (value,))


def passkey(draw: random.Random, budget: int, haystack: Haystack, count: Count) -> Sample:
    return in_noise("passkey", draw, budget, count, "pass key", str(draw.randint(10_000, 99_999)))


def numbers(draw: random.Random, budget: int, haystack: Haystack, count: Count) -> Sample:
    value = "".join(digit * 2 for digit in draw.choices("123456789", k=5))
    return in_noise("numbers", draw, budget, count, "sequence of digits", value)


TASKS = {each.__name__: each for each in (single, multikey_2, multikey_3, variables, frequent, kv, passkey, numbers)}
MAX_TOKENS = {
    "single": 11, "multikey_2": 11, "multikey_3": 38, "variables": 28, "frequent": 14, "kv": 38, "passkey": 8,
    "numbers": 13,
}  # fmt: skip
"""Tokens of an answer, after its cue, with room to spare."""


def make(task: str, seed: int, budget: int, haystack: Haystack, count: Count) -> Sample:
    """The sample of a task for a seed, its text of about ``budget`` tokens and not more."""
    return TASKS[task](random.Random(f"{task} {seed} {budget}"), budget, haystack, count)


def the_one(pattern: str, text: str) -> str:
    """What the pattern's group holds where it is found first."""
    found = re.search(pattern, text)
    assert found is not None
    return found[1]


def solve(sample: Sample) -> str:
    """The right answer, found in the sample's text and question by string search."""
    if sample.task == "frequent":
        return " ".join(word for word, _ in Counter(sample.text.split()).most_common(3))
    if sample.task == "kv":
        return json.loads(sample.text)[the_one(r'key "([^"]+)"', sample.question)]
    if sample.task == "variables":
        found = {the_one(r"value (\d+)", sample.question)}
        for name, source in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", sample.text, re.MULTILINE):
            found |= {name} if source in found else set()
        return " ".join(found)
    if sample.task in ("passkey", "numbers"):
        return the_one(r"(?m)^The [a-z ]+ is (\d+)\. Keep", sample.text)
    key = the_one(r"secret code of (.+)\. What", sample.question)
    return the_one(rf"(?m)^The secret code of {re.escape(key)} is (.+)\.$", sample.text)

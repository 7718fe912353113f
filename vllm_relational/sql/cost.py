"""What an LLM operator costs: tokens to seconds, by a calibration of the engine, or to dollars, by a price table.

The cost of an operator is its prompt tokens that the cache does not serve plus the tokens of its answers (arXiv
2403.05821 v1, section 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_relational.records import AnswerFormat, Choice, FreeText, IntegerRange, JsonSchema, RelationalError, RunReport


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch: its prompts, those of them that the cache serves, and its answers."""

    prompt: int = 0
    cached: int = 0
    output: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.cached + other.cached, self.output + other.output)

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that the cache serves; 0 without prompts."""
        return self.cached / self.prompt if self.prompt else 0.0

    def times(self, share: float) -> Tokens:
        """The tokens of a share of the rows, if they are like the others."""
        return Tokens(round(self.prompt * share), round(self.cached * share), round(self.output * share))


@dataclass(frozen=True)
class Rates:
    """How fast an engine is, in tokens a second over a whole batch: measure it with ``vllm-relational bench``."""

    prefill: float
    decode: float

    def __post_init__(self) -> None:
        if not (self.prefill > 0 and self.decode > 0):
            raise RelationalError(f"rates are {self.prefill} and {self.decode} tokens/s: both must be above 0")

    def seconds(self, tokens: Tokens) -> float:
        """The time of a batch: prompt tokens to compute, then answers."""
        return (tokens.prompt - tokens.cached) / self.prefill + tokens.output / self.decode


@dataclass(frozen=True)
class Prices:
    """Dollars a million tokens: prompt tokens computed, prompt tokens from the cache, and tokens of answers."""

    input: float
    cached: float
    output: float

    def __post_init__(self) -> None:
        if min(self.input, self.cached, self.output) < 0:
            raise RelationalError("a price is below 0: give dollars a million tokens")

    def dollars(self, tokens: Tokens) -> float:
        """The price of a batch."""
        computed = tokens.prompt - tokens.cached
        return (computed * self.input + tokens.cached * self.cached + tokens.output * self.output) / 1e6


def answer_tokens(answer_format: AnswerFormat) -> int:
    """Tokens that an answer takes, as far as the answer format tells: the longest for texts and JSON."""
    match answer_format:
        case Choice():
            return 1  # where first tokens differ, one decides
        case IntegerRange(low, high):
            return max(len(str(low)), len(str(high)))
        case FreeText(max_tokens) | JsonSchema(_, max_tokens):
            return max_tokens


def predicted(reports: Iterable[RunReport], answer_format: AnswerFormat) -> Tokens:
    """What the plans of some runs said."""
    total = Tokens()
    for report in reports:
        output = report.num_asked * answer_tokens(answer_format)
        total += Tokens(report.predicted.prompt_tokens, report.predicted.hit_tokens, output)
    return total


def measured(reports: Iterable[RunReport]) -> Tokens | None:
    """What the engine counted in some runs; None where it does not count or nothing was sent."""
    counted = [report for report in reports if report.measured_prompt_tokens is not None]
    if not counted:
        return None
    total = Tokens()
    for report in counted:
        total += Tokens(report.measured_prompt_tokens or 0, report.measured_cached_tokens or 0, report.output_tokens)
    return total

"""An answer format -> vLLM sampling parameters, and the way back from sampled tokens to text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_relational.records import AnswerFormat, Choice, FreeText, IntegerRange, JsonSchema

# Ranges up to this many numbers become a list of choices, longer ones a JSON integer.
MAX_LISTED_NUMBERS = 100
CUT_OFF = "length"
FINISHED = ("stop", CUT_OFF)  # of vLLM's reasons; abort, error and repetition leave no answer
# Room for a label or number in whatever way the model spells it: a token is at least one byte, plus end markers.
SPARE_TOKENS = 8


@dataclass(frozen=True)
class DecodedAnswer:
    """What one output of a request says: ``text`` or ``error``; cut: the text was stopped at the limit of tokens."""

    text: str | None
    error: str | None = None
    cut: bool = False


Reader = Callable[[Any], DecodedAnswer]


@dataclass(frozen=True)
class DecodingPlan:
    """params: ``vllm.SamplingParams``; read: one output of a request -> what it says; free: unconstrained."""

    params: Any
    read: Reader
    free: bool = False


def plan_decision(answer_format: AnswerFormat, tokenizer: Any) -> DecodingPlan:
    """How vLLM answers ``answer_format``: greedily, under the constraint, in one token where one token decides."""
    match answer_format:
        case FreeText(max_tokens):
            return DecodingPlan(_sampling(max_tokens=max_tokens), _read_text, free=True)
        case JsonSchema(schema, max_tokens):
            return DecodingPlan(_sampling(max_tokens=max_tokens, json=dict(schema)), _read_text)
        case IntegerRange(low, high) if high - low >= MAX_LISTED_NUMBERS:
            integer = {"type": "integer", "minimum": low, "maximum": high}
            room = max(len(str(low)), len(str(high))) + SPARE_TOKENS
            return DecodingPlan(_sampling(max_tokens=room, json=integer), _read_text)
        case IntegerRange(low, high):
            return _plan_choice(tuple(str(number) for number in range(low, high + 1)), tokenizer)
        case Choice(labels):
            return _plan_choice(labels, tokenizer)


def spellings(label: str) -> tuple[str, ...]:
    """The label and the ways in which a model may write it instead: ``yes``, ``Yes``, ``YES``.

    A model that means Yes but may only write yes or no picks between two tokens that it did not want: a 0.5B model
    asked about praise then answered no to every row.
    """
    return tuple(dict.fromkeys((label, label.lower(), label[:1].upper() + label[1:], label.upper())))


def all_spellings(labels: tuple[str, ...]) -> list[str]:
    """Spellings of all labels; those that two labels have in common are left out."""
    owners = Counter(text for label in labels for text in spellings(label))
    return [text for label in labels for text in spellings(label) if owners[text] == 1 or text == label]


def first_tokens(labels: tuple[str, ...], tokenizer: Any) -> dict[int, str] | None:
    """First token of each spelling -> label; None when the first token does not decide.

    It does not where two labels share it, or where one label begins another: there the model may spell the longer
    one with the shorter one's tokens. A first token that only other spellings share is left out.
    """
    if any(a != b and b.casefold().startswith(a.casefold()) for a in labels for b in labels):
        return None
    owners: dict[int, set[str]] = {}
    for label in labels:
        for text in spellings(label):
            for spaced in (text, f" {text}"):  # base models begin an answer with a space
                ids = tokenizer.encode(spaced, add_special_tokens=False)
                if ids:  # some tokenizers drop characters
                    owners.setdefault(ids[0], set()).add(label)
    plain = [tokenizer.encode(label, add_special_tokens=False)[:1] for label in labels]
    if any(not first or len(owners[first[0]]) > 1 for first in plain):
        return None
    return {token: min(found) for token, found in owners.items() if len(found) == 1}


def _plan_choice(labels: tuple[str, ...], tokenizer: Any) -> DecodingPlan:
    by_token = first_tokens(labels, tokenizer)
    if by_token is not None:
        params = _sampling(max_tokens=1, allowed_token_ids=list(by_token), detokenize=False)
        return DecodingPlan(params, _token_reader(by_token))
    texts = all_spellings(labels)
    room = max(len(text.encode()) for text in texts) + SPARE_TOKENS
    return DecodingPlan(_sampling(max_tokens=room, choice=texts), _read_text)


def _sampling(*, json: Any = None, choice: list[str] | None = None, **settings: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    if json is not None or choice is not None:
        settings["structured_outputs"] = StructuredOutputsParams(json=json, choice=choice)
    return SamplingParams(temperature=0.0, **settings)


def _token_reader(by_token: Mapping[int, str]) -> Reader:
    def read(output: Any) -> DecodedAnswer:
        whole = output.finish_reason in FINISHED and output.token_ids  # the label is whole with its only token
        label = by_token.get(output.token_ids[0]) if whole else None
        return DecodedAnswer(label) if label is not None else _no_answer(output)

    return read


def _read_text(output: Any) -> DecodedAnswer:
    if output.finish_reason not in FINISHED:
        return _no_answer(output)
    return DecodedAnswer(output.text, cut=output.finish_reason == CUT_OFF)


def _no_answer(output: Any) -> DecodedAnswer:
    return DecodedAnswer(None, f"the engine stopped the answer (finish reason {output.finish_reason})")

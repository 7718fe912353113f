"""prompts -> engine: the form of an answer, one prompt, one completion, one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FreeText:
    """Any text, at most ``max_tokens`` long."""

    max_tokens: int = 64


@dataclass(frozen=True)
class Choice:
    """Exactly one of the labels. max_tokens: room on a server, for a model that thinks first; None for the label's."""

    labels: tuple[str, ...]
    max_tokens: int | None = None


@dataclass(frozen=True)
class IntegerRange:
    """A whole number, both ends included. max_tokens: as for ``Choice``."""

    low: int
    high: int
    max_tokens: int | None = None


@dataclass(frozen=True)
class JsonSchema:
    """A JSON document that the schema admits, at most ``max_tokens`` long."""

    schema: Mapping[str, Any]
    max_tokens: int = 256


AnswerFormat = FreeText | Choice | IntegerRange | JsonSchema


@dataclass(frozen=True)
class Prompt:
    """One question. ``key`` is the first input row of its group.

    An engine that takes token ids reads ``token_ids``; one that talks to a chat endpoint reads ``system`` and
    ``user``. The unused form is empty.
    """

    key: int
    token_ids: Sequence[int] = ()
    system: str = ""
    user: str = ""


@dataclass(frozen=True)
class Completion:
    """What the engine says to one prompt: either ``text`` or ``error`` is set.

    prompt_tokens, output_tokens: as the engine counted them.
    cached_tokens: prompt tokens served from the KV cache; None where the engine does not say.
    loaded_tokens: those of them that came from stored contexts; 0 where the engine keeps none, or does not say.
    cut: the text was stopped at ``max_tokens``, not by the model.
    confidence: probability that the engine gives to this answer, 0 to 1; None where it does not say.
    """

    key: int
    text: str | None
    error: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    cut: bool = False
    confidence: float | None = None
    loaded_tokens: int = 0


@dataclass(frozen=True)
class EngineInfo:
    """What the plan needs to know of an engine.

    max_model_len:    tokens, prompt and answer together; None if the engine does not say.
    kv_cache_tokens:  size of the KV cache; None if unknown.
    block_size:       tokens a KV block; prefixes are reused in whole blocks.
    prefix_caching:   False when the engine reuses nothing.
    eviction:         which block goes when the KV cache is full, one of ``kv.policy.POLICIES``.
    fingerprint:      what else tells this model from others of its name, as far as known: weights, revision, precision.
    more_models:      models behind this engine that answer what ``model`` leaves, in that order; () for one model.
    num_caches:       prefix caches behind this engine: one an engine that it stands for.
    """

    model: str
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    block_size: int = 16
    prefix_caching: bool = True
    eviction: str = "lru"
    fingerprint: str = ""
    more_models: tuple[str, ...] = ()
    num_caches: int = 1

    @property
    def identity(self) -> str:
        """The chain of models that an answer may come from: what jobs and cached answers are told apart by."""
        return " -> ".join((self.model, *self.more_models))

"""Settings of DIPR attention: which tokens are attended to, and when a request is attended to densely."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from warnings import warn

from vllm_relational.records import RelationalError

# old name -> name; the old ones go with version 0.3
RENAMED_METHODS = {"pages": "topk_pages"}
RENAMED_SETTINGS = {"most_candidates": "max_candidates"}
METHODS = ("auto", "scan", "v_skip", "topk_pages", "dense")


@dataclass(frozen=True)
class DiprSettings:
    """``RelationalError`` for values that there are not.

    method:       ``scan`` reads a 4-bit index of the keys and the tokens that may matter; ``v_skip`` reads all keys and
                  the values that matter; ``topk_pages`` reads what groups of tokens have in common, and the groups that
                  promise most; ``dense`` reads all; ``auto`` chooses by length and batch (``optimizer.py``).
    approximate:  ``auto`` may choose ``topk_pages``, whose number of tokens does not depend on how many matter.
    top_tokens:   tokens that ``topk_pages`` attends to beside the window per KV head, rounded up to whole groups.
    alpha:        tokens with at least this share of the greatest attention weight are attended to: beta = -ln(alpha) /
                  softmax scale (arXiv 2504.10326, section 5). 0 attends to all tokens.
    alpha_length: where given, alpha is this number over the context length instead: beta grows with the length.
    tail:         tokens that are not attended to count with their estimated weight and the mean value of their group.
    pages_tail:   the same for ``topk_pages``, whose estimates are coarser: it was not worth the bytes.
    sinks, recent: tokens at the start and at the end of the context that are always attended to.
    dense_below:  tokens: shorter contexts are attended to densely.
    dense_layers: so many first layers are attended to densely.
    max_candidates: share of the body that a scan may keep; a part of it that keeps more is attended to densely.
    certificate:  report how much attention weight was only estimated; needs the tail.
    """

    method: str = "auto"
    alpha: float = 4e-3
    alpha_length: float | None = None
    tail: bool = True
    approximate: bool = False
    top_tokens: int = 2048
    pages_tail: bool = False
    sinks: int = 128
    recent: int = 512
    dense_below: int = 8192
    dense_layers: int = 2
    max_candidates: float = 0.5
    certificate: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", _current_method(self.method))
        _check(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        _check(_is_number(self.alpha) and 0 <= self.alpha <= 1, "alpha", self.alpha, "a share from 0 (all tokens) to 1")
        length = self.alpha_length
        _check(
            length is None or (_is_number(length) and length >= 0), "alpha_length", length, "a number of tokens or null"
        )
        for name in ("tail", "approximate", "pages_tail", "certificate"):
            _check(type(getattr(self, name)) is bool, name, getattr(self, name), "true or false")
        counts = {"sinks": 0, "recent": 1, "top_tokens": 16, "dense_below": 0, "dense_layers": 0}
        for name, least in counts.items():
            value = getattr(self, name)
            _check(type(value) is int and value >= least, name, value, f"a whole number, {least} or more")
        if self.certificate:
            kept = self.tail and (self.pages_tail or not self.may_choose_pages)
            needs = f"false without {'pages_tail' if self.tail else 'tail'}: it counts what estimates weigh"
            _check(kept, "certificate", True, needs)
        share = self.max_candidates
        _check(_is_number(share) and 0 < share <= 1, "max_candidates", share, "a share above 0 up to 1")

    @property
    def attends_to_all(self) -> bool:
        """Whether beta is infinite at every length."""
        return (self.alpha if self.alpha_length is None else self.alpha_length) == 0

    @property
    def counts_the_rest(self) -> bool:
        """Whether tokens that are not attended to count by estimates."""
        return self.pages_tail if self.method == "topk_pages" else self.tail

    @property
    def may_choose_pages(self) -> bool:
        """Whether an engine's method is ``topk_pages``, or may become it."""
        return self.method == "topk_pages" or self.approximate

    @property
    def block_size(self) -> int:
        """Tokens of a block that suit best: a group of the index is as large as a block allows, up to 64; for
        ``topk_pages`` 16, for it cannot tell which tokens of a large group matter."""
        return 16 if self.may_choose_pages else 64

    def beta(self, scale: float, seq_len: int) -> float:
        """How far below the greatest score ``q.k`` a token of a context of ``seq_len`` may be; infinite for all."""
        alpha = self.alpha if self.alpha_length is None else min(self.alpha_length / max(seq_len, 1), 1.0)
        return beta_of(alpha, scale) if alpha > 0 else math.inf


def beta_of(alpha: float, scale: float) -> float:
    """Attention weights of at least ``alpha`` times the greatest <=> scores of at least the greatest minus beta."""
    return -math.log(alpha) / scale


def read_dipr(given: Any) -> DiprSettings:
    """The settings in an object of names and values; ``RelationalError`` for others."""
    if not isinstance(given, Mapping):
        raise RelationalError(f"the dipr settings are {given!r}: they must be an object such as {{'alpha': 0.004}}")
    known = [field.name for field in fields(DiprSettings)]
    given = {_current_setting(name): value for name, value in given.items()}
    unknown = [name for name in given if name not in known]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise RelationalError(f"dipr has no setting {names}: there are {', '.join(known)}")
    return DiprSettings(**given)


def _current_method(name: Any) -> Any:
    """The name of a method today; warns of one that it had before."""
    new = RENAMED_METHODS.get(name, name) if isinstance(name, str) else name
    if new != name:
        warn(f"the dipr method {name!r} is called {new!r} now: the old name goes with version 0.3", stacklevel=4)
    return new


def _current_setting(name: Any) -> Any:
    """The name of a setting today; warns of one that it had before."""
    new = RENAMED_SETTINGS.get(name, name)
    if new != name:
        warn(f"the dipr setting {name!r} is called {new!r} now: the old name goes with version 0.3", stacklevel=4)
    return new


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _check(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise RelationalError(f"dipr setting {name} is {value!r}: it must be {right}")

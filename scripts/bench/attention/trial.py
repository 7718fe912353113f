"""A way to attend, written as one word, so that command lines, tables and plots share it.

    dense  window  recent:2048  dipr:4e-3  dipr:8/L  top:500  mass:0.95  scan:4e-3  scan_window:4e-3  estimated:4e-3
    pages:2048

``recent`` widens the window to so many of the last tokens, ``dipr`` keeps tokens by their share of the greatest
attention weight (``8/L``: 8 over the context's length), ``top`` keeps so many a head, ``mass`` keeps this much
attention mass (top-p). ``scan`` attends to all that the index cannot rule out under DIPR, ``scan_window`` and
``scan_global`` with another maximum (``selection.Scan``), ``estimated`` to what the index's products select, ``pages``
to so many tokens a KV head, in whole groups that are chosen without their codes, ``pages_middle`` and ``pages_box`` by
the middle or the upper end of what their products may be. Behind it may stand, in this order: ``@3/64``, an index of 3
bits in groups of 64 tokens instead of 4 in 16; ``+tail``, the tail estimate with exact weights, or ``+est``, with the
index's (of ``pages``: as if all keys of a group were in its middle); ``+head``, heads of a group are not joined.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from attention import rules, selection
from attention.selection import Index, Selection
from vllm_relational.records import RelationalError
from vllm_relational.sparse import naive
from vllm_relational.sparse.settings import beta_of

_WORD = re.compile(
    r"(?P<rule>[a-z_]+)(?::(?P<value>[^@+]+))?(?:@(?P<bits>\d)/(?P<group>\d+))?(?:\+(?P<tail>tail|est))?(?P<head>\+head)?"
)
_WITHOUT_VALUE = ("dense", "window")
_PAGES = {"pages": naive.RANK_SPREAD, "pages_middle": 0.0, "pages_box": 1.0}
_COUNTS = ("recent", "top", *_PAGES)
_TAILS = {None: "none", "tail": "exact", "est": "index"}
_SCANS = {"scan": "running", "scan_window": "window", "scan_global": "global"}
RULES = (*_WITHOUT_VALUE, "recent", "dipr", "top", "mass", *_SCANS, "estimated", *_PAGES)


@dataclass(frozen=True)
class Trial:
    """One way to attend; ``name`` is the word that it was read from. ``value`` is 0 where the rule has none."""

    name: str
    rule: str
    value: float = 0.0
    over_length: bool = False
    index: Index = selection.DEFAULT_INDEX
    tail: str = "none"
    by_group: bool = True

    def select(self, scale: float, seq_len: int) -> Selection:
        """Which tokens a query of a context of ``seq_len`` tokens keeps."""
        if self.rule in _WITHOUT_VALUE:
            return selection.ByProducts(naive.Dense() if self.rule == "dense" else rules.WindowOnly())
        if self.rule == "recent":
            return selection.Recent(int(self.value))
        if self.rule == "top":
            return selection.ByProducts(rules.TopK(int(self.value)))
        if self.rule == "mass":
            return selection.ByProducts(rules.TopP(self.value))
        if self.rule in _PAGES:
            return selection.TopPages(int(self.value), self.index, _PAGES[self.rule])
        beta = beta_of(self.alpha(seq_len), scale)
        if self.rule == "dipr":
            return selection.ByProducts(naive.Dipr(beta))
        if self.rule == "estimated":
            return selection.Estimated(beta, self.index)
        return selection.Scan(beta, self.index, _SCANS[self.rule])

    def alpha(self, seq_len: int) -> float:
        """Least share of the greatest attention weight that keeps a token."""
        return min(self.value / seq_len, 1.0) if self.over_length else self.value

    def attend(
        self, scored: selection.Scored, value: torch.Tensor, seq_len: int, *, chosen: Selection | None = None
    ) -> selection.Attended:
        """``selection.attend`` this way; ``chosen`` replaces the selection."""
        chosen = chosen or self.select(scored.scale, seq_len)
        tail = "middle" if self.rule in _PAGES and self.tail == "index" else self.tail
        return selection.attend(scored, value, chosen, tail=tail, index=self.index, by_group=self.by_group)


def read_trial(word: str) -> Trial:
    """The trial that a word names; ``RelationalError`` says what is wrong with it."""
    found = _WORD.fullmatch(word)
    if found is None or found["rule"] not in RULES:
        raise RelationalError(f"{word!r} is no way to attend: write {', '.join(RULES)}, as in scan:4e-3@4/16+est")
    rule, text = found["rule"], found["value"]
    if (text is None) != (rule in _WITHOUT_VALUE):
        needs = "takes no value" if text else "needs a value, as in " + rule + ":4e-3"
        raise RelationalError(f"{word!r}: {rule} {needs}")
    index = Index(int(found["bits"]), int(found["group"])) if found["bits"] else Index()
    if index.bits not in range(1, 9) or index.group not in (2, 4, 8, 16, 32, 64):
        raise RelationalError(f"{word!r}: an index has 1 to 8 bits and groups of 2, 4, 8, 16, 32 or 64 tokens")
    value, over_length = _read_value(word, rule, text) if text else (0.0, False)
    return Trial(word, rule, value, over_length, index, _TAILS[found["tail"]], found["head"] is None)


def _read_value(word: str, rule: str, text: str) -> tuple[float, bool]:
    over_length = text.endswith("/L") and rule not in (*_COUNTS, "mass")
    try:
        value = float(text.removesuffix("/L") if over_length else text)
        value = value if math.isfinite(value) else 0.0
    except ValueError:
        value = 0.0
    right = value >= 1 and value == int(value) if rule in _COUNTS else value > 0 and (over_length or value <= 1)
    if not right:
        kind = "a whole number of tokens" if rule in _COUNTS else "a share above 0 up to 1, or such as 8/L"
        raise RelationalError(f"{word!r}: {text!r} is not {kind}")
    return value, over_length

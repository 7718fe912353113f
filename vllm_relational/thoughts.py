"""Where a reply stops thinking and begins to answer.

Reasoning models write their thought in front of the answer, between marks that their chat template knows. Some
templates open the thought in the prompt: then the reply holds the closing mark only.
"""

from __future__ import annotations

import re

# Marks of the chat templates of reasoning models; upper and lower case alike.
_OPENS = re.compile(r"<(?:think|thinking|thought|seed:think)>|\[THINK\]|◁think▷|<\|START_THINKING\|>", re.IGNORECASE)
_CLOSES = re.compile(r"</(?:think|thinking|thought|seed:think)>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>", re.IGNORECASE)
OPENING = "<think>"


def without_thought(text: str) -> str | None:
    """The reply without the thoughts that it opens with; None where the thought never ends.

    A closing mark without an opening one ends a thought that the prompt opened. Marks further on belong to the answer.
    """
    while True:
        begin, end = _OPENS.search(text), _CLOSES.search(text)
        thinks = begin is not None and not text[: begin.start()].strip()
        if end is None:
            return None if thinks else text
        if begin is not None and begin.start() < end.start() and not thinks:
            return text
        text = text[end.end() :].lstrip()


def opens_thought(prompt: str) -> bool:
    """Whether the prompt ends inside a thought, so that the reply goes on with it."""
    begins = list(_OPENS.finditer(prompt))
    return bool(begins) and not prompt[begins[-1].end() :].strip()

"""Where a reply stops thinking and begins to answer.

Reasoning models write their thought in front of the answer, between marks that their chat template knows. Some
templates open the thought in the prompt: then the reply holds the closing mark only. Models of the gpt-oss kind write
messages to channels (OpenAI's harmony format): what they write to the channel ``final`` is the answer.
"""

from __future__ import annotations

import re

# Marks of the chat templates of reasoning models (vLLM's reasoning parsers list them); upper and lower case alike.
_NAME = r"(?:[a-z]{1,8}[:|])?(?:think|thinking|thought|reasoning)(?:_fast(?:er)?|:[^\s<>]{1,32})?"
_OPENS = re.compile(
    rf"<{_NAME}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>|<\|open\|>think<\|sep\|>|<\|channel>thought",
    re.IGNORECASE,
)
_CLOSES = (
    rf"</{_NAME}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|end_of_thought\|>|<\|close\|>think<\|sep\|>|<channel\|>"
)
_QUOTE = "[`'\"\u2018\u2019\u201c\u201d«»]"
_CLOSES_OR_QUOTED = re.compile(rf"(?<![\w.!?]){_QUOTE}(?:{_CLOSES}){_QUOTE}|(?P<mark>{_CLOSES})", re.IGNORECASE)
OPENING = "<think>"
# Harmony. Where an engine leaves special tokens out of texts, the words between them stay: analysis...assistantfinal...
CHANNEL = "<|channel|>"
_IN_CHANNELS = re.compile(
    r"\s*(?:(?:<\|start\|>assistant\s*)?<\|channel\|>|analysis(?=\S).*?assistantfinal)", re.DOTALL
)
_FINAL = re.compile(r"(?:<\|channel\|>\s*|assistant)final(?:\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>)?")
_END = re.compile(r"<\|(?:end|return|call|start)\|>")


def without_thought(text: str) -> str | None:
    """The reply without the thoughts that it opens with; None where the thought never ends.

    A closing mark without an opening one ends a thought that the prompt opened, unless it stands in quotes: then the
    answer writes of it. Marks further on belong to the answer.
    """
    if _IN_CHANNELS.match(text):
        return _final_message(text)
    while True:
        begin, end = _OPENS.search(text), _closing(text)
        thinks = begin is not None and not text[: begin.start()].strip()
        if end is None or (not thinks and text.lstrip().startswith("{")):  # no thought begins like a document
            return None if thinks else text
        if begin is not None and begin.start() < end.start() and not thinks:
            return text
        text = text[end.end() :].lstrip()


def _closing(text: str) -> re.Match[str] | None:
    """The first closing mark that is not in quotes."""
    return next((found for found in _CLOSES_OR_QUOTED.finditer(text) if found["mark"]), None)


def _final_message(text: str) -> str | None:
    """The message that a reply in channels sends to ``final``."""
    found = _FINAL.search(text)
    if found is None:
        return None
    end = _END.search(text, found.end())
    return text[found.end() : end.start() if end is not None else None].lstrip()


def thought_opening(prompt: str) -> str:
    """What must stand before a reply so that it tells of the thought that the end of the prompt opens; '' if of none.

    A prompt may end inside a thought, or where a channel is chosen, whose mark engines leave out of texts.
    """
    if prompt.rstrip().endswith("<|start|>assistant"):
        return CHANNEL
    begins = list(_OPENS.finditer(prompt))
    return OPENING if begins and not prompt[begins[-1].end() :].strip() else ""

"""Replies of a server, which may hold anything -> replies of the form that ``read_completion`` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm_relational.engine.endpoint.failures import MalformedError

MAX_TOKENS = 10**9  # of one request: a count above it is none
_WORDS = ("refusal", "reasoning", "reasoning_content")


def error_in(reply: object) -> tuple[int, object] | None:
    """The error that a reply under HTTP 200 holds in place of an answer, with its status."""
    error = reply.get("error") if isinstance(reply, Mapping) else None
    if not error:
        return None
    code = error.get("code") if isinstance(error, Mapping) else None
    return (code if type(code) is int and 400 <= code < 600 else 200), reply


def checked_reply(reply: object, clean: Callable[[str], str]) -> dict[str, Any]:
    """The one choice, with a text that is valid Unicode, and counts that are numbers; ``MalformedError`` if it is none.

    clean: hides keys in the server's words and makes them one short printable line.
    """
    if not isinstance(reply, Mapping) or not isinstance(reply.get("choices"), list):
        raise MalformedError("the server's answer is not a chat completion")
    transfer = reply.get("kv_transfer_params")
    return {
        "choices": [_checked_choice(reply["choices"], clean)],
        "usage": checked_usage(reply.get("usage")),
        **({"kv_transfer_params": transfer} if isinstance(transfer, Mapping) else {}),
    }


def _checked_choice(choices: list[Any], clean: Callable[[str], str]) -> dict[str, Any]:
    if not choices:
        return {}
    if len(choices) > 1:
        raise MalformedError(f"the server gives {len(choices)} answers to one question")
    choice = choices[0]
    if not isinstance(choice, Mapping):
        raise MalformedError("the server's answer is not a chat completion")
    index = choice.get("index")
    if index is not None and (type(index) is not int or index != 0):
        raise MalformedError("the server gives the answer to another choice than the first")
    finish = choice.get("finish_reason")
    message = choice.get("message")
    return {
        **({"finish_reason": clean(str(finish))} if finish is not None else {}),
        "message": _checked_message(message, clean) if isinstance(message, Mapping) else {},
    }


def _checked_message(message: Mapping[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    said = {name: clean(message[name]) for name in _WORDS if isinstance(message.get(name), str) and message[name]}
    return {"content": _text(message.get("content")), **said}


def _text(content: object) -> str | None:
    """The text of a message, which some servers give in parts; thoughts are no part of it. Null is an empty text; None
    for what is none."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        return None
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedError("the answer is not valid Unicode text") from None
    return content


def checked_usage(usage: object) -> dict[str, Any]:
    """Counts of tokens; what is no count is left out, and more cached tokens than prompt tokens are none."""
    if not isinstance(usage, Mapping):
        return {}
    counts = {name: _count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")}
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    if cached is not None and cached > (counts["prompt_tokens"] or 0):
        cached = None
    return {**counts, "prompt_tokens_details": {"cached_tokens": cached}}


def _count(number: object) -> int | None:
    return number if type(number) is int and 0 <= number <= MAX_TOKENS else None

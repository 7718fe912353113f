"""What is said to a chat completions server and how its answers read: plain dicts in, completions out, no network.

A dialect is the way a server takes the constraint that an answer format implies:

- ``vllm``: vLLM's ``structured_outputs`` field, where a choice or a schema constrains the whole answer.
- ``response_format``: OpenAI's JSON schema. Its root must be an object, so a label or a number travels as
  ``{"answer": ...}`` and is unwrapped when it comes back.
- ``words``: no constraint; a sentence at the end of the user message says which answers are allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from vllm_relational.answer_format.thoughts import without_thought
from vllm_relational.context.vllm_report import Loaded, loaded_of
from vllm_relational.engine.decoding import MAX_LISTED_NUMBERS, SPARE_TOKENS, all_spellings
from vllm_relational.records import AnswerFormat, Choice, Completion, FreeText, IntegerRange, JsonSchema, Prompt

Dialect = Literal["vllm", "response_format", "words"]

WRAPPER_TOKENS = 16  # line breaks and indentation around a wrapped answer
MAX_MESSAGE_CHARS = 200
MORE_TOKENS = "raise --max-tokens (max_tokens=)"
# Finish reasons, in the words of OpenAI and of servers that pass on others'. With none of them (content_filter, abort,
# error, tool_calls) the answer is not what the model wanted to say; a server that gives none has said all.
FINISHED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "stop_token", "end_turn", "complete", "completed"})
CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"})


def request_body(model: str, prompt: Prompt, answer_format: AnswerFormat, dialect: Dialect) -> dict[str, Any]:
    """The JSON body of one chat completions request."""
    user = prompt.user + (allowed_answers(answer_format) if dialect == "words" else "")
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return {
        "model": model,
        "messages": [*messages, {"role": "user", "content": user}],
        "temperature": 0,
        "max_tokens": token_limit(answer_format),
        **constraint(answer_format, dialect),
    }


def constraint(answer_format: AnswerFormat, dialect: Dialect) -> dict[str, Any]:
    """The fields of the body that hold the model to the answer format; empty where nothing does."""
    if dialect == "vllm":
        plain = {"chat_template_kwargs": {"enable_thinking": False}}
        return (
            plain
            if isinstance(answer_format, FreeText)
            else {**plain, "structured_outputs": _vllm_outputs(answer_format)}
        )
    if dialect == "response_format" and not isinstance(answer_format, FreeText):
        schema = {"name": "answer", "strict": True, "schema": _object_schema(answer_format)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {}


def _vllm_outputs(answer_format: Choice | IntegerRange | JsonSchema) -> dict[str, Any]:
    if isinstance(answer_format, Choice):
        return {"choice": all_spellings(answer_format.labels)}
    if isinstance(answer_format, JsonSchema):
        return {"json": dict(answer_format.schema)}
    if answer_format.high - answer_format.low < MAX_LISTED_NUMBERS:
        return {"choice": [str(number) for number in range(answer_format.low, answer_format.high + 1)]}
    return {"json": _integer_schema(answer_format)}


def _object_schema(answer_format: Choice | IntegerRange | JsonSchema) -> dict[str, Any]:
    if isinstance(answer_format, JsonSchema):
        return dict(answer_format.schema)
    if isinstance(answer_format, Choice):
        answer: dict[str, Any] = {"type": "string", "enum": list(answer_format.labels)}
    else:
        answer = _integer_schema(answer_format)
    return {
        "type": "object",
        "properties": {"answer": answer},
        "required": ["answer"],
        "additionalProperties": False,
    }


def _integer_schema(answer_format: IntegerRange) -> dict[str, Any]:
    return {"type": "integer", "minimum": answer_format.low, "maximum": answer_format.high}


def allowed_answers(answer_format: AnswerFormat) -> str:
    """The sentence that stands in for a constraint, with the break before it; empty for free text."""
    match answer_format:
        case Choice():
            labels = ", ".join(json.dumps(label, ensure_ascii=False) for label in answer_format.labels)
            return f"\n\nAnswer with exactly one of these, without quotes, and nothing else: {labels}."
        case IntegerRange():
            return (
                f"\n\nAnswer with one whole number from {answer_format.low} to {answer_format.high} and nothing else."
            )
        case JsonSchema():
            schema = json.dumps(answer_format.schema, ensure_ascii=False)
            return f"\n\nAnswer with one JSON document and nothing else. It must satisfy this JSON schema: {schema}"
    return ""


def token_limit(answer_format: AnswerFormat) -> int:
    """``max_tokens``: as given, or enough for the longest answer, since a token is at least one byte.

    The bound counts the wrapped form with non-ASCII characters escaped, the longest in which a server may write it.
    """
    if answer_format.max_tokens is not None:
        return answer_format.max_tokens
    assert isinstance(answer_format, Choice | IntegerRange)  # the others have a limit
    ends = (answer_format.low, answer_format.high) if isinstance(answer_format, IntegerRange) else answer_format.labels
    longest = max(len(json.dumps({"answer": answer})) for answer in ends)
    return longest + WRAPPER_TOKENS + SPARE_TOKENS


# ------------------------------------------------------------------------------------------------------ answers
def read_completion(key: int, reply: object, answer_format: AnswerFormat, dialect: Dialect) -> Completion:
    """The completion that a server's reply (HTTP 200, decoded JSON) holds: plain text, or the reason there is none."""
    prompt_tokens, output_tokens, cached_tokens = _usage(reply)
    loaded = _loaded(reply, prompt_tokens)
    cached_tokens = None if cached_tokens is None else max(0, cached_tokens - loaded.lost)
    text, error = _text_or_error(reply)
    if text is not None:
        text = plain_text(text, answer_format, dialect)
    counts = (prompt_tokens, output_tokens, cached_tokens)
    return Completion(key, text, error, *counts, cut=_is_cut(reply), loaded_tokens=loaded.tokens)


def plain_text(content: str, answer_format: AnswerFormat, dialect: Dialect) -> str:
    """The label, the number or the JSON document without its wrapping, and without a thought; free text as it is."""
    answer = without_thought(content)
    if isinstance(answer_format, FreeText) or answer is None:
        return content
    text = answer.strip()
    if isinstance(answer_format, JsonSchema):
        return _without_fence(text) if dialect == "words" else text
    return _unwrapped(text) if dialect == "response_format" else text


def _unwrapped(text: str) -> str:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text  # a server that takes response_format and ignores it
    if not isinstance(document, dict) or "answer" not in document:
        return text
    answer = document["answer"]
    return answer if isinstance(answer, str) else json.dumps(answer)


def _without_fence(text: str) -> str:
    if not (text.startswith("```") and text.endswith("```") and "\n" in text):
        return text
    return text[text.index("\n") : -3].strip()


def _text_or_error(reply: object) -> tuple[str | None, str | None]:
    if not isinstance(reply, Mapping):
        return None, "the server's answer is not a chat completion"
    if reply.get("error"):
        return None, f"the server answered: {server_message(reply['error'])}"
    choice = _first_choice(reply)
    if not choice:
        return None, "the server gives no answer: its list of choices is empty"
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    if message.get("refusal") and not message.get("content"):
        return None, _why_empty(message)
    finish = choice.get("finish_reason")
    if finish is not None and str(finish).casefold() not in FINISHED | CUT_OFF:
        return None, f"the server stopped the answer (finish reason {one_line(str(finish))})"
    content, why = message.get("content"), _why_empty(message)
    if isinstance(content, str) and (content.strip() or not why):
        return content, None  # an empty text is for whoever reads the answer, as from every engine
    return None, why or "the server gives no text"


def _is_cut(reply: object) -> bool:
    finish = _first_choice(reply).get("finish_reason") if isinstance(reply, Mapping) else None
    return str(finish).casefold() in CUT_OFF


def _first_choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}


def _why_empty(message: Mapping[str, Any]) -> str:
    """What the server says of a missing text; '' where it says nothing."""
    if message.get("refusal"):
        return f"the model refused: {one_line(str(message['refusal']))}"
    if message.get("reasoning") or message.get("reasoning_content"):
        return f"the answer is empty: the model spent its tokens on reasoning; turn reasoning off or {MORE_TOKENS}"
    return ""


def _usage(reply: object) -> tuple[int, int, int | None]:
    """Prompt tokens, output tokens (0 where not counted) and cached prompt tokens (None where not counted)."""
    usage = reply.get("usage") if isinstance(reply, Mapping) else None
    if not isinstance(usage, Mapping):
        return 0, 0, None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, cached


def _loaded(reply: object, prompt_tokens: int) -> Loaded:
    """Prompt tokens that a server of ours loaded from stored contexts; none where that cannot be."""
    loaded = loaded_of(reply.get("kv_transfer_params")) if isinstance(reply, Mapping) else Loaded()
    return loaded if loaded.tokens + loaded.lost <= prompt_tokens else Loaded()


def server_message(body: object) -> str:
    """The reason in the body of an error, however the server shapes it: whole, as keys are hidden in whole texts."""
    try:
        while isinstance(body, Mapping):
            names = ("error", "message", "detail")
            body = next((body[name] for name in names if body.get(name)), json.dumps(dict(body)))
        return str(body) if body else "no reason given"
    except RecursionError:
        return "a reason that is nested too deeply"


def one_line(text: str) -> str:
    """``text`` with its line breaks folded, at most ``MAX_MESSAGE_CHARS`` long."""
    folded = " ".join(text.split())
    return folded if len(folded) <= MAX_MESSAGE_CHARS else folded[: MAX_MESSAGE_CHARS - 3] + "..."

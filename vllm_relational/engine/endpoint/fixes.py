"""Why a server ends the job, and what to do about it: the fix goes by what the server said."""

from __future__ import annotations

import re

from vllm_relational.engine.endpoint.connection import MAX_RETRY_AFTER_S, Address
from vllm_relational.engine.endpoint.failures import LostError, MalformedError, RefusedError, RequestError
from vllm_relational.records import EngineDiedError

MONEY_STATUSES = frozenset({400, 402, 403, 429})
_CREDENTIAL = re.compile(r"key|token|credential|password|bearer", re.IGNORECASE)
_TEMPLATE = re.compile(r"chat template|\brole", re.IGNORECASE)
_CONSTRAINT = re.compile(r"grammar|json.?schema|response_format|structured.?output|guided", re.IGNORECASE)


def death(address: Address, failure: RequestError, num_answers: int) -> EngineDiedError:
    """The end of the job: the reason once, and the fix."""
    after = f"after {num_answers} answers"
    if isinstance(failure, RefusedError):
        return EngineDiedError(f"{refusal(address, failure, num_answers)} ({after})")
    if isinstance(failure, LostError):
        slow = "raise --timeout (timeout_s=) if it needs longer, else " if failure.silent else ""
        return EngineDiedError(
            f"the server at {address.shown} stopped answering {after}: {failure}; {slow}start it again"
        )
    is_a_page = isinstance(failure, MalformedError) and failure.again and not num_answers
    place = "; correct base_url, it often ends in /v1" if is_a_page else ""
    return EngineDiedError(f"the server at {address.shown} answers no row: {failure}{place} ({after})")


def refusal(address: Address, error: RefusedError, num_answers: int = 0) -> str:
    """Why the server refuses every request alike, and the fix. A server's words on a wrong key may quote it: left out.

    num_answers: rows that it answered before.
    """
    refused = f"the server at {address.shown} refused the request"
    if error.status == 401 or (error.status == 403 and _CREDENTIAL.search(str(error))):
        return f"{refused} (HTTP {error.status}): {_key(address, num_answers)}"
    return f"{refused}: {error}; {_fix(address, error, num_answers)}"


def _fix(address: Address, error: RefusedError, num_answers: int) -> str:
    pause = error.retry_after_s or 0.0
    if pause > MAX_RETRY_AFTER_S:
        return (
            f"it asks for a pause of {_duration(pause)}, a job waits {MAX_RETRY_AFTER_S:g} s: run it again after that"
        )
    if error.status == 402 or (error.status in MONEY_STATUSES and error.is_about_money):
        return "the account has used up what it may: add to it, or run this again when that is renewed"
    if error.status == 403:
        return _key(address, num_answers)
    if error.status == 429:
        return "lower --concurrency (concurrency=), or raise --retries (max_retries=)"
    if error.status >= 500 or error.is_passing:
        return "see the server's log; if it has too much to do, lower --concurrency (concurrency=)"
    return _fix_of_request(error)


def _fix_of_request(error: RefusedError) -> str:
    """For what the server will not take from anybody."""
    if error.status != 413 and _CONSTRAINT.search(f"{error} {error.parameter}"):
        return "simplify the schema (--schema, schema=) or the choices, or ask for text and read it yourself"
    if error.is_too_large:
        return "lower --max-tokens (max_tokens=), ask about shorter rows, or serve the model with a longer context"
    if _TEMPLATE.search(str(error)):
        return (
            "leave the system prompt out (--system-prompt '', system_prompt='') or correct the server's chat template"
        )
    if error.status in (404, 405):
        return "correct --base-url (base_url=), it often ends in /v1, or --model (model=)"
    return "check --base-url (base_url=), --model (model=) and the account"


def _key(address: Address, num_answers: int) -> str:
    source = address.api_key.source
    used = "no API key was given" if source == "none" else f"the API key came from {source}"
    if not num_answers:
        return f"{used}; give a valid one with api_key or OPENAI_API_KEY"
    return (
        f"{used} and {num_answers} rows were answered: its rights or limits have changed, or the server refuses these "
        "rows; see the account, or give another key with api_key or OPENAI_API_KEY"
    )


def _duration(seconds: float) -> str:
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}" if seconds < 1e9 else "many years"
    return f"{seconds:.0f} s"

"""One answer format, asked of one server from many threads, under terms that are learned from its refusals."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import Any

from vllm_relational.engine.endpoint.connection import EndpointConnection
from vllm_relational.engine.endpoint.failures import MalformedError, RefusedError
from vllm_relational.engine.endpoint.models import ExpectedModel
from vllm_relational.engine.endpoint.protocol import Dialect, constraint, read_completion, request_body, token_limit
from vllm_relational.engine.endpoint.reply import checked_reply, error_in
from vllm_relational.records import AnswerFormat, Completion, FreeText, Prompt

logger = logging.getLogger(__name__)

TERMS_REFUSED = frozenset({400, 422})
# Parameters that a job can do without -> their newer name, or None to leave them out.
CHANGES: dict[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "temperature": None,
    "chat_template_kwargs": None,
}
SYSTEM_ROLE = "the system role"  # some models have none: what it says then opens the user's message
_OURS = {*CHANGES, *(name for name in CHANGES.values() if name)}
_LEFT_OUT = {SYSTEM_ROLE: "the system prompt opens the user's message"}
TINY = "Answer with OK."
BYTES_A_TOKEN = 64  # of an answer, escaped, with what a server adds to it
FIXED_BYTES, MAX_BYTES = 4 * 2**20, 256 * 2**20
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|not (be )?(permitted|allowed)|extra|"
    r"deprecated|instead|(?:may|can|must) only|must be (?:set to )?[\"'`]?1\b",
    re.IGNORECASE,
)
_NO_SYSTEM_ROLE = re.compile(
    r"system (?:role|message|prompt)s?[^.]{0,40}not|roles must alternate|only user and assistant|"
    r"role[^.]{0,20}does not support.{0,3}system",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Terms:
    """How a request is made: the dialect, and the parameters that go under another name (None: not at all)."""

    dialect: Dialect
    changes: tuple[tuple[str, str | None], ...] = ()

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        changes = dict(self.changes)
        if SYSTEM_ROLE in changes:
            body = {**body, "messages": _without_system(body["messages"])}
        renamed = {changes.get(name, name): value for name, value in body.items()}
        return {name: value for name, value in renamed.items() if name is not None}


@dataclass
class Learned:
    """What an engine has learned of its server. It outlives questions; ``lock`` is held while more is learned."""

    changes: tuple[tuple[str, str | None], ...] = ()
    refused_constraints: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class EndpointQuestion:
    """One answer format, asked over one connection from many threads.

    A server may refuse how it is asked (HTTP 400 or 422): a parameter that it names as unsupported, or the constraint
    (``response_format``), which is told from a row that it refuses for another reason by asking the same row in words.
    The thread that is refused first tries other terms while those refused after it wait; what was answered holds for
    all rows after it. Under the constraint, that is so only if no constrained request was ever answered.
    """

    def __init__(
        self,
        connection: EndpointConnection,
        model: ExpectedModel,
        answer_format: AnswerFormat,
        dialect: Dialect,
        learned: Learned,
    ) -> None:
        self._connection = connection
        self._model = model
        self._answer_format = answer_format
        self._preferred = dialect
        self._constraint = json.dumps(constraint(answer_format, dialect), sort_keys=True, default=str)
        self._learned = learned
        self._accepted = isinstance(answer_format, FreeText) or dialect != "response_format"
        self._no_help: set[str] = set()  # kinds of refusals under which other terms were refused too
        self._max_bytes = min(FIXED_BYTES + BYTES_A_TOKEN * token_limit(answer_format), MAX_BYTES)

    def ask(self, prompt: Prompt, max_retries: int | None = None) -> tuple[Completion, float]:
        """What the model says, and when the request that it answered was sent. Raises ``RequestError``."""
        terms = self._terms()
        try:
            return self._post(prompt, terms, max_retries)
        except RefusedError as error:
            if error.status not in TERMS_REFUSED:
                raise
            refused = error
        return self._negotiate(prompt, terms, refused)

    def trial(self, known_good: Prompt | None, system: str, max_retries: int) -> float:
        """Ask whether the server answers at all: the row that it answered before, or a tiny one under the same terms.
        Returns when it was sent; raises ``RequestError``."""
        return self.ask(known_good or Prompt(-1, system=system, user=TINY), max_retries)[1]

    # --------------------------------------------------------------------------------------------------- terms
    def _terms(self) -> Terms:
        dialect: Dialect = "words" if self._constraint in self._learned.refused_constraints else self._preferred
        return Terms(dialect, self._learned.changes)

    def _negotiate(self, prompt: Prompt, used: Terms, refused: RefusedError) -> tuple[Completion, float]:
        """Ask the row again under other terms, until it is answered or nothing is left to try."""
        steps: list[tuple[Terms, Terms, RefusedError]] = []  # from, to, and why
        with self._learned.lock:
            now = self._terms()
            tried, last = used, refused
            terms = now if now != used else self._other_terms(used, refused)
            while terms is not None:
                if terms != now:
                    steps.append((tried, terms, last))
                try:
                    answer = self._post(prompt, terms, None)
                except RefusedError as error:
                    if error.status not in TERMS_REFUSED:
                        raise
                    tried, last = terms, error
                    terms = self._other_terms(tried, last)
                else:
                    self._learn(steps)
                    return answer
            if _kind(last) == _kind(refused) or any(_names(last, name) for name in _OURS):
                self._no_help.add(_kind(refused))
        raise last if any(_names(last, name) for name in _OURS) else refused

    def _other_terms(self, terms: Terms, refused: RefusedError) -> Terms | None:
        """What to try after that refusal; None if it is about the row, or says nothing that helps."""
        if _kind(refused) in self._no_help:
            return None
        named = self._unsupported(terms, refused)
        if named is not None:
            return replace(terms, changes=(*terms.changes, (named, CHANGES.get(named))))
        about_terms = bool(refused.parameter) and not refused.parameter.startswith(("response_format", "messages"))
        if terms.dialect != "response_format" or self._accepted or about_terms:
            return None
        return replace(terms, dialect="words")

    def _unsupported(self, terms: Terms, refused: RefusedError) -> str | None:
        """The parameter of ours that the server names as one that it does not take, and that was not changed yet."""
        text = str(refused)
        if _NO_SYSTEM_ROLE.search(text) and SYSTEM_ROLE not in dict(terms.changes):
            return SYSTEM_ROLE
        if refused.is_too_large or not _UNSUPPORTED.search(f"{text} {refused.code}"):
            return None
        changed = dict(terms.changes)
        named = [name for name in CHANGES if name not in changed and _names(refused, name)]
        return min(named, key=text.find) if named else None

    def _learn(self, steps: list[tuple[Terms, Terms, RefusedError]]) -> None:
        """Keep the terms that led to an answer, and say why each was changed."""
        for before, terms, refused in steps:
            self._learned.changes = terms.changes
            for name, other in terms.changes[len(before.changes) :]:
                sent = f"sending {other} instead" if other else _LEFT_OUT.get(name, "leaving it out")
                _note(f"the server does not take {name} ({refused}): {sent}")
            if terms.dialect == "words" and before.dialect != "words":
                self._learned.refused_constraints.add(self._constraint)
                _note(f"the server does not take response_format ({refused}): asking in words, without a constraint")

    # -------------------------------------------------------------------------------------------------- answer
    def _post(self, prompt: Prompt, terms: Terms, max_retries: int | None) -> tuple[Completion, float]:
        body = terms.apply(request_body(self._model.asked, prompt, self._answer_format, terms.dialect))
        reply, sent_at = self._connection.post("/chat/completions", body, self._max_bytes, max_retries)
        try:
            completion = self._read(prompt.key, reply, terms.dialect)
        except (RefusedError, MalformedError) as error:
            error.sent_at = sent_at
            raise
        self._accepted = self._accepted or terms.dialect == "response_format"
        return completion, sent_at

    def _read(self, key: int, reply: object, dialect: Dialect) -> Completion:
        if (error := error_in(reply)) is not None:
            raise self._connection.refusal(*error)
        name = reply.get("model") if isinstance(reply, Mapping) else None
        if not self._model.admits(name):
            shown = self._connection.clean(str(name))
            raise MalformedError(
                f"the server answered with the model {shown!r}, not {self._model.asked!r}; if that is its name for it, "
                f"give --served-as {quote(shown)} (served_as={shown!r})"
            )
        checked = checked_reply(reply, self._connection.clean)
        return read_completion(key, checked, self._answer_format, dialect)


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same words from the user alone."""
    return [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]


def _names(refused: RefusedError, parameter: str) -> bool:
    return refused.parameter == parameter or re.search(rf"\b{parameter}\b", str(refused)) is not None


def _kind(refused: RefusedError) -> str:
    """What two rows that are refused for one reason share: words without digits, so no counts and no request's id."""
    words = " ".join(word for word in str(refused).split() if not any(map(str.isdigit, word)))
    return f"{refused.status} {words}"


def _note(text: str) -> None:
    with suppress(OSError, ValueError):  # a log that is closed ends no job
        logger.warning("%s", text)

"""What must not be shown: API keys and passwords, in whatever form a server gives them back."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import quote, quote_plus, unquote, urlsplit

from vllm_relational.records import RelationalError

FRAGMENT = 8  # characters of a key that give it away
HIDDEN = "[API key]"
MAX_CHARS = 2**16  # more of a server's words is never shown
_PLACEHOLDER_LENGTH = 6  # shorter keys are words such as EMPTY, x or none: hidden where they stand alone


@dataclass(frozen=True)
class ApiKey:
    """A key and where it came from; only the latter is ever shown."""

    value: str = field(repr=False)
    source: str

    @staticmethod
    def find(argument: str | None) -> ApiKey:
        """The key from the argument, else from OPENAI_API_KEY, else the placeholder that open servers accept."""
        if argument is not None and not isinstance(argument, str):
            raise RelationalError("api_key must be a text")
        value = (argument or "").strip()
        source = "the api_key argument"
        if not value:
            value, source = os.environ.get("OPENAI_API_KEY", "").strip(), "OPENAI_API_KEY"
        if not value:
            return ApiKey("EMPTY", "none")
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise RelationalError(f"the API key from {source} holds blanks or characters outside ASCII; copy it again")
        return ApiKey(value, source)


@dataclass(frozen=True)
class Secrets:
    """Hides keys in texts. To be applied to whole texts, before they are cut."""

    values: tuple[str, ...] = field(repr=False)

    @staticmethod
    def of(base_url: str, key: ApiKey) -> Secrets:
        """The key, and the password in the URL."""
        values = [] if key.source == "none" else [key.value]
        user, _, password = urlsplit(base_url).netloc.rpartition("@")[0].partition(":")
        if password:
            values += [unquote(password), base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()]
        return Secrets(tuple(values))

    def hide(self, text: str) -> str:
        """The beginning of ``text``, with every form and every piece of ``FRAGMENT`` characters of a secret hidden."""
        text = text[:MAX_CHARS]
        for word in self._short:
            text = word.sub(HIDDEN, text)
        return _blot(text, self._pieces) if self._pieces else text

    @cached_property
    def _forms(self) -> frozenset[str]:
        return frozenset(form for value in self.values for form in _forms(value))

    @cached_property
    def _short(self) -> list[re.Pattern[str]]:
        return [re.compile(_alone(form)) for form in self._forms if len(form) < FRAGMENT]

    @cached_property
    def _pieces(self) -> frozenset[str]:
        """All pieces of the long forms."""
        return frozenset(form[i : i + FRAGMENT] for form in self._forms for i in range(len(form) - FRAGMENT + 1))


def _alone(form: str) -> str:
    whole = re.escape(form)
    return rf"(?<!\w){whole}(?!\w)" if len(form) < _PLACEHOLDER_LENGTH else whole


def _blot(text: str, pieces: frozenset[str]) -> str:
    """``text`` with each run of pieces replaced."""
    kept, end, i = [], 0, 0
    while i <= len(text) - FRAGMENT:
        if text[i : i + FRAGMENT] not in pieces:
            i += 1
            continue
        kept += [text[end:i], HIDDEN]
        while text[i : i + FRAGMENT] in pieces:
            i += 1
        end = i = i + FRAGMENT - 1
    return "".join([*kept, text[end:]])


def _forms(value: str) -> set[str]:
    """As it is, in a URL, in JSON, in base64."""
    encoded = base64.b64encode(value.encode()).decode().rstrip("=")
    return {value, quote(value, safe=""), quote(value), quote_plus(value), value.replace('"', '\\"'), encoded}

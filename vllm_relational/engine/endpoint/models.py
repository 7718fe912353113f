"""Which model a server offers, what it says of it, and whether a reply comes from it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from vllm_relational.engine.endpoint.connection import PROBE_TIMEOUT_S, EndpointConnection
from vllm_relational.engine.endpoint.failures import RequestError
from vllm_relational.records import EngineInfo, RelationalError
from vllm_relational.terminal import printable

BLOCK_SIZE = 16  # tokens; vLLM's on a GPU
MAX_NAMES_SHOWN = 10
MAX_NAMES_COMPARED = 1000
MAX_NAME_CHARS = 200
MAX_TOKENS = 2**31 - 1  # of a context or a block that is believed
Card = Mapping[str, Any]
_TOO_OLD = re.compile(r"0\.([1-9]|10)\.\d")  # releases before structured_outputs; a development build is 0.1.dev
_CONFIG, _BLOCK_SIZE = "vllm:cache_config_info{", 'block_size="'
# What a server may add to a model's name, or the user's name have in its place: a date, a number of three digits or
# more, a word that stands for the newest.
_VERSION = re.compile(r"[-@:](?:\d{4}-\d{2}-\d{2}|\d{2}-\d{4}|\d{3,8}|latest|preview|stable|default)")
_NEWEST = ("latest", "preview", "stable", "default")


# ----------------------------------------------------------------------------------------------------- the list
def read_cards(reply: object, shown: str) -> list[Card]:
    """The model cards in the answer to ``/models``."""
    cards = reply.get("data") if isinstance(reply, Mapping) else None
    if not isinstance(cards, list):
        raise RelationalError(f"the server at {shown} gives no list of models; correct base_url, it often ends in /v1")
    return [card for card in cards if isinstance(card, Mapping) and _is_name(card.get("id"))]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 10 * MAX_NAME_CHARS


def choose_card(cards: Sequence[Card] | None, model: str | None, shown: str) -> Card:
    """The card of the model, or of the only one. cards: None where the server keeps no list."""
    if cards is None:
        if model is None:
            raise RelationalError(
                f"the server at {shown} has no /models; give the name with --model (model=), or correct base_url"
            )
        return {"id": model}
    if model is None and len(cards) == 1:
        return cards[0]
    for card in cards:
        if card["id"] == model:
            return card
    raise RelationalError(_no_such_model([card["id"] for card in cards], model, shown))


def _no_such_model(names: list[str], model: str | None, shown: str) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    listed = (", ".join(map(_shown, names[:MAX_NAMES_SHOWN])) + more) or "no model"
    if model is None:
        return f"the server at {shown} serves {listed}; choose one with --model (model=)"
    close = get_close_matches(model, names[:MAX_NAMES_COMPARED], cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(_shown, close))}?" if close else "; choose another with --model (model=)"
    return f"the server at {shown} does not serve {model!r}, it serves {listed}{hint}"


def _shown(name: str) -> str:
    return printable(name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 3] + "...")


# ------------------------------------------------------------------------------------------------- what it says
def model_info(card: Card, block_size: int | None) -> EngineInfo:
    """What a plan needs to know of the model."""
    longest = card.get("max_model_len")
    known = longest if type(longest) is int and 0 < longest <= MAX_TOKENS else None
    return EngineInfo(card["id"], known, None, block_size or BLOCK_SIZE)


def served_block_size(connection: EndpointConnection, root: str, timeout_s: float = PROBE_TIMEOUT_S) -> int | None:
    """From vLLM's metrics, since it depends on the machine: 128 tokens on a CPU. None where they are not served."""
    try:
        return block_size_in(str(connection.get(root + "/metrics", timeout_s)))
    except RequestError:
        return None


def block_size_in(page: str) -> int | None:
    """The block size in a page of metrics, read once from left to right."""
    for line in page.split("\n"):
        if not line.startswith(_CONFIG):
            continue
        labels = line[len(_CONFIG) :].partition("}")[0].split(",")
        found = [label[len(_BLOCK_SIZE) : -1] for label in labels if label.startswith(_BLOCK_SIZE)]
        if found and found[0].isascii() and found[0].isdigit() and len(found[0]) < 8:
            return int(found[0]) or None
    return None


def is_vllm(connection: EndpointConnection, root: str, card: Card) -> bool:
    """True for a vLLM that takes ``structured_outputs``; the cards of other servers name another owner."""
    if card.get("owned_by") not in (None, "vllm"):
        return False
    try:
        reply = connection.get(root + "/version")
    except RequestError:
        return False
    version = reply.get("version") if isinstance(reply, Mapping) else None
    return isinstance(version, str) and not _TOO_OLD.match(version)


# ------------------------------------------------------------------------------------- the model that has replied
class ExpectedModel:
    """Whether the name in a reply is a name of the model that was asked.

    =====================================================================  ========
    name in the reply                                                      verdict
    =====================================================================  ========
    none, or no text                                                       taken
    the name that was asked, in any case                                   taken
    with or without a version (``gpt-4o`` -> ``gpt-4o-2024-08-06``)        taken
    the end of its path, or a path to it (``org/m`` -> ``/models/m``)      taken
    the root in its card (vLLM: the path behind a served name)             taken
    another name in the list whose card has the same root (an alias)       taken
    ``served_as``, which the user gave                                     taken
    any name, where the server keeps no list; the first one then holds     taken
    any other name, listed or not                                          refused
    =====================================================================  ========
    """

    def __init__(self, asked: str, cards: Sequence[Card] | None, served_as: str | None = None) -> None:
        self.asked = asked
        self._is_listed = cards is not None
        roots = {root for card in cards or () if card["id"] == asked and isinstance(root := card.get("root"), str)}
        aliases = [card["id"] for card in cards or () if card.get("root") in roots and card.get("parent") is None]
        given = [asked, *aliases, *roots, *([served_as] if served_as else [])]
        self._names = [_comparable(name) for name in given]
        self._others = {_comparable(card["id"]) for card in cards or ()} - set(self._names)
        self._lock = threading.Lock()

    def admits(self, name: object) -> bool:
        """Whether a reply with this ``model`` comes from the model that was asked."""
        if not isinstance(name, str) or not name.strip():
            return True
        found = _comparable(name.strip()[: 10 * MAX_NAME_CHARS])
        with self._lock:
            if any(_is_same(found, known) for known in self._names) and not self._is_another(found):
                return True
            if self._is_listed or len(self._names) > 1:
                return False
            self._names.append(found)
            return True

    def _is_another(self, found: str) -> bool:
        """A name of the list that only looks like ours, such as a version beside the one that was asked."""
        return found in self._others and _without_version(found) != _without_version(self._names[0])


def _comparable(name: str) -> str:
    return name.casefold().rstrip("/").removesuffix(".gguf")


def _is_same(found: str, known: str) -> bool:
    if _is_part_of_path(found, known):
        found, known = found.rpartition("/")[2], known.rpartition("/")[2]
    if known in (found, _without_version(found)) or found == _without_version(known):
        return True
    return known.endswith(_NEWEST) and _without_version(found) == _without_version(known)


def _is_part_of_path(one: str, other: str) -> bool:
    """Whether one may be the end of the other's path; ``org/m`` and ``other/m`` are two models."""
    return "/" not in one or "/" not in other or one.startswith(("/", ".")) or other.startswith(("/", "."))


def _without_version(name: str) -> str:
    """The name without what ``_VERSION`` matches at its end, once."""
    for start in range(max(len(name) - 12, 1), len(name)):
        if _VERSION.fullmatch(name, start):
            return name[:start]
    return name

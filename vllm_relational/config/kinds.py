"""Kinds of values that options take: each a check that gives the value in Python's own type, or raises ``ValueError``.

The text of a ``ValueError``, where there is one, is shown to the user in place of the option's description.
"""

from __future__ import annotations

import enum
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field

from vllm_relational.answer_format.json_schemas import plain_schema
from vllm_relational.config.names import current_order
from vllm_relational.records import PromptBatch, RelationalError

SHOWN_VALUE = 80
MAX_ITEMS = 1_000_000  # of a list: more are an iterator without end


def read_text(value: Any) -> str:
    """A text that can be sent: not half a character. Of an enum that is a text, its value."""
    if not isinstance(value, str):
        raise ValueError
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"it is not valid Unicode: {half_character(value)}") from None
    return str.__str__(value)


def half_character(text: str) -> str:
    """How to mend a text that cannot be encoded. U+DC80 to U+DCFF are bytes of the command line that are no text."""
    if not any("\udc80" <= character <= "\udcff" for character in text):
        return "give the whole character, or leave it out"
    encoding = sys.getfilesystemencoding()
    if encoding.lower() == "utf-8":
        return "it was given in bytes that are no UTF-8: write them in UTF-8"
    return f"it was given in bytes that are no {encoding}, which the locale asks for: set LC_ALL=C.UTF-8"


def _is_no_number(value: Any) -> bool:
    """Truth values, and members of enums; but a member that is a number itself, as of an IntEnum, is its value."""
    return isinstance(value, bool | np.bool_) or (isinstance(value, enum.Enum) and not isinstance(value, Real))


def _whole(value: Any) -> int:
    if _is_no_number(value):
        raise ValueError
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError from None


def _number(value: Any) -> float:
    if _is_no_number(value) or not isinstance(value, Real):
        raise ValueError
    try:
        return float(value)
    except OverflowError:
        raise ValueError from None


def _flag(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError
    return bool(value)


def _items(value: Any) -> list[Any]:
    """The items of a list, a tuple, a column of a table and the like."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping) or not isinstance(value, Iterable):
        raise ValueError
    try:
        found = list(islice(value, MAX_ITEMS + 1))
    except Exception as error:  # iterators are the user's code
        raise ValueError(f"its items cannot be read ({error})") from error
    if len(found) > MAX_ITEMS:
        raise ValueError(f"it has more than {MAX_ITEMS:,} items")
    return found


def _names(value: Any) -> tuple[str, ...]:
    """One name, or several."""
    return (read_text(value),) if isinstance(value, str) else tuple(map(read_text, _items(value)))


def _groups(value: Any) -> tuple[tuple[str, ...], ...]:
    """One group of names, or several."""
    items = _items(value)
    if all(isinstance(item, str) for item in items):
        return (_names(items),) if items else ()
    return tuple(tuple(map(read_text, _items(item))) for item in items)


def _path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ValueError
    found = os.fspath(value)
    if not isinstance(found, str) or not found.strip() or "\0" in found:
        raise ValueError
    return Path(read_text(found))


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError
    return value


def _schema(value: Any) -> dict[str, Any]:
    """Raises ``RelationalError`` itself: it says what of a schema is at fault."""
    return plain_schema(value)


def _weights(value: Any) -> dict[str, float]:
    return {read_text(name): _number(weight) for name, weight in _mapping(value).items()}


def _rules(value: Any) -> dict[str, tuple[str, ...]]:
    return {read_text(name): _names(rules) for name, rules in _mapping(value).items()}


def read_labels(value: Any) -> tuple[str, ...]:
    """Labels as texts: a whole number is its text, and so is a member of an IntEnum or a StrEnum by its value. What has
    no one text (1.50, True, None, a member of another enum) is refused by name.

    Raises ``ValueError``; the text of it names the label, if one is at fault.
    """
    if isinstance(value, set | frozenset):
        raise ValueError("a set has another order from run to run: give a list of labels")
    return tuple(_label(item, place) for place, item in enumerate(_items(value), start=1))


def _label(item: Any, place: int) -> str:
    try:
        return read_text(item) if isinstance(item, str) else str(_whole(item))
    except ValueError as error:
        if isinstance(item, str):
            raise ValueError(f"label {place} is {shown(item)}: {error}") from None
        hint = "its text, e.g. its .value" if isinstance(item, enum.Enum) else "a text, e.g. 'yes', or a whole number"
        raise ValueError(f"label {place} is {shown(item)}: give {hint}") from None


def _range(value: Any) -> tuple[int, int]:
    bounds = [_whole(item) for item in _items(value)]
    if len(bounds) != 2:
        raise ValueError
    return bounds[0], bounds[1]


def _model(value: Any) -> str:
    return str(_path(value)) if isinstance(value, Path) else read_text(value)


def _embedder(value: Any) -> Any:
    return value if callable(value) else read_text(os.fspath(value) if isinstance(value, Path) else value)


def _batches(value: Any) -> tuple[PromptBatch, ...]:
    items = tuple(_items(value))
    if not all(isinstance(item, PromptBatch) for item in items):
        raise ValueError
    return items


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


def _does(*methods: str) -> Callable[[Any], Any]:
    """A check for objects of the user's that have these methods."""

    def check(value: Any) -> Any:
        if isinstance(value, type) or not all(callable(getattr(value, name, None)) for name in methods):
            raise ValueError
        return value

    return check


def _callable(value: Any) -> Any:
    if not callable(value):
        raise ValueError
    return value


# ------------------------------------------------------------------------------------------------------- as types
@dataclass(frozen=True)
class Takes:
    """In the annotation of a kind: what users may give, as a type in Python's words. Without it, the type itself."""

    given: str


Text = Annotated[str, BeforeValidator(read_text)]
Named = Annotated[str, BeforeValidator(read_text), AfterValidator(_not_blank)]
Order = Annotated[Named, AfterValidator(current_order)]
ModelName = Annotated[str, BeforeValidator(_model), AfterValidator(_not_blank), Takes("str | Path")]
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Takes("str | Iterable[str]")]
Groups = Annotated[
    tuple[tuple[str, ...], ...], BeforeValidator(_groups), Takes("Iterable[str] | Iterable[Iterable[str]]")
]
Weights = Annotated[dict[str, float], BeforeValidator(_weights), Takes("Mapping[str, float]")]
Rules = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_rules), Takes("Mapping[str, str | Iterable[str]]")]
Schema = Annotated[dict[str, Any], BeforeValidator(_schema), Takes("Mapping[str, Any]")]
Settings = Annotated[Mapping[str, Any], BeforeValidator(_mapping)]
File = Annotated[Path, BeforeValidator(_path), Takes("str | Path")]
Labels = Annotated[tuple[str, ...], BeforeValidator(read_labels), Takes("Iterable[Any]")]
Bounds = Annotated[tuple[int, int], BeforeValidator(_range), Takes("Iterable[int]")]
Batches = Annotated[tuple[PromptBatch, ...], BeforeValidator(_batches), Takes("Iterable[PromptBatch]")]
EmbedderName = Annotated[Any, BeforeValidator(_embedder), Takes("str | Path | Callable[[list[str]], Any]")]
Function = Annotated[Any, BeforeValidator(_callable), Takes("Callable[..., Any]")]
# Objects of the user's, known by what they do.
AnEngine = Annotated[Any, BeforeValidator(_does("start", "ask", "close"))]
AnLlm = Annotated[Any, BeforeValidator(_does("run", "prepare", "expected_engine"))]
SomeRates = Annotated[Any, BeforeValidator(_does("seconds"))]
SomePrices = Annotated[Any, BeforeValidator(_does("dollars"))]
ARetriever = Annotated[Any, BeforeValidator(_does("identity", "passages"))]


def shown(value: Any) -> str:
    """A value for a message: short, and in one line, whatever the object does when it is asked for its text."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # the user's own __repr__, or a number of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN_VALUE else f"{text[: SHOWN_VALUE - 3]}..."


def check_prompt(prompt: Any) -> None:
    """Raise ``RelationalError`` for a prompt that is no text that can be sent."""
    try:
        read_text(prompt)
    except ValueError as error:
        raise RelationalError(
            f"the prompt is {shown(prompt)}: {str(error) or 'give a text that names columns'}"
        ) from None

"""What an option says of itself, and how options are read: one definition, from which everything else is made.

A field of an ``Options`` class is made with ``option``. From its name, type, default, meaning and limits come the
Python signature (``signature.py``), the options of the command line (``cli/fields.py``), the reference pages and the
identity of a job: a new option is one field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from vllm_relational.config.kinds import shown
from vllm_relational.records import RelationalError


@dataclass(frozen=True)
class Cli:
    """How the command line spells an option.

    help:     for ``--help``; {planners} stands for the names of all planners.
    commands: that have the option.
    section:  where it stands among their options, see ``cli/fields.py``.
    flag:     its spelling, where it is not ``--`` and the name; ``--yes/--no`` for both values of a truth value.
    form:     how its text is read, one of ``cli.fields.FORMS``; None for texts, numbers and files as they are.
    default:  where it is another than in Python (...); shown: whether ``--help`` shows it.
    min:      least number.
    """

    help: str
    commands: tuple[str, ...]
    section: str
    flag: str | None = None
    form: str | None = None
    default: Any = ...
    shown: bool = True
    min: int | None = None


@dataclass(frozen=True)
class Option:
    """What a field says beside its type, default and limits.

    fix:      completes the sentence "NAME is VALUE: ..." for a value that it does not take.
    identity: under which name a job's identity keeps its value, which JSON must be able to hold: with another value it
              is another job, and no answers are taken over. '' for options that change no answer, and for those that
              are part of another fact (the answer format, deduplication).
    cli:      its spelling on the command line; None where it has none.
    """

    fix: str
    identity: str = ""
    cli: Cli | None = None


def option(default: Any, meaning: str, fix: str, *, identity: str = "", cli: Cli | None = None, **limits: Any) -> Any:
    """A field of an ``Options`` class. default: ... for one that must be given. limits: as of ``pydantic.Field``."""
    extra: dict[str, Any] = {"option": Option(fix, identity, cli)}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def facts(field: FieldInfo) -> Option:
    """What the field says of itself."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    found: Any = extra["option"]
    assert isinstance(found, Option)
    return found


class Options(BaseModel):
    """Options as read: each in one type, or its default.

    Raises ``RelationalError`` for a value of another type or out of bounds, with the option's name, what it got and
    what it takes; and for a name that there is not, with the nearest one. None is the same as not to give an option
    where nothing is chosen by default.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)

    def __init__(self, /, **given: Any) -> None:
        known = self.known()
        for name in given:
            if name not in known:
                raise RelationalError(unknown_option(name, known))
        chosen = {name: item for name, item in given.items() if item is not None or not _may_be_left_out(known[name])}
        try:
            super().__init__(**chosen)
        except ValidationError as error:
            raise RelationalError(_explained(error, known, given)) from None

    @classmethod
    def known(cls) -> dict[str, FieldInfo]:
        """The options by the names that users give them."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """The options as a user gives them."""
        return cls(**given)

    def job_identity(self) -> dict[str, Any]:
        """What of these options makes a job another one, see ``Option.identity``. JSON values."""
        fields = type(self).model_fields.items()
        return {facts(field).identity: getattr(self, name) for name, field in fields if facts(field).identity}


def _may_be_left_out(field: FieldInfo) -> bool:
    """Whether None is the same as not to give the option: where nothing is chosen by default."""
    return not field.is_required() and field.default in (None, (), {})


def unknown_option(name: str, known: Iterable[str]) -> str:
    """One line for a name that there is not: the nearest one, and all."""
    names = sorted(known)
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    return f"there is no option {name!r}{hint} (options: {', '.join(names)})"


def _explained(error: ValidationError, known: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    said = str(first.get("ctx", {}).get("error", ""))  # of the ValueError of a check
    if name not in given:
        return f"{name} is missing: {facts(known[name]).fix}"
    return f"{name} is {shown(given[name])}: {said or facts(known[name]).fix}"

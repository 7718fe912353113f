"""Python signatures made from classes of options: what ``help()``, notebooks and editors show of ``**options``."""

from __future__ import annotations

import functools
import inspect
import json
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from vllm_relational.config.kinds import Takes
from vllm_relational.config.option import Options

Function = TypeVar("Function", bound=Callable[..., Any])
WIDTH = 110


def takes(kind: type[Options], *, explained: bool = False, **defaults: Any) -> Callable[[Function], Function]:
    """A function whose ``**options`` are of that class: its signature names them all.

    explained: its docstring gets what they mean. defaults: where they are others than those of the class; options that
    the function has parameters for are left out.
    """

    def decorate(function: Function) -> Function:
        own = list(inspect.signature(function).parameters.values())[:-1]  # without **options
        have = {parameter.name for parameter in own}
        added = [each for each in parameters(kind, defaults) if each.name not in have]
        shown = inspect.signature(function).replace(parameters=[*own, *added])
        function.__signature__ = shown  # type: ignore[attr-defined]
        if explained and function.__doc__ is not None:  # python -OO
            function.__doc__ = inspect.cleandoc(function.__doc__) + "\n\n" + "\n".join(meanings(kind))
        return function

    return decorate


def parameters(kind: type[Options], defaults: dict[str, Any]) -> Iterator[inspect.Parameter]:
    """One for each option, by name only."""
    for name, field in kind.known().items():
        default = defaults.get(name, inspect.Parameter.empty if field.is_required() else field.default)
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=given_type(field, name in defaults)
        )


def meanings(kind: type[Options]) -> Iterator[str]:
    """Lines "name: meaning", a paragraph each option."""
    wrap = functools.partial(textwrap.wrap, width=WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    for name, field in kind.known().items():
        yield from wrap(f"{name}: {field.description}")


def given_type(field: FieldInfo, optional: bool = False) -> str:
    """What users may give, as a type in Python's words. optional: or None, whatever the class says."""
    said = [each.given for each in field.metadata if isinstance(each, Takes)]
    text = said[0] if said else _in_words(field.annotation)
    may_be_none = optional or (not field.is_required() and field.default in (None, (), {}))
    return f"{text} | None" if may_be_none and text != "Any" and not text.endswith("None") else text


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return next((each.given for each in more if isinstance(each, Takes)), _in_words(inner))
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(map(json.dumps, get_args(kind)))}]"
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(_in_words(part) for part in get_args(kind))
    if kind is types.NoneType:
        return "None"
    return str(inspect.formatannotation(kind)).removeprefix("typing.").removeprefix("collections.abc.")

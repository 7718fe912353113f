"""Options of the command line made from classes of options: what a field says of itself (``Cli``) is all there is.

A command has a parameter of the type ``Given`` for each section of options that it takes, named as the section is.
``with_options`` puts the options in its place, and ``values`` reads what the user wrote.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_relational.config.option import Cli, Options, facts
from vllm_relational.plan import PLANNERS
from vllm_relational.records import RelationalError

PLANNER_NAMES = ", ".join(PLANNERS)


class Given(dict[str, Any]):
    """Options as the user wrote them, by their names in Python."""


@dataclass(frozen=True)
class Form:
    """How an option is written. kind: what typer makes of it; read: (text, option) -> value."""

    kind: Any
    read: Callable[[Any, str], Any]


def with_options(*kinds: type[Options]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A command that takes the options of these classes, as far as they are for a command of its name."""

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        hints = typing.get_type_hints(function, include_extras=True)
        sections = {name for name, hint in hints.items() if hint is Given}
        options = {name: dict(_options(kinds, function.__name__, name)) for name in sections}
        parameters = list(_replaced(function, hints, options))

        @functools.wraps(function)
        def command(**arguments: Any) -> int:
            for section, made in options.items():
                arguments[section] = Given({name: arguments.pop(_variable(name)) for name in made})
            return function(**arguments)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def _replaced(
    function: Callable[..., int], hints: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]
) -> Iterator[inspect.Parameter]:
    """The parameters of a function, those of each section in the place of the section."""
    for name, parameter in inspect.signature(function).parameters.items():
        if name in options:
            yield from options[name].values()
        else:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])


def _options(kinds: tuple[type[Options], ...], command: str, section: str) -> Iterator[tuple[str, inspect.Parameter]]:
    """By name, the options that the command has in a section."""
    for name, field in ((name, field) for kind in kinds for name, field in kind.known().items()):
        cli = facts(field).cli
        if cli is not None and cli.section == section and command in cli.commands:
            yield name, _parameter(name, cli, field.annotation, field.default)


def _parameter(name: str, cli: Cli, annotation: Any, default: Any) -> inspect.Parameter:
    default = default if cli.default is ... else cli.default
    if cli.form is not None:
        kind, default = FORMS[cli.form].kind, None
    else:
        kind = _plain(annotation)
    made = typer.Option(flag(name, cli), help=help_of(cli), show_default=cli.shown, min=cli.min)
    optional = kind | None if default is None else kind
    return inspect.Parameter(
        _variable(name), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[optional, made]
    )


def _plain(annotation: Any) -> Any:
    """What typer makes of the text of an option that is read as it is."""
    parts = [annotation, *typing.get_args(annotation)]
    parts += [inner for part in parts[1:] for inner in typing.get_args(part)]
    return next((part for part in parts if part in (bool, int, float, Path)), str)


def _variable(name: str) -> str:
    """Of the function that typer calls; some options have names of built-in functions, which it may not."""
    return f"option_{name}"


def flag(name: str, cli: Cli) -> str:
    """The spelling of an option."""
    return cli.flag or f"--{name.replace('_', '-')}"


def help_of(cli: Cli) -> str:
    """What ``--help`` says of an option."""
    return cli.help.replace("{planners}", PLANNER_NAMES)


def values(given: Mapping[str, Any], *kinds: type[Options]) -> dict[str, Any]:
    """What the user wrote, as Python takes it; options that were not given are left out."""
    found = {}
    for name, field in ((name, field) for kind in kinds for name, field in kind.known().items()):
        cli = facts(field).cli
        if cli is not None and given.get(name) is not None:
            read = FORMS[cli.form].read if cli.form is not None else _as_it_is
            found[name] = read(given[name], flag(name, cli))
    return found


# -------------------------------------------------------------------------------------------------------------- forms
def _as_it_is(value: Any, option: str) -> Any:
    return value


def parse_list(text: str, option: str) -> list[str]:
    """``a,b`` or, for items with commas, a JSON list."""
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",")]
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RelationalError(f"{option} is not a JSON list: {error}") from error
    if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
        raise RelationalError(f"{option} may list texts and numbers only: {text}")
    return [str(item) for item in items]


def _lists(texts: list[str], option: str) -> list[list[str]]:
    return [parse_list(text, option) for text in texts]


def _labels(text: str, option: str) -> tuple[str, ...]:
    """``yes,no`` or a JSON list of texts and whole numbers."""
    from vllm_relational.config.kinds import read_labels

    if not text.lstrip().startswith("["):
        return tuple(parse_list(text, option))
    try:
        return read_labels(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RelationalError(f"{option} is not a JSON list of labels: {error}") from error


def _range(text: str, option: str) -> tuple[int, int]:
    """``low,high``."""
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise RelationalError(f"{option} is {text!r}: write two whole numbers, e.g. {option} 1,5") from error
    return low, high


def _schema(path: Path, option: str) -> dict[str, Any]:
    """The JSON schema in a file."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RelationalError(f"cannot read the JSON schema {path}: {error}") from error
    if not isinstance(schema, dict):
        raise RelationalError(f"the JSON schema {path} is not a JSON object")
    return schema


def _rules(texts: list[str], option: str) -> dict[str, tuple[str, ...]]:
    """``COLUMN=rule,rule``; the last equals sign counts, as a column's name may hold one."""
    rules = {}
    for text in texts:
        name, equals, chosen = text.rpartition("=")
        if not equals or not name or not chosen.strip():
            raise RelationalError(f"{option} {text!r}: write COLUMN=rule,rule, e.g. {option} title=case,whitespace")
        rules[name] = tuple(rule.strip() for rule in chosen.split(","))
    return rules


def _weights(texts: list[str], option: str) -> dict[str, float]:
    """``COLUMN=NUMBER``; the last equals sign counts, as a column's name may hold one."""
    weights = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            if not equals:
                raise ValueError
            weights[name] = float(number)
        except ValueError:
            raise RelationalError(f"{option} {text!r}: write COLUMN=NUMBER, e.g. {option} description=2") from None
    return weights


FORMS = {
    "text": Form(str, _as_it_is),  # read by the command
    "list": Form(str, parse_list),
    "lists": Form(list[str], _lists),
    "labels": Form(str, _labels),
    "range": Form(str, _range),
    "schema": Form(Path, _schema),
    "rules": Form(list[str], _rules),
    "weights": Form(list[str], _weights),
}

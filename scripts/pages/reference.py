"""Reference pages: every option of Python and SQL from its typed definition, every command from the command line."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pages.measurements import page, table

# What a docstring says of an option, "name: meaning", is its meaning here too.
DOCUMENTED = (
    "vllm_relational.config:QueryConfig",
    "vllm_relational.config:DedupConfig",
    "vllm_relational.llm:RelationalLLM",
    "vllm_relational.llm:RelationalLLM.run",
    "vllm_relational.sql.operator:Settings",
    "vllm_relational.sql.connect:connect",
    "vllm_relational.engine.endpoint.engine:EndpointEngine",
)
KINDS = {str: "text", int: "whole number", float: "number", bool: "True or False", Path: "file", Any: "object"}
ENTRY = re.compile(r"^(\w+(?:, \w+)*):\s+(.*)$")


# --------------------------------------------------------------------------------------------------------- options
def options_page() -> str:
    """One table per class of options."""
    from vllm_relational import options
    from vllm_relational.sparse.settings import DiprSettings
    from vllm_relational.vllm_ext.settings import SchedulerSettings

    parts: list[str] = []
    for kind in option_classes(options):
        parts += [f"## {kind.__name__}", first_paragraph(kind) + _also(kind), _options(kind)]
    parts += _settings(SchedulerSettings, "`scheduler={...}` in Python, and the options of `serve`.")
    parts += _settings(DiprSettings, "`dipr={...}` in Python, `--dipr NAME=VALUE` of `serve`.")
    return page(
        "Options in Python and SQL",
        "Look up here what an option of `RelationalLLM`, `run`, `query`, `df.llm` and `sql.connect` takes and what it "
        "is by default. Wrong values are refused with the text of the column *takes*. The options of the command line "
        "are on [their own page](cli.md).",
        *parts,
    )


def _settings(kind: type, purpose: str) -> list[str]:
    """The section of a dataclass of settings."""
    known = meanings(kind)
    rows = [
        [f"`{f.name}`", f"`{cell(repr(f.default))}`", cell(known.get(f.name, ""))] for f in dataclasses.fields(kind)
    ]
    return [f"## {kind.__name__}", purpose, table(["setting", "default", "meaning"], rows, num_texts=3)]


def _options(kind: type[BaseModel]) -> str:
    return table(["option", "default", "takes", "meaning"], rows_of(kind), num_texts=4)


def _also(kind: type[BaseModel]) -> str:
    bases = [base.__name__ for base in kind.__mro__[1:] if issubclass(base, BaseModel) and base.model_fields]
    return f" It also has the options of {' and '.join(bases)}." if bases else ""


def option_classes(module: types.ModuleType) -> list[type[BaseModel]]:
    """The classes of options that a module defines, in its order."""
    found = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, BaseModel)]
    return [kind for kind in found if kind.__module__ == module.__name__ and kind.model_fields]


def first_paragraph(kind: type) -> str:
    """Of the docstring, on one line, with the marks of Markdown."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("``", "`")


def rows_of(kind: type[BaseModel]) -> list[list[str]]:
    """Of the fields that the class defines itself; inherited ones stand in the table of the class they are from."""
    known = known_meanings(kind)
    return [
        [f"`{field.alias or name}`", default_of(field), takes(field), cell(known.get(field.alias or name, ""))]
        for name, field in kind.model_fields.items()
        if name in inspect.get_annotations(kind)
    ]


def default_of(field: FieldInfo) -> str:
    """As Python writes it; long texts are named only."""
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    text = repr(field.default)
    return f"`{cell(text)}`" if len(text) <= 48 else "see `config.py`"


def takes(field: FieldInfo) -> str:
    """The type, and what the message for a wrong value says."""
    said = (field.description or "").removeprefix("give ").removeprefix("use ")
    return cell(f"{type_name(field.annotation)}: {said}" if said else type_name(field.annotation))


def type_name(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Annotated:
        return type_name(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return "text"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part) for part in get_args(kind) if part is not type(None)))
    if kind in KINDS:
        return KINDS[kind]
    base = get_origin(kind) or kind
    return {tuple: "list", list: "list", dict: "mapping"}.get(base, "mapping" if "Mapping" in str(base) else "object")


def cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def known_meanings(kind: type) -> dict[str, str]:
    """By option: what the docstring of the class says, then those of ``DOCUMENTED``; the first one counts."""
    found = meanings(kind)
    first = [name for name in DOCUMENTED if kind.__name__.startswith("Sql") and ".sql." in name]
    for name in [*first, *DOCUMENTED]:
        found = {**meanings(_object(name)), **found}
    return found


def _object(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = __import__(module, fromlist=["_"])
    for part in path.split("."):
        found = getattr(found, part)
    return found


def meanings(documented: Any) -> dict[str, str]:
    """By name: the entries "name, name:   meaning" of a docstring, continuation lines joined."""
    found: dict[str, str] = {}
    for names, text in _entries(inspect.getdoc(documented) or ""):
        found |= {name.strip(): text for name in names.split(",")}
    return found


def _entries(doc: str) -> Iterator[tuple[str, str]]:
    names, lines = "", list[str]()
    for line in [*doc.splitlines(), ""]:
        entry = ENTRY.match(line)
        if names and line.startswith("    "):
            lines.append(line.strip())
            continue
        if names:
            yield names, " ".join(lines)
        names, lines = (entry[1], [entry[2]]) if entry else ("", [])


# ----------------------------------------------------------------------------------------------------- command line
def cli_page() -> str:
    """One section per command."""
    from vllm_relational.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts: list[str] = []
    for name, command in sorted(commands.items()):
        parts += [f"## vllm-relational {name}", cell(command.help or ""), *_parameters(command)]
    return page(
        "The command line",
        "Look up here every command and option of `vllm-relational`. `vllm-relational COMMAND --help` says the same.",
        *parts,
    )


def _parameters(command: Any) -> list[str]:
    arguments = [f"`{p.name.upper()}`: {cell(p.help or '')}" for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    rows = [[_flags(option), _cli_default(option), cell(option.help or "")] for option in options]
    return ["Arguments: " + " ".join(arguments)] * bool(arguments) + [
        table(["option", "default", "meaning"], rows, num_texts=3)
    ]


def _flags(option: Any) -> str:
    return ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])


def _cli_default(option: Any) -> str:
    default = option.default
    if default is None or default is False or default == () or callable(default):
        return ""
    text = str(default)
    return f"`{cell(text)}`" if len(text) <= 60 and text else "see `config.py`"

"""Reference pages: every option of Python and SQL from its typed definition, every command from the command line."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pages.measurements import page, table
from vllm_relational.config.llm import LlmOptions, ServerOptions
from vllm_relational.config.option import Options, facts
from vllm_relational.config.query import AnswerOptions, MergingOptions, QueryConfig, QueryOptions
from vllm_relational.config.sql import Places, SqlOptions

KINDS = {str: "text", int: "whole number", float: "number", bool: "True or False", Path: "file", Any: "object"}
OPTIONS = (QueryOptions, AnswerOptions, QueryConfig, MergingOptions, LlmOptions, ServerOptions, SqlOptions, Places)
ENTRY = re.compile(r"^(\w+(?:, \w+)*):\s+(.*)$")


# --------------------------------------------------------------------------------------------------------- options
def options_page() -> str:
    """One table per class of options."""
    from vllm_relational.sparse.settings import DiprSettings
    from vllm_relational.vllm_ext.settings import SchedulerSettings

    parts: list[str] = []
    for kind in OPTIONS:
        parts += [f"## {kind.__name__}", first_paragraph(kind) + _also(kind), *_options(kind)]
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


def _options(kind: type[Options]) -> list[str]:
    rows = rows_of(kind)
    return [table(["option", "default", "takes", "meaning"], rows, num_texts=4)] if rows else []


def _also(kind: type[Options]) -> str:
    bases = [base.__name__ for base in kind.__bases__ if base is not Options]
    return f" It also has the options of {' and '.join(bases)}." if bases else ""


def first_paragraph(kind: type) -> str:
    """Of the docstring, on one line, with the marks of Markdown."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("``", "`")


def rows_of(kind: type[Options]) -> list[list[str]]:
    """Of the fields that the class defines itself; inherited ones stand in the table of the class they are from."""
    own = inspect.get_annotations(kind)
    return [
        [f"`{field.alias or name}`", default_of(field), takes(field), cell(field.description or "")]
        for name, field in kind.model_fields.items()
        if name in own
    ]


def default_of(field: FieldInfo) -> str:
    """As Python writes it; long texts are named only."""
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    text = repr(field.default)
    return f"`{cell(text)}`" if len(text) <= 48 else "see `config/names.py`"


def takes(field: FieldInfo) -> str:
    """The type, and what the message for a wrong value says."""
    said = facts(field).fix.removeprefix("give ").removeprefix("use ")
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
    from vllm_relational.cli.app import commands

    parts: list[str] = []
    for name, command in sorted(commands().items()):
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
    return f"`{cell(text)}`" if len(text) <= 60 and text else "see `config/names.py`"

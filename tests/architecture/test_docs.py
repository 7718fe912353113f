"""Every command and every public name is documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vllm_relational
from vllm_relational.cli.app import app, commands

PACKAGE = Path(vllm_relational.__file__).parent
ROOT = PACKAGE.parent
COMMANDS = commands()


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_in_the_documentation(command):
    page = ROOT / "docs" / "reference" / "cli.md"
    assert f"## vllm-relational {command}\n" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_explains_the_command_and_every_option(command):
    assert COMMANDS[command].help
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    for parameter in COMMANDS[command].params:
        if parameter.name != "help":
            assert parameter.help, f"{command} {parameter.name} has no help text"
            assert any(option in shown for option in parameter.opts) or parameter.param_type_name == "argument"


def public(path: Path) -> Iterator[ast.AST]:
    """Public functions and classes of a module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def test_modules_and_public_names_have_docstrings():
    paths = sorted(PACKAGE.rglob("*.py"))
    assert [path for path in paths if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []
    assert [(path, node.name) for path in paths for node in public(path) if not ast.get_docstring(node)] == []

"""Blocks of Python on the pages compile, and import what there is."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from types import ModuleType

import pytest
from markdown_pages import PAGES, blocks, name

PYTHON = [path for path in PAGES if blocks(path.read_text(encoding="utf-8"), "python")]


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_blocks_compile_and_import_what_there_is(path):
    for block in blocks(path.read_text(encoding="utf-8"), "python"):
        tree = ast.parse(block.text, f"{path.name}, block on line {block.line}")
        assert missing_imports(tree) == []


def missing_imports(tree: ast.AST) -> list[str]:
    """Names that a block imports from this package, and that it does not have."""
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vllm_relational":
            module = importlib.import_module(node.module)
            missing += [f"{node.module}.{alias.name}" for alias in node.names if not has(module, alias.name)]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vllm_relational":
                    importlib.import_module(alias.name)
    return missing


def has(module: ModuleType, wanted: str) -> bool:
    """Whether it is there, as a name or as a module."""
    return hasattr(module, wanted) or importlib.util.find_spec(f"{module.__name__}.{wanted}") is not None


def test_missing_names_are_found():
    assert missing_imports(ast.parse("from vllm_relational.plan import PLANNERS, gone")) == [
        "vllm_relational.plan.gone"
    ]

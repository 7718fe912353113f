"""The architecture as behaviour: which package may import which, no circles, and how large a file may grow (DESIGN.md).

``LAYERS`` is the whole rule: from the bottom up, what stands side by side in a line imports nothing of each other, and
everything may import what stands in a line below. A package imports its own modules freely, but in no circle.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vllm_relational

PACKAGE = Path(vllm_relational.__file__).parent
MAX_LINES = 400

LAYERS = [
    "records",
    "terminal extras answer_format files",
    "config",
    # the references of native code
    "plan.pair_dependencies plan.row_sort kv.simulate kv.future_use kv.partial_index kv.prefix_queue kv.policy",
    "native",
    "table prompts results embed plan kv sparse",
    "dedup retrieval vllm_ext context",
    "engine plugin",
    "query",
    "llm",
    "accessor compare sql",
    "cli __init__",
]
HEAVY = {"torch", "vllm", "transformers", "polars", "duckdb", "sqlglot", "matplotlib", "plotly", "faiss"}
HEAVY |= {"sentence_transformers"}
MAY_IMPORT_VLLM = {"engine", "vllm_ext", "plugin"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[tuple[str, ast.ImportFrom | ast.Import]]:
    """Absolute names of everything a file imports, inside functions and TYPE_CHECKING blocks too."""
    found: list[tuple[str, ast.ImportFrom | ast.Import]] = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", node) for alias in node.names]
    return found


def imported_modules(module: str) -> set[str]:
    """Modules of this package that a module imports; of ``from PACKAGE import name`` the package."""
    found = set()
    for name, _ in imports(MODULES[module]):
        inside = name.removeprefix("vllm_relational.")
        if inside != name:
            found.add(inside if inside in MODULES else inside.rpartition(".")[0] or "__init__")
    return found - {module}


@cache
def place_of(module: str) -> tuple[int, str]:
    """The layer and the entry there that a module belongs to: the longest that fits."""
    fits = [
        (len(entry), layer, entry)
        for layer, line in enumerate(LAYERS)
        for entry in line.split()
        if module == entry or module.startswith(f"{entry}.")
    ]
    assert fits, f"{module} stands in no layer"
    _, layer, entry = max(fits)
    return layer, entry


def package_of(module: str) -> str:
    return module.partition(".")[0]


def test_imports_go_down_the_layers():
    wrong = [
        (module, other)
        for module in MODULES
        for other in imported_modules(module)
        if package_of(other) != package_of(module) and place_of(other)[0] >= place_of(module)[0]
    ]
    assert wrong == []


def test_every_layer_is_there():
    entries = {entry for line in LAYERS for entry in line.split()}
    assert {place_of(module)[1] for module in MODULES} == entries


def test_no_module_imports_itself_by_a_detour():
    waiting = {module: imported_modules(module) for module in MODULES}
    while ready := {module for module, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {module: needs for module, needs in waiting.items() if module not in ready}
    assert waiting == {}


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _taken(module: str) -> Iterator[str]:
    """Private names of this package's modules that a module imports or reads from what it imports."""
    modules = {}  # local name -> module
    for name, node in imports(MODULES[module]):
        if not name.startswith("vllm_relational."):
            continue
        if any(map(_private, name.split(".")[1:])):
            yield name
        local = next((a.asname or a.name for a in node.names if name.endswith(a.name)), "")
        modules[local] = name
    for node in ast.walk(tree_of(MODULES[module])):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and _private(node.attr)):
            continue
        if modules.get(node.value.id, "").removeprefix("vllm_relational.") in MODULES:
            yield f"{modules[node.value.id]}.{node.attr}"


def test_no_private_name_of_another_package():
    names = [(module, name.removeprefix("vllm_relational.")) for module in MODULES for name in _taken(module)]
    assert [(module, name) for module, name in names if package_of(name) != package_of(module)] == []


def test_only_engine_extension_and_plugin_import_vllm():
    for module, path in MODULES.items():
        vllm = {name for name, _ in imports(path) if name == "vllm" or name.startswith("vllm.")}
        of_contexts = module.startswith("context.vllm_")
        assert not vllm or package_of(module) in MAY_IMPORT_VLLM or of_contexts, module
        if package_of(module) != "vllm_ext" and not of_contexts:
            inner = {name for name in vllm if name.startswith(("vllm.v1", "vllm.platforms", "vllm.distributed"))}
            assert not inner, module


def test_files_fit_in_the_head():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > MAX_LINES} == {}


def loaded_by(statement: str) -> set[str]:
    script = f"{statement}\nimport json, sys\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import vllm_relational", HEAVY | {"pandas"}),
        ("import vllm_relational.cli", HEAVY | {"pandas"}),
        ("from vllm_relational.context import DB", HEAVY | {"pandas", "pyarrow"}),
        ("import vllm_relational.plugin", HEAVY | {"pandas", "pyarrow", "numpy"}),
    ],
)
def test_importing_loads_no_heavy_library(statement, heavy):
    assert not loaded_by(statement) & heavy


def types_of(path: Path) -> Iterator[str]:
    """Names of the classes and of the choices (``Literal``) that a module defines."""
    for node in tree_of(path).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
            yield from map(ast.unparse, node.targets)


def test_the_name_of_a_type_has_one_meaning():
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for name in types_of(path):
            homes.setdefault(name, []).append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}

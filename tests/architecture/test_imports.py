"""The architecture as behaviour: who may import whom, and how large a file may grow (DESIGN.md)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_relational

PACKAGE = Path(vllm_relational.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
MAX_LINES = 500

SHARED = {"records", "config", "native", "extras", "terminal"}  # what every room may import
SHARED |= {"json_schemas", "thoughts", "options", "option_kinds"}  # read alike everywhere
SHARED |= {"atomic_file", "named_files"}  # a file is written whole, and its names are told apart, alike everywhere
# The front doors put rooms together; native.py finds the references of its loops in two rooms.
FRONT = {
    "pipeline",
    "llm",
    "accessor",
    "cli",
    "cli_errors",
    "cli_files",
    "cli_resume",
    "job_record",
    "cli_options",
    "cli_output",
    "cli_retrieval",
    "cli_sql",
    "retrieving",
    "unasked",
    "bench",
    "plugin",
}
FRONT |= {"plugin", "__init__", "grouping", "auditing", "forecasting", "planning", "planning_text", "planning_html"}
# sql stands above llm, which it is given: it imports no stage. Its own files are one room.
EXTRA = {"native": {"plan.row_sort", "plan", "kv.simulate", "kv"}, "engine": {"vllm_ext"}, "vllm_ext": {"kv", "sparse"}}
EXTRA |= {"retrieval": {"embed"}}
# sql is given what searches for passages, as it is given llm; where it is not, it takes what the commands take. What
# reads the cells of a DuckDB relation is the table's: run and SQL must send the same text.
EXTRA |= {"sql": {"retrieving", "table"}}
HEAVY = {"torch", "vllm", "transformers", "polars", "duckdb", "sqlglot", "matplotlib", "plotly", "faiss"}
HEAVY |= {"sentence_transformers"}
MAY_IMPORT_VLLM = {"engine", "vllm_ext", "plugin"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, inside functions and TYPE_CHECKING blocks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def siblings(path: Path) -> set[str]:
    """Rooms of this package, other than its own, that a file imports."""
    inside = {name.removeprefix("vllm_relational.") for name in imports(path) if name.startswith("vllm_relational.")}
    rooms = {room_of(name) for name in inside}
    there = {room_of(module_of(file)) for file in FILES}
    return (rooms & there) - {room_of(module_of(path))}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_room_imports_only_what_all_rooms_share(path):
    room = room_of(module_of(path))
    if room in FRONT:
        return
    allowed = {name for name in SHARED if name != "native" or room not in SHARED} | EXTRA.get(room, set())
    assert siblings(path) <= allowed


def test_records_import_no_room():
    assert siblings(PACKAGE / "records.py") == set()
    assert siblings(PACKAGE / "json_schemas.py") <= {"records"} and siblings(PACKAGE / "thoughts.py") == set()
    assert siblings(PACKAGE / "config.py") <= {"records", "json_schemas"}
    assert siblings(PACKAGE / "options.py") <= {"records", "json_schemas", "config", "terminal", "option_kinds"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_engine_extension_and_plugin_import_vllm(path):
    vllm = {name for name in imports(path) if name == "vllm" or name.startswith("vllm.")}
    room = room_of(module_of(path))
    assert not vllm or room in MAY_IMPORT_VLLM
    if room != "vllm_ext":
        assert not {name for name in vllm if name.startswith(("vllm.v1", "vllm.platforms", "vllm.distributed"))}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_fit_in_the_head(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def loaded_by(statement: str) -> set[str]:
    script = f"{statement}\nimport json, sys\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("statement", ["import vllm_relational", "import vllm_relational.cli.app"])
def test_importing_the_package_loads_no_heavy_library(statement):
    assert not loaded_by(statement) & HEAVY

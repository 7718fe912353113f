"""The tests mirror the package and csrc: where the tests of a module are, its path says.

A module ``sql/ask.py`` is tested by ``tests/sql/test_ask.py``, by files of ``tests/sql`` that import it, or with its
package by ``tests/test_sql.py``; ``csrc/planner/cluster.cc`` by ``csrc/tests/cluster_test.cc``. What is tested through
its callers stands in ``COVERED_BY``, beside the file that does it: modules, or a package for all that have no other.
A planner of ``PLANNERS`` needs none: ``tests/plan`` runs all of them.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import vllm_relational
from vllm_relational.plan import PLANNERS

PACKAGE = Path(vllm_relational.__file__).parent
TESTS = Path(__file__).parents[1]
CSRC = TESTS.parent / "csrc"

COVERED_BY = {
    "tests/test_llm.py": "accessor engine/base",
    "tests/cli/test_app.py": "cli/__main__ cli/compare cli/errors cli/options cli/run compare/orders",
    "tests/cli/test_dedup.py": "cli/cache",
    "tests/cli/test_sql_session.py": "cli/sql",
    "tests/context/test_store.py": "context/inventory context/writing",
    "tests/cli/test_context.py": "context/prefill",
    "tests/dedup/test_semantic.py": "dedup/grouper",
    "tests/engine/endpoint/test_engine.py": "engine/endpoint/reply",
    "tests/e2e/test_survival.py": "engine/interrupts vllm_ext/process/live_engine",
    "tests/e2e/test_retrieval.py": "engine/vllm_embedder",
    "tests/engine/test_constraints.py": "answer_format/check",
    "tests/engine/test_server.py": "cli/serve",
    "tests/engine/test_fingerprint.py": "vllm_ext/process/facts",
    "tests/native/test_native_limits.py": "native",
    "tests/native/test_row_sort.py": "plan/row_sort",
    "tests/test_options.py": "config",
    "tests/query/test_pipeline.py": "query/answers query/planned query/report query/tokenised",
    "tests/query/test_dedup_queries.py": "query/audit",
    "tests/query/test_partial_results.py": "query/job_record",
    "tests/query/test_forecast.py": "query/no_engine",
    "tests/results/test_cache.py": "results/cache_repair",
    "tests/results/test_checkpoint.py": "results/checkpoint_lines",
    "tests/cli/test_files.py": "results/report_json",
    "tests/sparse/kernels/test_kernels.py": "sparse/kernels",
    "tests/sparse/kernels/test_pages.py": "sparse/decoder",
    "tests/sql/test_differential.py": "sql",  # whatever stands in a statement, against DuckDB alone
    "tests/sql/passes/test_layout.py": "sql/passes",
    "tests/table/test_objects.py": "table/cell_text table/duckdb_cells table/python_cells",
    "tests/vllm_ext/attention/test_support.py": "plugin vllm_ext/attention/registration vllm_ext/worker",
    "tests/vllm_ext/attention/test_settings.py": "vllm_ext/settings",
    "tests/vllm_ext/scheduler/test_contexts.py": "context/vllm_connector",
    "tests/vllm_ext/scheduler/test_metrics.py": "vllm_ext/metrics",
    "tests/vllm_ext/scheduler/test_partial_reuse.py": "vllm_ext/scheduler/partial_sources",
    "tests/context/search/test_flat.py": "context/search/base context/search/hits",
    "tests/context/test_session.py": "context/body context/torch_rows",
    # C++
    "csrc/tests/value_overlap_test.cc": "planner/rank_pool",
    "csrc/tests/cluster_test.cc": "planner/choose_groups planner/value_groups",
    "csrc/tests/tree_planner_test.cc": "planner/plan_table planner/row_order",
    "csrc/tests/prefix_cache_test.cc": "replay/block_chains",
    "csrc/tests/replays_test.cc": "replay/block_tree replay/replay_belady replay/replay_fifo",
    "csrc/tests/scan_test.cc": "context/attend context/hits context/kernels context/kernels_avx2 "
    "context/kernels_avx512 context/rows context/simd_level",
    "csrc/tests/clusters_test.cc": "context/clusters_build",
    "csrc/tests/graph_test.cc": "context/graph_build",
    "csrc/tests/scheduler_parts_test.cc": "scheduler/free_queue scheduler/future_use scheduler/partial_index "
    "scheduler/prefix_queue",
}
ELSEWHERE = {part: TESTS.parent / test for test, parts in COVERED_BY.items() for part in parts.split()}
MODULES = [path.relative_to(PACKAGE).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))]
MODULES = [module for module in MODULES if module.name != "__init__"]
PARTS = [path.relative_to(CSRC).with_suffix("") for path in sorted(CSRC.rglob("*.cc"))]
PARTS = [part for part in PARTS if part.parts[0] not in ("tests", "python")]  # the bindings are what Python calls


@cache
def imported_by(test: Path) -> set[str]:
    """Absolute names, of ``from a import b`` both ``a`` and ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(test.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def mirrored(module: Path) -> list[Path]:
    """The test files that the place of the module names."""
    folder = TESTS / module.parent
    name = ".".join(("vllm_relational", *module.parts))
    whole = TESTS / module.parent.parent / f"test_{module.parent.name}.py"  # of a small package
    if module.parent.name and whole.exists():
        return [whole]
    return [
        test for test in folder.glob("test_*.py") if test.stem == f"test_{module.name}" or name in imported_by(test)
    ]


def is_planner(module: Path) -> bool:
    """Whether ``PLANNERS`` registers a function of it."""
    return ".".join(("vllm_relational", *module.parts)) in {planner.plan.__module__ for planner in PLANNERS.values()}


def test_every_module_has_tests_where_its_path_says_or_is_listed():
    for module in MODULES:
        listed = ELSEWHERE.get(module.as_posix())
        covered = mirrored(module) or listed or ELSEWHERE.get(module.parent.as_posix()) or is_planner(module)
        assert covered, f"{module}: add tests/{module.parent}/test_{module.name}.py, or a line to COVERED_BY"
        assert listed is None or not mirrored(module), f"{module} has its own tests: take it from COVERED_BY"


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_part_in_cpp_has_a_test_program(part):
    own = CSRC / "tests" / f"{part.name}_test.cc"
    covered = ELSEWHERE.get(part.as_posix())
    assert own.exists() != (covered is not None), f"{part}: {own.name}, or a line of COVERED_BY, not both"


def test_what_is_listed_exists():
    assert {str(test) for test in ELSEWHERE.values() if not test.exists()} == set()
    known = {path.as_posix() for path in [*MODULES, *(module.parent for module in MODULES), *PARTS]}
    assert set(ELSEWHERE) <= known


def test_every_test_program_is_built():
    built = (CSRC / "CMakeLists.txt").read_text(encoding="utf-8")
    for program in [*CSRC.glob("tests/*_test.cc"), *CSRC.glob("tests/*_fuzz.cc")]:
        assert program.stem in re.findall(r"\w+", built)

"""``vllm_ext/contract`` and the installed vLLM agree, and nothing of vLLM is touched that does not stand there.

How to move to the next vLLM: see ``vllm_ext/contract/__init__.py``.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager

from vllm_relational import vllm_ext
from vllm_relational.records import RelationalError
from vllm_relational.vllm_ext.contract import CONTRACT, check, replaced_by
from vllm_relational.vllm_ext.contract.check import check_contract, differences
from vllm_relational.vllm_ext.contract.target import Target, target
from vllm_relational.vllm_ext.scheduler.partial_reuse import PartialReuse
from vllm_relational.vllm_ext.version import SUPPORTED

FOLDER = Path(vllm_ext.__file__).parent
FILES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path
    for path in sorted(FOLDER.rglob("*.py"))
    if "contract" not in path.parts
}
FILES |= {f"context.{path.stem}": path for path in sorted(FOLDER.parent.glob("context/vllm_*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
POOL = next(target for target in CONTRACT if target.name == "BlockPool")

# Variables that hold something of vLLM wherever they are used in ``vllm_ext``.
HOLD_VLLM = {"scheduler", "manager", "pool", "request", "vllm_config", "model", "parallel", "cache_config", "spec"}
HOLD_VLLM |= {"coordinator", "impl", "runner", "common", "desc", "client", "metadata", "block", "llm"}
NOT_OF_VLLM = {"__class__", "__name__", "dipr", "dipr_builders", "graphs_of"}
"""Names of Python, and what ours add to objects of vLLM."""


# --------------------------------------------------------------------------------------------------- vLLM as it is
def test_the_installed_vllm_is_as_the_contract_says():
    assert differences() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (replace(POOL, methods={"evict_blocks": "block_ids, now="}), "takes (block_ids), not (block_ids, now=)"),
        (replace(POOL, methods={"forget": ""}), "BlockPool.forget is missing"),
        (replace(POOL, methods={"blocks": ""}), "BlockPool.blocks is no function any more"),
        (replace(POOL, attributes=("tiers",)), "BlockPool has no tiers"),
        (replace(POOL, name="Pool"), "vllm.v1.core.block_pool has no Pool"),
        (replace(POOL, module="vllm.v1.core.pool"), "vllm.v1.core.pool has no BlockPool"),
        (target("vllm.logger", "init_logger", "x", "why", parameters="title"), "init_logger takes (name), not (title)"),
    ],
)
def test_what_differs_is_named(changed, said):
    (difference,) = differences([changed])
    assert said in difference


def test_a_process_reads_each_module_of_vllm_once(monkeypatch):
    read = []
    source = check._module
    monkeypatch.setattr(check, "_module", lambda name: read.append(name) or source(name))
    check._differences_in.cache_clear()
    for part in ("scheduler", "attention", "process", "context", "scheduler"):
        assert check.different_for(part) == ()
    assert sorted(read) == sorted({target.module for target in CONTRACT})


def test_a_changed_release_is_refused_before_anything_is_replaced(monkeypatch):
    monkeypatch.setattr(check, "different_for", lambda part: ("BlockPool.evict_blocks is missing",))
    with pytest.raises(RelationalError, match=r"scheduler needs it so: BlockPool.evict_blocks is missing.* anew"):
        check_contract("scheduler", f"{SUPPORTED}+cpu")


def test_under_another_version_the_log_names_what_differs(monkeypatch, caplog):
    monkeypatch.setattr(check, "different_for", lambda part: ("BlockPool.evict_blocks is missing",))
    with caplog.at_level(logging.WARNING, "vllm.relational.contract"):
        logging.getLogger("vllm").addHandler(caplog.handler)  # vLLM's logger hands nothing up
        try:
            check_contract("scheduler", "0.33.0")
        finally:
            logging.getLogger("vllm").removeHandler(caplog.handler)
    assert "0.33.0 differs from 0.32.0 in what vllm-relational's scheduler uses: BlockPool.evict" in caplog.text


# ------------------------------------------------------------------------------------------------ ours as they are
def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    return ((module, node) for module, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kinds))


def imported() -> set[tuple[str, str, str]]:
    """(module of ours, module of vLLM, name) of every import."""
    return {
        (module, node.module, alias.name)
        for module, node in nodes(ast.ImportFrom)
        if node.module.split(".")[0] == "vllm"
        for alias in node.names
    }


def listed(module: str) -> set[str]:
    """Names of all members of what a module of ours touches."""
    return {name for found in CONTRACT if module in found.used_by for name in (*found.methods, *found.attributes)}


EVERY_NAME = {name for found in CONTRACT for name in (*found.methods, *found.attributes)}


def test_every_import_is_listed_for_its_module():
    known = {(module, found.imported_from, found.name) for found in CONTRACT for module in found.used_by}
    assert imported() - known == set()


def test_every_target_is_used_by_a_module_that_there_is():
    assert {module for found in CONTRACT for module in found.used_by} <= set(FILES)


def test_every_name_that_is_listed_is_used():
    bindings = FOLDER.parents[1] / "csrc/python/scheduler_bindings.cc"
    ours = "".join(path.read_text(encoding="utf-8") for path in (*FILES.values(), bindings))
    unused = {
        f"{found.path}.{name}" for found in CONTRACT for name in (*found.methods, *found.attributes) if name not in ours
    }
    assert unused == set()


@cache
def own_members() -> set[str]:
    """What classes and modules of this package define."""
    found = set()
    for path in FOLDER.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if ast.unparse(node.value) == "self" else set()
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def test_every_method_of_vllm_that_is_called_from_its_override_is_listed():
    called = {
        (module, node.attr)
        for module, node in nodes(ast.Attribute)
        if isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
    }
    assert {(module, name) for module, name in called if name not in ("__init__", "__new__")} <= {
        (module, name) for module in FILES for name in listed(module)
    }


def test_every_private_name_that_is_not_ours_is_listed():
    ours = own_members()
    private = {
        (module, node.attr)
        for module, node in nodes(ast.Attribute)
        if node.attr.startswith("_") and node.attr not in ours | NOT_OF_VLLM and not node.attr.startswith("__")
    }
    assert private and private <= {(module, name) for module in FILES for name in listed(module)}


def test_everything_set_on_an_object_of_vllm_is_listed():
    ours = own_members()
    written = {
        (module, node.attr)
        for module, node in nodes(ast.Attribute)
        if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) != "self" and node.attr not in ours | NOT_OF_VLLM
    }
    assert written and {name for _, name in written} <= EVERY_NAME


def test_everything_read_of_a_variable_that_holds_something_of_vllm_is_listed():
    read = {
        (module, ast.unparse(node))
        for module, node in nodes(ast.Attribute)
        if isinstance(node.value, ast.Name) and node.value.id in HOLD_VLLM and node.attr not in NOT_OF_VLLM
    }
    assert read and {name for _, name in read if name.partition(".")[2] not in EVERY_NAME} == set()


def test_partial_reuse_replaces_the_seven_methods_that_the_contract_names():
    names = replaced_by("scheduler.partial_reuse")
    assert {owner: len(found) for owner, found in names.items()} == {"KVCacheManager": 5, "BlockPool": 2}
    for owner in (KVCacheManager, BlockPool):
        assert all(hasattr(owner, name) and hasattr(PartialReuse, f"_{name}") for name in names[owner.__name__])


def test_targets_are_listed_once():
    paths = [found.path for found in CONTRACT]
    assert len(set(paths)) == len(paths)
    assert all(isinstance(found, Target) and found.why for found in CONTRACT)

"""Compares the contract with the sources of the installed vLLM; nothing of it is imported or run.

So a class of a GPU is checked on a machine without one, and a vLLM that does not load says what differs.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from vllm_relational.records import RelationalError
from vllm_relational.vllm_ext.contract import CONTRACT
from vllm_relational.vllm_ext.contract.target import Target
from vllm_relational.vllm_ext.version import SUPPORTED, is_supported

logger = logging.getLogger("vllm.relational.contract")  # below vLLM's logger: its level and format
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_contract(part: str, found: str) -> None:
    """``RelationalError`` naming what of vLLM is not as ``part`` of this package, such as ``scheduler``, expects it.

    found: the version of the installed vLLM. Under another version than the supported one, which is run at the user's
    own risk, the same goes to the log.
    """
    different = different_for(part)
    if not different:
        return
    what = "; ".join(different)
    if is_supported(found):
        raise RelationalError(
            f"the installed vLLM {found} is not as it was released, and vllm-relational's {part} needs it so: {what}. "
            f"Install vllm=={SUPPORTED} anew"
        )
    logger.warning("vLLM %s differs from %s in what vllm-relational's %s uses: %s", found, SUPPORTED, part, what)


def different_for(part: str) -> tuple[str, ...]:
    """What of the installed vLLM is not as a part of this package expects it; at most 0.5 seconds."""
    used = [target for target in CONTRACT if any(f"{module}.".startswith(f"{part}.") for module in target.used_by)]
    return tuple(what for target in used for what in _differences_in(target.module)[target.path])


@cache
def _differences_in(module: str) -> dict[str, list[str]]:
    """Of all targets in a module, by their paths: parts share modules, and a process reads each of them once."""
    tree = _module(module)
    return {target.path: list(_differences(target, tree)) for target in CONTRACT if target.module == module}


def differences(targets: Iterable[Target] = CONTRACT) -> list[str]:
    """What of the installed vLLM is not as these targets say, in words."""
    found: list[str] = []
    for module, of_module in groupby(sorted(targets, key=lambda target: target.module), lambda target: target.module):
        tree = _module(module)
        for target in of_module:
            found += _differences(target, tree)
    return found


def _differences(target: Target, module: ast.Module | None) -> Iterator[str]:
    """Of one target."""
    node = None if module is None else _named(module, target.name)
    if node is None:
        yield f"{target.module} has no {target.name}"
    elif isinstance(node, _Function):
        yield from _different_parameters(target.path, node, target.parameters)
    elif isinstance(node, ast.ClassDef):
        members = _members(node)
        for name, parameters in target.methods.items():
            yield from _different_parameters(f"{target.path}.{name}", members.get(name), parameters)
        yield from (f"{target.path} has no {name}" for name in target.attributes if name not in members)


def _different_parameters(path: str, node: ast.AST | None, wanted: str | None) -> Iterator[str]:
    if not isinstance(node, _Function):
        yield f"{path} is no function any more" if node is not None else f"{path} is missing"
    elif wanted is not None and (found := parameters_of(node)) != wanted:
        yield f"{path} takes ({found}), not ({wanted})"


def parameters_of(function: _Function) -> str:
    """As ``Target.methods`` has them: no ``self``, no annotations; ``x=`` has a default."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    required = len(named) - len(arguments.defaults)
    found = [argument.arg + "=" * (place >= required) for place, argument in enumerate(named)]
    if named and named[0].arg in ("self", "cls"):
        del found[0]
    if arguments.vararg is not None:
        found.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        found.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(argument.arg + "=" * (default is not None))
    return ", ".join([*found, *([f"**{arguments.kwarg.arg}"] if arguments.kwarg is not None else [])])


def _module(name: str) -> ast.Module | None:
    """The source of a module of the installed vLLM; ``None`` where there is none."""
    package = find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        return None
    place = Path(package.submodule_search_locations[0], *name.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    return None


def _named(definitions: ast.Module, name: str) -> ast.AST | None:
    """What a module defines under this name, also below ``if`` and ``try``."""
    return next((node for node in _statements(definitions) if name in _names(node)), None)


def _members(definition: ast.ClassDef) -> dict[str, ast.AST]:
    """Methods, class attributes, and what the methods set on ``self``; nothing inherited."""
    found: dict[str, ast.AST] = {}
    for node in ast.walk(definition):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            found[node.attr] = node
    for node in _statements(definition):
        found.update((name, node) for name in _names(node))
    return found


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _statements(definitions: ast.AST) -> Iterator[ast.AST]:
    """Statements of a module or class, of its ``if`` and ``try`` too."""
    for node in ast.iter_child_nodes(definitions):
        yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from _statements(node)


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, _Function | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                yield target.id
    elif isinstance(node, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)

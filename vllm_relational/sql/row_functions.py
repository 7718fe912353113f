"""Functions of a select list that are not one value of one row: windows, and those that make rows. Macros, too."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Protocol

from sqlglot import exp

from vllm_relational.sql.parse import is_call

# Mark calls of functions that sqlglot does not know.
_UNNESTS_META, _WINDOW_META = "unnests", "window"


class RowFunctions(Protocol):
    """Names of functions that make rows, and of those that look over a window."""

    @property
    def unnesting(self) -> Container[str]: ...

    @property
    def windows(self) -> Container[str]: ...


def mark_macros(tree: exp.Expr, names: Callable[[], RowFunctions]) -> None:
    """Note which functions are such. names: asked for where there is a function to judge."""
    for node in tree.find_all(exp.Anonymous):
        if is_call(node):
            continue
        if node.name.casefold() in names().unnesting:
            node.meta[_UNNESTS_META] = True
        if node.name.casefold() in names().windows:
            node.meta[_WINDOW_META] = True


def unnests(item: exp.Expr) -> bool:
    """Whether an item of the select list makes no row or many of one: LIMIT counts those."""
    return any(isinstance(node, exp.Explode | exp.Unnest) or _UNNESTS_META in node.meta for node in item.walk())


def is_window(node: exp.Expr) -> bool:
    """Whether a node is a value of a row and the rows around it."""
    return isinstance(node, exp.Window) or _WINDOW_META in node.meta


def holds_window(tree: exp.Expr) -> bool:
    """Whether there is a window anywhere in ``tree``."""
    return any(is_window(node) for node in tree.walk())

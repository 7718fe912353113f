"""What macros hold: a call of one aggregates, looks over a window or makes rows where its body does.

Bodies are DuckDB's own text of them, so DuckDB's macros (``geomean``) are read as the user's are. What stands in a
subquery of a body does not count: there it makes one value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from vllm_relational.sql.blocks import Aggregates, own_nodes
from vllm_relational.sql.parse import DIALECT
from vllm_relational.sql.quiet import quiet

_CALLED = re.compile(r'(\w+)"?\s*\(')
_OVER = re.compile(r"\bOVER\b", re.IGNORECASE)
UNNESTING = ("unnest", "unlist")


@dataclass(frozen=True)
class Macros:
    """Names of functions, macros over macros among them, in lower case.

    aggregates: make one value of the rows of a group, DuckDB's own included.
    windows:    make a value of a row and the rows around it; macros only.
    unnesting:  make rows, DuckDB's own included.
    """

    aggregates: frozenset[str]
    windows: frozenset[str]
    unnesting: frozenset[str]


@dataclass(frozen=True)
class _Body:
    """called: functions that sqlglot does not know, in lower case."""

    called: frozenset[str]
    aggregates: bool = False
    windows: bool = False
    unnests: bool = False


def read_macros(definitions: Iterable[tuple[str, str | None]], aggregates: Iterable[str]) -> Macros:
    """Of (name, body); a macro has a body for each number of its parameters. aggregates: DuckDB's own."""
    bodies = [(name.casefold(), _read(text)) for name, text in definitions if text]
    return Macros(
        _holding(bodies, lambda body: body.aggregates, {name.casefold() for name in aggregates}),
        _holding(bodies, lambda body: body.windows, set()),
        _holding(bodies, lambda body: body.unnests, set(UNNESTING)),
    )


def _holding(bodies: list[tuple[str, _Body]], holds: Callable[[_Body], bool], found: set[str]) -> frozenset[str]:
    """The names ``found`` and those of macros that hold it themselves or call one that does."""
    while more := {name for name, body in bodies if holds(body) or body.called & found} - found:
        found |= more
    return frozenset(found)


@lru_cache(maxsize=4096)
def _read(text: str) -> _Body:
    try:
        with quiet():
            tree = sqlglot.parse_one(text, read=DIALECT)
    except SqlglotError:  # by its words: rather one statement too many that is left as it is
        called = frozenset(name.casefold() for name in _CALLED.findall(text))
        return _Body(called, windows=_OVER.search(text) is not None)
    nodes, windows = list(own_nodes(tree)), [node.this for node in tree.find_all(exp.Window)]
    named = (node for node in nodes if isinstance(node, exp.Anonymous) and not any(node is each for each in windows))
    return _Body(
        frozenset(node.name.casefold() for node in named),
        aggregates=Aggregates().within(tree),
        windows=any(isinstance(node, exp.Window) for node in nodes),
        unnests=any(isinstance(node, exp.Explode | exp.Unnest) for node in nodes),
    )

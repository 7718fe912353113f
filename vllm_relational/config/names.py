"""Values that options have by name, their defaults and bounds."""

from __future__ import annotations

from typing import Literal, get_args

from vllm_relational.records import RelationalError
from vllm_relational.terminal import warn

OnError = Literal["null", "raise"]
Nulls = Literal["error", "keep"]
DedupMode = Literal["exact", "normalized", "semantic"]
Layout = Literal["question-first", "row-first"]

DEFAULT_ORDER = "tree"
RENAMED_ORDERS = {"published": "original"}  # old name -> name; the old ones go with version 0.3
QUESTION_FIRST: Layout = "question-first"
ROW_FIRST: Layout = "row-first"
# The end of the reason of a row that has a null, for whoever has that option.
KEEP_NULLS = " (keep nulls with --nulls keep)"
MAX_WEIGHT = 1000
MAX_SEED = 2**31 - 2
DEFAULT_SIMILARITY = 0.95
DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_SYSTEM_PROMPT = (
    "You answer a question about one record of a table. The record is given as JSON; names in double quotes in the "
    "question are its fields. Reply with the answer only."
)


def current_order(name: str) -> str:
    """The name of an order today; warns of one that it had before."""
    if name not in RENAMED_ORDERS:
        return name
    warn(f"the order {name!r} is called {RENAMED_ORDERS[name]!r} now: the old name goes with version 0.3", stacklevel=4)
    return RENAMED_ORDERS[name]


def one_of(kind: object) -> str:
    """The names of a kind of them, for a message."""
    return f"use one of {', '.join(get_args(kind))}"


def check_layout(layout: str) -> None:
    """Raise ``RelationalError`` for a layout that there is not."""
    if layout not in get_args(Layout):
        raise RelationalError(f"layout is {layout!r}: {one_of(Layout)}")

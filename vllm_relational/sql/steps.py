"""What the walk over a statement needs from outside: each step that it yields is answered before it goes on.

The planner knows what a statement asks, in which order, and of which rows. Whether the model is asked, rows are stored
or numbers are only forecast is for the evaluation that the walk runs in (``evaluation``): the planner calls nobody.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from sqlglot import exp

from vllm_relational.sql.planned_call import PlannedCall


@dataclass(frozen=True)
class AskCall:
    """The walk comes to a call; the answers of all calls before are known to lookups. Answer: none."""

    planned: PlannedCall


@dataclass(frozen=True)
class OrderPredicates:
    """Several LLM predicates of a block. Answer: the same in the order in which to ask them."""

    block: exp.Select
    parts: list[exp.Expr]


@dataclass(frozen=True)
class StoreRows:
    """Rows without calls. Answer: something to read from that has the same rows whenever it is read."""

    rows: exp.Select


@dataclass(frozen=True)
class TryRows:
    """Rows with calls hidden in them. Answer: whether they can be computed before these calls are asked."""

    rows: exp.Select


@dataclass(frozen=True)
class TryBlock:
    """A block with calls in its WHERE. Answer: whether the statement may evaluate one of them."""

    block: exp.Select


@dataclass(frozen=True)
class TakeFirst:
    """The rows that pass LLM predicates. Answer: something to read the first ``need`` of them from."""

    kept: exp.Select
    need: int


Step = AskCall | OrderPredicates | StoreRows | TryRows | TryBlock | TakeFirst
# A walk over a part of a statement: it yields steps and is sent their answers.
Walk = Generator[Step, Any, None]

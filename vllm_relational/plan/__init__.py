"""Orders for rows and fields that let neighbours share the longest prefixes.

A planner is a function ``PlanInput -> Plan``. Register it in ``PLANNERS``, with what it needs, and it can be chosen by
name everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vllm_relational.config import current_order
from vllm_relational.plan.constraints import weighted
from vllm_relational.plan.exhaustive import plan_exhaustive
from vllm_relational.plan.fixed import plan_fixed, plan_fixed_v2
from vllm_relational.plan.ggr import plan_ggr
from vllm_relational.plan.original import plan_original
from vllm_relational.plan.tree import plan_tree, value_overlaps
from vllm_relational.records import Plan, PlanInput, RelationalError

# A day: beyond it a number is a slip, and far beyond it does not fit the planner's count of work.
MAX_BUDGET_SECONDS = 86_400.0


@dataclass(frozen=True)
class Planner:
    """A planning function and what it declares about itself; called like the function.

    plan:           ``PlanInput -> Plan``; where ``takes_budget``, also ``budget_seconds=``.
    reads_overlaps: it reads ``PlanInput.overlaps``; for other planners they need not be computed.
    takes_budget:   its search can be given a number of seconds.
    """

    plan: Callable[..., Plan]
    reads_overlaps: bool = False
    takes_budget: bool = False

    def __call__(self, batch: PlanInput) -> Plan:
        return self.plan(batch)


PLANNERS: Mapping[str, Planner] = {
    "original": Planner(plan_original),
    "fixed": Planner(plan_fixed),
    "fixed_v2": Planner(plan_fixed_v2),
    "ggr": Planner(plan_ggr),
    "tree": Planner(plan_tree, reads_overlaps=True, takes_budget=True),
    "exhaustive": Planner(plan_exhaustive),
}


def planner(name: str, budget_seconds: float | None = None) -> Planner:
    """The planner of that name, its search bounded by ``budget_seconds`` (None: its own default).

    Raises ``RelationalError`` with the names there are, or when the planner takes no budget or not this one.
    """
    name = current_order(name)
    if name not in PLANNERS:
        raise RelationalError(f"there is no order {name!r}: use one of {', '.join(PLANNERS)}")
    if budget_seconds is None:
        return PLANNERS[name]
    if not PLANNERS[name].takes_budget:
        raise RelationalError(f"order {name!r} does not search and takes no budget: give none, or use {_searching()}")
    if not 0 <= budget_seconds <= MAX_BUDGET_SECONDS:  # NaN fails too
        raise RelationalError(f"the budget is {budget_seconds:g} seconds: give 0 to {MAX_BUDGET_SECONDS:,.0f}")
    bounded = functools.partial(PLANNERS[name].plan, budget_seconds=budget_seconds)
    return replace(PLANNERS[name], plan=bounded)


def _searching() -> str:
    return " or ".join(repr(name) for name, known in PLANNERS.items() if known.takes_budget)


__all__ = [
    "PLANNERS",
    "Planner",
    "plan_exhaustive",
    "plan_fixed",
    "plan_fixed_v2",
    "plan_ggr",
    "plan_original",
    "plan_tree",
    "planner",
    "value_overlaps",
    "weighted",
]

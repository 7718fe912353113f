"""Orders for rows and fields that let neighbours share the longest prefixes.

A planner is a function ``PlanInput -> Plan``. Register it in ``PLANNERS`` and it can be chosen by name everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vllm_relational.plan.exhaustive import plan_exhaustive
from vllm_relational.plan.fixed import plan_fixed, plan_fixed_v2
from vllm_relational.plan.ggr import plan_ggr
from vllm_relational.plan.published import plan_published
from vllm_relational.plan.tree import plan_tree, value_overlaps
from vllm_relational.records import Plan, PlanInput, RelationalError

Planner = Callable[[PlanInput], Plan]

PLANNERS: Mapping[str, Planner] = {
    "published": plan_published,
    "fixed": plan_fixed,
    "fixed_v2": plan_fixed_v2,
    "ggr": plan_ggr,
    "tree": plan_tree,
    "exhaustive": plan_exhaustive,
}


def planner(name: str) -> Planner:
    """The planner of that name, or ``RelationalError`` with the names there are."""
    if name not in PLANNERS:
        raise RelationalError(f"there is no order {name!r}: use one of {', '.join(PLANNERS)}")
    return PLANNERS[name]


__all__ = [
    "PLANNERS",
    "Planner",
    "plan_exhaustive",
    "plan_fixed",
    "plan_fixed_v2",
    "plan_ggr",
    "plan_published",
    "plan_tree",
    "planner",
    "value_overlaps",
]

"""Orders for rows and fields that let neighbours share the longest prefixes.

A planner is a function ``PlanInput -> Plan``. Register it in ``PLANNERS`` and it can be chosen by name everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vllm_relational.plan.fixed import plan_fixed
from vllm_relational.plan.published import plan_published
from vllm_relational.plan.tree import plan_tree, value_overlaps
from vllm_relational.records import Plan, PlanInput, RelationalError

Planner = Callable[[PlanInput], Plan]

PLANNERS: Mapping[str, Planner] = {"published": plan_published, "fixed": plan_fixed, "tree": plan_tree}


def planner(name: str) -> Planner:
    """The planner of that name, or ``RelationalError`` with the names there are."""
    if name not in PLANNERS:
        raise RelationalError(f"there is no order {name!r}: use one of {', '.join(PLANNERS)}")
    return PLANNERS[name]


__all__ = ["PLANNERS", "Planner", "plan_fixed", "plan_published", "plan_tree", "planner", "value_overlaps"]

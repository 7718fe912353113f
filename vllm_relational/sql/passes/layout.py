"""Whether operators over the same rows put the row before the question: then a later one finds the rows in the cache.

With the question first, all rows of an operator share it, and two operators share no more than the system prompt. With
the row first, every row computes the question anew, but a later operator over the same rows begins its prompts as an
earlier one did. Which is cheaper depends on the lengths of questions and rows, on how much the rows repeat anyway, on
how many rows come to the later operator, and on the size of the cache. So both are forecast, batch after batch
through one cache, and the one with fewer prompt tokens to compute is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from vllm_relational.config import QUESTION_FIRST, ROW_FIRST, Layout
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.forecast import Extent, StatementPlan, forecast_tree
from vllm_relational.sql.operator import Operator

# Inputs of an operator from which the choice is forecast: of more, a part.
MAX_INPUTS = 20_000
# From so many inputs on, the plans that are compared are made without search, which would take most of the time.
QUICK_FROM = 2_000
# Operators of a group that are tried one by one in the other layout.
MAX_SINGLE = 6


@dataclass(frozen=True)
class ChosenLayouts:
    """The context with its layouts, what to say of them, and the plan with them where it is exact."""

    context: StatementContext
    notes: tuple[str, ...] = ()
    plan: StatementPlan | None = None


def choose_layouts(
    context: StatementContext, tree: exp.Expr, operators: Sequence[Operator], may_start: bool = False
) -> ChosenLayouts:
    """Choose a layout for every operator of a prepared tree; nothing is asked.

    may_start: the statement will be asked: start the engine to know the size of its cache, if there is a choice.
    """
    groups = sharing(operators) if context.settings.optimize and context.settings.layout is None else []
    if not groups:
        return ChosenLayouts(context)
    counted = forecast_tree(context, tree, Extent(choosing=True, counts_only=True))
    sizes = {entry.operator.table.name: entry.to_ask for entry in counted.forecasts}
    groups = [
        open_ones for group in groups if len(open_ones := [one for one in group if sizes.get(one.table.name)]) > 1
    ]
    if not groups:
        return ChosenLayouts(context)
    if may_start:
        context = dataclasses.replace(context, llm=context.llm.started())
    search = _LayoutSearch(context, tree, _extent(groups, sizes))
    for group in groups:
        search.improve(group)
    return ChosenLayouts(
        dataclasses.replace(context, layouts=search.layouts), search.notes(groups), search.exact_plan()
    )


def sharing(operators: Sequence[Operator]) -> list[list[Operator]]:
    """Operators that read a field of the same name, directly or through others; groups of two or more."""
    groups: list[tuple[set[str], list[Operator]]] = []
    for operator in [one for one in operators if one.question.has_layout]:
        fields, members = set(operator.question.reads), [operator]
        for group in [group for group in groups if group[0] & fields]:
            groups.remove(group)
            fields, members = fields | group[0], group[1] + members
        groups.append((fields, members))
    return [members for _, members in groups if len(members) > 1]


def _extent(groups: Sequence[Sequence[Operator]], sizes: Mapping[str, int]) -> Extent:
    """The part of the inputs to forecast: of all operators the same, by the values that those of a group share."""
    most = max(sizes[operator.table.name] for group in groups for operator in group)
    common = {
        operator.table.name: tuple(sorted(set.intersection(*(set(other.question.reads) for other in group))))
        for group in groups
        for operator in group
    }
    halvings = (max(most - 1, 0) // MAX_INPUTS).bit_length()
    return Extent(choosing=True, halvings=halvings, common=common, quick=most >= QUICK_FROM)


class _LayoutSearch:
    """Finds layouts with few prompt tokens to compute, starting from all questions first."""

    def __init__(self, context: StatementContext, tree: exp.Expr, extent: Extent) -> None:
        self._context, self._tree, self._extent = context.with_cache_share(0.5**extent.halvings), tree, extent
        self.layouts: dict[str, Layout] = {}
        self._plan = self._first = self._forecast({})
        self._tried: dict[str, StatementPlan] = {}

    def improve(self, group: Sequence[Operator]) -> None:
        """Try the whole group in the other layout, then each operator of a small group."""
        names = [operator.table.name for operator in group]
        self._tried[names[0]] = self._try(names)
        if 2 < len(names) <= MAX_SINGLE:
            for name in names:
                self._try([name])

    def _try(self, names: Sequence[str]) -> StatementPlan:
        turned = {name: QUESTION_FIRST if self.layouts.get(name) == ROW_FIRST else ROW_FIRST for name in names}
        plan = self._forecast({**self.layouts, **turned})
        if _computed(plan) < _computed(self._plan):
            self.layouts, self._plan = {**self.layouts, **turned}, plan
        return plan

    def _forecast(self, layouts: Mapping[str, Layout]) -> StatementPlan:
        return forecast_tree(dataclasses.replace(self._context, layouts=layouts), self._tree, self._extent)

    def notes(self, groups: Sequence[Sequence[Operator]]) -> tuple[str, ...]:
        """What was chosen and what the other layout would cost."""
        return tuple(self._note(group) for group in groups)

    def _note(self, group: Sequence[Operator]) -> str:
        names = [operator.table.name for operator in group]
        rows_first = [name for name in names if self.layouts.get(name) == ROW_FIRST]
        part = f", from 1 in {2**self._extent.halvings} inputs" if self._extent.halvings else ""
        if rows_first:
            costs = (
                f"{_computed(self._plan):,} prompt tokens to compute, {_computed(self._first):,} with questions first"
            )
            return f"rows before questions in {_listed(rows_first)}, which share them: {costs} (expected{part})"
        costs = (
            f"{_computed(self._plan):,} prompt tokens to compute, {_computed(self._tried[names[0]]):,} with rows first"
        )
        return f"questions before rows in {_listed(names)}: {costs} (expected{part})"

    def exact_plan(self) -> StatementPlan | None:
        """The forecast with the chosen layouts, where it is of all inputs."""
        whole = self._extent.is_exact and not any(entry.is_partial for entry in self._plan.forecasts)
        whole = whole and self._context.settings.merging.dedup != "semantic"
        return self._plan if whole else None


def _computed(plan: StatementPlan) -> int:
    return plan.tokens.prompt - plan.tokens.cached


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"llm.{name}" for name in names)

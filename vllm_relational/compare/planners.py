"""What each planner would make of a table, side by side: the ``plan`` command.

``planning_text`` shows it on a terminal, ``planning_html`` as a page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vllm_relational.llm import RelationalLLM
from vllm_relational.plan import PLANNERS, planner
from vllm_relational.plan.characters import character_table, hit_characters
from vllm_relational.plan.dependencies import Dependency, find_dependencies
from vllm_relational.plan.objective import repeated_share, total_tokens
from vllm_relational.prompts import parse_template
from vllm_relational.records import EngineInfo, PlannedQuery, RelationalError
from vllm_relational.table import encode_columns

PLANNING_STAGES = ("read columns", "deduplicate", "plan")


@dataclass(frozen=True)
class NamedDependency:
    """Columns that determine each other one to one, columns that they determine (maybe none), and the least share of
    rows that agree: 1.0 is exact, anything less is rounded down to four digits."""

    determinants: tuple[str, ...]
    dependents: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class PlanSummary:
    """One planner's plan of one table.

    rows, distinct_rows: of the table; prompts are of distinct rows.
    seconds:        encoding, deduplication and planning; reading the file and tokenising are not in it.
    prompt_tokens, hit_tokens, hit_rate: of the real prompts, in whole KV blocks, from a cold cache.
    hit_rate_bound: the same with the best possible eviction (Belady); None for a cache without limit.
    hit_rate_chars: cells joined without names or separators, all rows, in characters, cache without limit. Of a plan of
                    its own, made for characters under the same constraints.
    ceiling: share of tokens that no order exceeds; repeated_chars: of characters in cells that occurred before in their
        column, which cells that begin alike can exceed.
    token_counts:   'exact', or how tokens were estimated.
    dependencies:   of the table, the same for every planner; those over most columns first.
    """

    rows: int
    distinct_rows: int
    columns: int
    planner: str
    seconds: float
    prompt_tokens: int
    hit_tokens: int
    hit_rate: float
    hit_rate_bound: float | None
    hit_rate_chars: float
    ceiling: float
    repeated_chars: float
    token_counts: str
    field_order: tuple[str, ...]
    dependencies: tuple[NamedDependency, ...]


@dataclass(frozen=True)
class PlanComparison:
    """The planners as they were named, one or more, and the plan of ``best``: the most hit tokens, the first of equals.

    The other plans are not kept: a plan of a wide table is as large as the table.
    """

    summaries: tuple[PlanSummary, ...]
    best: PlanSummary
    planned: PlannedQuery


def template_of(columns: Sequence[str] | None) -> str:
    """A template that uses the named columns, or all."""
    if not columns:
        return "{*}"
    broken = [name for name in columns if "{" in name or "}" in name]
    if broken:
        raise RelationalError(
            f"--columns cannot name {broken[0]!r}, which holds a brace: rename it, or use all columns"
        )
    return " ".join(f"{{{name}}}" for name in columns)


def compare_planners(
    llm: RelationalLLM,
    table: pa.Table,
    prompt: str,
    planners: Sequence[str],
    options: Mapping[str, Any],
    info: EngineInfo,
    budget_seconds: float | None = None,
) -> PlanComparison:
    """Plan ``table`` with each planner; nothing is asked.

    budget_seconds: for the planners that search, see ``plan.planner``; None for their default.
    """
    budgets = _budgets(planners, budget_seconds)
    prepared = llm.prepare(table, prompt, **options)
    characters = character_table(encode_columns(table, parse_template(prompt, table.column_names).columns))
    summaries: list[PlanSummary] = []
    best, best_planned, dependencies = 0, None, None
    for place, (name, budget) in enumerate(zip(planners, budgets, strict=True)):
        planned = prepared.plan(info, name, budget)
        dependencies = _named_dependencies(planned) if dependencies is None else dependencies
        in_characters = planner(name, budget)(prepared.constrain(characters.batch))
        hit_rate_chars = hit_characters(characters, in_characters) / max(total_tokens(characters.batch), 1)
        summaries.append(_summary(name, planned, hit_rate_chars, repeated_share(characters.batch), dependencies))
        if best_planned is None or summaries[place].hit_tokens > summaries[best].hit_tokens:
            best, best_planned = place, planned
    assert best_planned is not None  # one planner or more
    return PlanComparison(tuple(summaries), summaries[best], best_planned)


def _budgets(planners: Sequence[str], seconds: float | None) -> list[float | None]:
    """The budget of each planner; all names and the budget are checked."""
    if not planners:
        raise RelationalError("--planner names no planner: leave it out, or name one or more")
    searching = [planner(name).takes_budget for name in planners]
    if seconds is not None and not any(searching):
        known = " or ".join(name for name, plan in PLANNERS.items() if plan.takes_budget)
        raise RelationalError(f"--budget is for the planner {known}: name it with --planner, or leave --budget out")
    budgets = [seconds if searches else None for searches in searching]
    for name, budget in zip(planners, budgets, strict=True):
        planner(name, budget)
    return budgets


def _summary(
    name: str,
    planned: PlannedQuery,
    hit_rate_chars: float,
    repeated_chars: float,
    dependencies: tuple[NamedDependency, ...],
) -> PlanSummary:
    report = planned.report
    return PlanSummary(
        rows=report.num_rows,
        distinct_rows=report.num_distinct,
        columns=planned.batch.num_columns,
        planner=name,
        seconds=round(sum(report.stage_seconds.get(stage, 0.0) for stage in PLANNING_STAGES), 4),
        prompt_tokens=report.predicted.prompt_tokens,
        hit_tokens=report.predicted.hit_tokens,
        hit_rate=round(report.predicted.hit_rate, 4),
        hit_rate_bound=None if planned.bound is None else round(planned.bound.hit_rate, 4),
        hit_rate_chars=round(hit_rate_chars, 4),
        ceiling=round(report.ceiling, 4),
        repeated_chars=round(repeated_chars, 4),
        token_counts=report.token_counts,
        field_order=report.field_order,
        dependencies=dependencies,
    )


def _named_dependencies(planned: PlannedQuery) -> tuple[NamedDependency, ...]:
    names = planned.table.names

    def named(found: Dependency) -> NamedDependency:
        share = 1.0 if found.share >= 1 else math.floor(found.share * 1e4) / 1e4
        determinants, dependents = (
            tuple(names[column] for column in columns) for columns in (found.determinants, found.dependents)
        )
        return NamedDependency(determinants, dependents, share)

    dependencies = map(named, find_dependencies(planned.batch))
    return tuple(sorted(dependencies, key=lambda found: -len(found.determinants) - len(found.dependents)))

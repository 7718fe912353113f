"""What each planner would make of a table, side by side: the ``plan`` command."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vllm_relational.llm import RelationalLLM
from vllm_relational.plan import planner
from vllm_relational.plan.characters import CharacterTable, character_table, hit_characters
from vllm_relational.plan.objective import ceiling, total_tokens
from vllm_relational.prompts import parse_template
from vllm_relational.records import EngineInfo, RelationalError
from vllm_relational.table import encode_columns

PLANNING_STAGES = ("read columns", "deduplicate", "plan")


@dataclass(frozen=True)
class PlanSummary:
    """One planner's plan of one table.

    seconds:        encoding, deduplication and planning; reading the file and tokenising are not in it.
    prompt_tokens, hit_tokens, hit_rate: of the real prompts, in whole KV blocks, from a cold cache.
    hit_rate_chars: cells joined without names or separators, all rows, in characters, cache without limit.
    ceiling, ceiling_chars: share of tokens, of characters, in cells that occurred before in their column.
    token_counts:   'exact', or how tokens were estimated.
    """

    rows: int
    columns: int
    planner: str
    seconds: float
    prompt_tokens: int
    hit_tokens: int
    hit_rate: float
    hit_rate_chars: float
    ceiling: float
    ceiling_chars: float
    token_counts: str
    field_order: tuple[str, ...]


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
    info: EngineInfo | None,
) -> list[PlanSummary]:
    """Plan ``table`` with each planner; nothing is asked."""
    for name in planners:
        planner(name)
    columns = parse_template(prompt, table.column_names).columns
    characters = character_table(encode_columns(table, columns))
    return [_summary(llm, table, prompt, name, options, info, characters) for name in planners]


def _summary(
    llm: RelationalLLM,
    table: pa.Table,
    prompt: str,
    name: str,
    options: Mapping[str, Any],
    info: EngineInfo | None,
    characters: CharacterTable,
) -> PlanSummary:
    report = llm.plan(table, prompt, info=info, order=name, **options)
    total = max(total_tokens(characters.batch), 1)
    return PlanSummary(
        rows=table.num_rows,
        columns=characters.batch.num_columns,
        planner=name,
        seconds=round(sum(report.stage_seconds.get(stage, 0.0) for stage in PLANNING_STAGES), 4),
        prompt_tokens=report.predicted.prompt_tokens,
        hit_tokens=report.predicted.hit_tokens,
        hit_rate=round(report.predicted.hit_rate, 4),
        hit_rate_chars=round(hit_characters(characters, planner(name)(characters.batch)) / total, 4),
        ceiling=round(report.ceiling, 4),
        ceiling_chars=round(ceiling(characters.batch), 4),
        token_counts=report.token_counts,
        field_order=report.field_order,
    )


def render(summaries: Sequence[PlanSummary]) -> str:
    """The planners as a table for a terminal, then the field order of the best."""
    from rich.console import Console
    from rich.table import Table

    best = max(summaries, key=lambda summary: summary.hit_tokens)
    table = Table("planner", "hit rate", "hit tokens", "in characters", "seconds")
    for summary in summaries:
        cells = (f"{summary.hit_rate:.1%}", f"{summary.hit_tokens:,}", f"{summary.hit_rate_chars:.1%}")
        table.add_row(summary.planner, *cells, f"{summary.seconds:.3f}")
    out = io.StringIO()
    console = Console(file=out, width=110)
    console.print(f"{best.rows:,} rows x {best.columns} columns, {best.prompt_tokens:,} prompt tokens ", end="")
    console.print(
        f"({best.token_counts}), ceiling {best.ceiling:.1%} of tokens, {best.ceiling_chars:.1%} of characters"
    )
    console.print(table)
    console.print(f"{best.planner}, fields of the first row asked: {', '.join(best.field_order)}")
    return out.getvalue().rstrip()

"""The rows of one run, planned for one engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vllm_relational.plan import planner, value_overlaps, weighted
from vllm_relational.prompts.template import answer_room
from vllm_relational.query.clock import Clock
from vllm_relational.query.tokenised import TokenisedQuery
from vllm_relational.records import (
    CacheForecast,
    Distinct,
    EngineInfo,
    Plan,
    PlanInput,
    PromptBatch,
    RowFailedError,
)
from vllm_relational.results.outcome import TOO_LONG


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """The groups that are asked in this run, planned.

    groups:       int64 ``[n]``, their numbers in ``Distinct``; codes: int32 ``[num_columns, n]``; keys: int64 ``[n]``,
                  the row asked for each.
    input:        what the planner saw; prompt_batch: the prompts, for forecasts of what is asked after them.
    too_long:     group -> why it cannot be asked: its prompt does not fit into the engine's context.
    """

    groups: np.ndarray
    codes: np.ndarray
    keys: np.ndarray
    input: PlanInput
    plan: Plan
    prompt_batch: PromptBatch
    predicted: CacheForecast
    original: CacheForecast
    ceiling: float
    too_long: Mapping[int, str]


def plan_batch(
    query: TokenisedQuery,
    info: EngineInfo,
    answered: Mapping[int, str],
    clock: Clock,
    budget_seconds: float | None = None,
) -> PlannedBatch:
    """Plan the groups that still need an answer and fit into the engine's context.

    answered: by row asked, its answer. Raises ``RowFailedError`` for a prompt too long if ``config.on_error`` is
    'raise'.
    """
    chosen, forecaster = planner(query.config.order, budget_seconds), query.forecaster(info)
    with clock("plan"):
        too_long = dict(_too_long(query, info, answered))
        groups = _groups_to_ask(query.distinct, answered, too_long)
        keys = query.distinct.first_rows[groups]
        batch = _plan_input(query, info, np.ascontiguousarray(query.table.codes[:, keys]), chosen.reads_overlaps)
        plan = chosen(weighted(batch, query.rules.weights))
    with clock("forecast"):
        plan, predicted = forecaster.cheapest(batch, plan)
        original = forecaster.forecast(planner("original")(batch), batch.codes)
        ceiling, prompt_batch = forecaster.ceiling(batch), forecaster.prompt_batch(plan, batch.codes)
    return PlannedBatch(groups, batch.codes, keys, batch, plan, prompt_batch, predicted, original, ceiling, too_long)


def _groups_to_ask(distinct: Distinct, answered: Mapping[int, str], too_long: Mapping[int, str]) -> np.ndarray:
    rows = distinct.first_rows.tolist()
    return np.asarray([g for g, row in enumerate(rows) if row not in answered and g not in too_long], dtype=np.int64)


def _plan_input(query: TokenisedQuery, info: EngineInfo, codes: np.ndarray, reads_overlaps: bool) -> PlanInput:
    """Without weights, which count for the planner only."""
    cells = query.prompts.segments.cells
    return PlanInput(
        codes,
        tuple(column.lengths for column in cells),
        query.rules.pinned,
        value_overlaps(cells) if reads_overlaps else (),
        query.rules.before,
        header_tokens=len(query.prompts.segments.header),
        block_size=info.block_size,
    )


def _too_long(query: TokenisedQuery, info: EngineInfo, answered: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    if info.max_model_len is None or query.prompts.counts != "exact":
        return  # the engine counts for itself, and refuses exactly the rows that are too long
    codes = query.table.codes[:, query.distinct.first_rows]
    lengths = query.prompts.lengths(codes)
    longest = info.max_model_len - answer_room(query.answer_format)
    for group in np.flatnonzero(lengths > longest).tolist():
        row = int(query.distinct.first_rows[group])
        if row in answered:
            continue
        name, tokens = query.prompts.longest_field(codes[:, group])
        reason = (
            f"{TOO_LONG}: {lengths[group]} tokens and the answer exceed the model's {info.max_model_len}; column "
            f"{name!r} has {tokens}: shorten it"
        )
        if query.config.on_error == "raise":
            raise RowFailedError(f"row {row} (counted from 0): {reason}")
        yield group, reason

"""After a run: ask some rows once more, to see what reordering fields and merging rows did to the answers.

The run is over when this begins: its answers, counts and cache forecasts stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_relational.engine.base import Engine
from vllm_relational.prompts import PromptBuilder
from vllm_relational.records import Agreement, AnswerFormat, AuditReport, EngineDiedError, Plan
from vllm_relational.results.agreement import agreement
from vllm_relational.results.outcome import checked
from vllm_relational.results.parse import parser

ORIGINAL = "rows asked, again in original order"
ALONE = "rows merged beyond exact equality, asked on their own"


@dataclass(frozen=True)
class Answered:
    """What a run leaves to audit.

    codes:   int32 ``[num_columns, num_rows]`` of the used columns; answers: one an input row.
    asked:   int64, rows that were asked and answered, in this run or before.
    merged:  int64, rows that inherited an answer of a row with other values; ``source_rows`` int64 ``[num_rows]``.
    fields:  by row asked in this run the order of its fields.
    """

    codes: np.ndarray
    answers: Sequence[Any]
    asked: np.ndarray
    merged: np.ndarray
    source_rows: np.ndarray
    fields: Mapping[int, np.ndarray]


def audit(
    run: Answered, prompts: PromptBuilder, answer_format: AnswerFormat, engine: Engine, num_rows: int, seed: int
) -> AuditReport:
    """Ask ``num_rows`` rows of each kind again, or all where there are fewer; the same seed draws the same rows.

    Merged rows are asked in the field order of the row that was asked for them, so that only the merge is seen.
    An engine that dies on the way ends the audit, not the run.
    """
    original = np.arange(len(run.codes), dtype=np.int32)
    samples: list[Agreement] = []
    note = ""
    try:
        for name, rows, fields_of in (
            (ORIGINAL, run.asked, lambda row: original),
            (ALONE, run.merged, lambda row: run.fields.get(int(run.source_rows[row]), original)),
        ):
            drawn = _drawn(rows, num_rows, seed)
            again = _asked(run.codes, drawn, fields_of, prompts, answer_format, engine)
            before = {row: run.answers[row] for row in drawn.tolist()}
            samples.append(agreement(name, len(rows), before, again))
    except EngineDiedError as error:
        note = f"the audit is incomplete: {error}"
    return AuditReport(seed, tuple(samples), note)


def _drawn(rows: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    chosen = np.random.default_rng(seed).choice(rows, min(num_rows, len(rows)), replace=False)
    return np.sort(chosen.astype(np.int64))


def _asked(
    codes: np.ndarray,
    rows: np.ndarray,
    fields_of: Callable[[int], np.ndarray],
    prompts: PromptBuilder,
    answer_format: AnswerFormat,
    engine: Engine,
) -> dict[int, Any]:
    """The usable answers by row."""
    if not len(rows):
        return {}
    fields = np.stack([fields_of(row) for row in rows.tolist()])
    plan = Plan("audit", np.arange(len(rows), dtype=np.int64), fields)
    parse = parser(answer_format)
    completions = (
        checked(completion, parse)
        for completion in engine.ask(prompts.maker(engine.prompt_form)(plan, codes[:, rows], rows), answer_format)
    )
    return {completion.key: parse(completion.text) for completion in completions if completion.text is not None}

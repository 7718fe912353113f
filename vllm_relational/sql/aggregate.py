"""LLM_AGG: one answer from many values, however many tokens they have.

The values of a group are cut into parts that fit into the model's context; every part is asked, and the answers are
the values of the next round, until one part is left. The parts of all groups go to the engine together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vllm_relational.records import EngineInfo, FreeText, RelationalError, RunReport
from vllm_relational.sql.functions import CallQuestion
from vllm_relational.sql.merging import ASKED, CACHED

# Where the engine does not say how long a prompt may be.
ASSUMED_CONTEXT = 4096
WHOLE = "ok"  # of ``QueryResult.statuses``
# Brackets and commas of the list, where a value begins with other tokens than alone, and the end of the prompt.
TOKENS_A_VALUE, TOKENS_SPARE = 4, 64
COMBINE = "Every item is an answer to this over a part of the values: combine them. "


def reduce_groups(
    llm: Any, records: pa.Table, question: CallQuestion, options: dict[str, Any], reports: list[RunReport]
) -> tuple[list[Any], list[str | None], list[str], list[str]]:
    """One answer a group.

    records: one column of lists of texts, a list a group. ``reports`` gets one report a round.
    Returns answers, errors, origins and statuses ``[num_groups]``: a group of which a part failed has the part's
    reason, one is 'cached' where all of its parts were, and 'cut' where the answer over any part was.
    """
    name = records.column_names[0]
    groups: list[list[str]] = records.column(0).to_pylist()
    answers: list[Any] = [None] * len(groups)
    errors: list[str | None] = [None] * len(groups)
    origins, statuses = [CACHED] * len(groups), [WHOLE] * len(groups)
    left = dict(enumerate(groups))
    template = question.template
    info = llm.start()  # a server says only then how long a prompt may be
    while left:
        parts = _parts(llm, info, left, name, template, options)
        result = llm.run(_table(name, parts), template, **options)
        reports.append(result.report)
        for (group, _), row, status in zip(parts, result.source_rows.tolist(), result.statuses, strict=True):
            if row < 0 or result.origins[row] != CACHED:
                origins[group] = ASKED
            if status != WHOLE:
                statuses[group] = status
        sizes = {group: len(values) for group, values in left.items()}
        left = _next_round(parts, result.answers, result.errors, answers, errors)
        for group in [group for group, values in left.items() if len(values) >= sizes[group]]:
            errors[group] = "the answers over parts of the values are too long to be combined"
            del left[group]
        template = COMBINE + question.template
    return answers, errors, origins, statuses


def first_parts(llm: Any, records: pa.Table, question: CallQuestion, options: dict[str, Any]) -> pa.Table:
    """The records that the first round asks about."""
    name = records.column_names[0]
    groups = dict(enumerate(records.column(0).to_pylist()))
    parts = _parts(llm, llm.expected_engine(), groups, name, question.template, options)
    return _table(name, parts)


def _table(name: str, parts: Sequence[tuple[int, list[str]]]) -> pa.Table:
    return pa.table({name: pa.array([part for _, part in parts], pa.list_(pa.string()))})


def _next_round(
    parts: Sequence[tuple[int, list[str]]],
    said: Sequence[Any],
    reasons: Sequence[str | None],
    answers: list[Any],
    errors: list[str | None],
) -> dict[int, list[str]]:
    """Settle the groups of one part, and those that failed; the others go on with their parts' answers."""
    partial: dict[int, list[str]] = {}
    for (group, _), answer, reason in zip(parts, said, reasons, strict=True):
        partial.setdefault(group, [])
        if reason is not None:
            errors[group] = reason
        else:
            partial[group].append(str(answer))
    for group in [group for group in partial if errors[group] is not None]:
        del partial[group]
    for group in [group for group, values in partial.items() if len(values) == 1]:
        answers[group] = partial.pop(group)[0]
    return partial


def _parts(
    llm: Any, info: EngineInfo, left: dict[int, list[str]], name: str, template: str, options: dict[str, Any]
) -> list[tuple[int, list[str]]]:
    """The values of each group in parts that fit into the context, with the group's number."""
    texts = list(dict.fromkeys(value for values in left.values() for value in values))
    room, lengths = _room(llm, info, texts, name, template, options)
    tokens = dict(zip(texts, lengths.tolist(), strict=True))
    return [(group, part) for group, values in left.items() for part in _cut(values, tokens, room)]


def _room(
    llm: Any, info: EngineInfo, texts: list[str], name: str, template: str, options: dict[str, Any]
) -> tuple[int, np.ndarray]:
    """Tokens for the values of one prompt, and the tokens of each text as a value."""
    alone = pa.table({name: pa.array(texts, pa.string())})
    planned = llm.prepare(alone, template, **{**options, "order": "original"}).plan(info)
    cells = np.asarray(planned.batch.cell_tokens[0])
    lengths = np.zeros(len(texts), np.int64)
    lengths[: len(cells)] = cells  # values in order of first appearance: that of the texts
    answer = options.get("max_tokens") or FreeText.max_tokens
    room = (info.max_model_len or ASSUMED_CONTEXT) - planned.header_tokens - answer - TOKENS_SPARE
    if room < 2 * (answer + TOKENS_A_VALUE):
        raise RelationalError(
            f"LLM_AGG has room for {max(room, 0)} tokens of values a prompt, too little to combine answers of {answer} "
            "tokens: give the engine a longer max_model_len or shorten the prompt"
        )
    return room, lengths + TOKENS_A_VALUE


def _cut(values: Sequence[str], tokens: dict[str, int], room: int) -> Iterator[list[str]]:
    """Parts of at most ``room`` tokens; a value that is longer by itself is a part, which the pipeline will refuse."""
    part: list[str] = []
    used = 0
    for value in values:
        if part and used + tokens[value] > room:
            yield part
            part, used = [], 0
        part.append(value)
        used += tokens[value]
    yield part

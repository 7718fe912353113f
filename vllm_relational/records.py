"""The values that pass between the rooms: frozen, plain, importing no room.

A query moves one way: table -> dedup -> plan -> prompts -> engine -> results. Each record below is written by
one room and read by later ones. Numbers of rows and columns are written ``num_rows``, ``num_columns``; a *code*
is the number of a distinct value inside its column.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NULL_CODE = -1


class RelationalError(Exception):
    """Something a user can mend: the message says what happened, where, and how to fix it."""


class EngineDiedError(RelationalError):
    """The engine stopped answering: the job ends, what was answered so far stays in the checkpoint."""


class RowFailedError(RelationalError):
    """A row failed and the caller asked for ``on_error='raise'``."""


# ---------------------------------------------------------------------------------------------- table -> dedup
@dataclass(frozen=True)
class EncodedTable:
    """The used columns, dictionary-encoded once.

    names:  the columns in original order (the order in which the question names them).
    codes:  int32 ``[num_columns, num_rows]``; ``NULL_CODE`` where the cell is null. Codes count distinct values in
            order of first appearance, so they are the same on every run.
    values: per column the distinct values as JSON texts, indexed by code.
    is_text: per column, whether its cells are texts: JSON puts dates, bytes and decimals in quotes as well. () for all.
    """

    names: tuple[str, ...]
    codes: np.ndarray
    values: tuple[Sequence[str], ...]
    is_text: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.is_text:
            object.__setattr__(self, "is_text", (True,) * len(self.names))

    @property
    def num_rows(self) -> int:
        return int(self.codes.shape[1])

    @property
    def num_columns(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Distinct:
    """Rows with equal values, or values that pass for equal, asked once.

    first_rows: int64 ``[num_distinct]``, ascending; the input row that is asked for each group: the group's identity.
                It is the first row with its values; of exact groups the first row at all.
    inverse:    int64 ``[num_rows]``; the group of each input row, or -1 for a row that is not asked.
    """

    first_rows: np.ndarray
    inverse: np.ndarray

    @property
    def num_distinct(self) -> int:
        return len(self.first_rows)


@dataclass(frozen=True)
class Grouping:
    """The groups that are asked, and the steps of deduplication that made them.

    levels: by step ('exact', 'normalized', 'semantic'), from fine to coarse, the inverse index after that step: int64
            ``[num_rows]``, -1 for a row that is not asked. The last step's groups are those of ``distinct``.
    """

    distinct: Distinct
    levels: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class MergeExample:
    """A row that inherits its answer, and what it does not share with the row that is asked.

    origin:       the step of deduplication that joined them.
    similarity:   cosine of their embeddings; None where that was not compared.
    asked, merged: by column, for the columns that differ, the two JSON texts.
    """

    row: int
    source_row: int
    origin: str
    similarity: float | None
    asked: Mapping[str, str]
    merged: Mapping[str, str]


@dataclass(frozen=True)
class DedupReport:
    """What deduplication did.

    mode:      'exact', 'normalized' or 'semantic'.
    settings:  what the user chose, in words.
    merged:    rows that inherit an answer, by the step that joined them to the row asked.
    too_long:  rows that the embedder does not read to their end: they are not merged by meaning.
    examples:  a few of the rows merged beyond exact equality, of the semantic ones the least similar.
    """

    mode: str
    settings: Mapping[str, str]
    merged: Mapping[str, int]
    too_long: int = 0
    examples: tuple[MergeExample, ...] = ()


# --------------------------------------------------------------------------------------------- plan -> prompts
@dataclass(frozen=True)
class ValueOverlaps:
    """How the distinct values of one column begin alike, from sorting their tokens.

    rank:   int32 ``[num_values]``: the place of the value with that code in sorted order.
    shared: int64 ``[num_values]``, by rank: the tokens that the value begins with like the one before it.
    """

    rank: np.ndarray
    shared: np.ndarray


@dataclass(frozen=True)
class PlanInput:
    """What a planner sees: integers only.

    codes:        int32 ``[num_columns, num_distinct]``, no nulls, columns in original order.
    cell_tokens:  per column int64 ``[num_values]``: the prompt tokens of one cell, name and punctuation included.
    pinned:       columns (by original position) that must stay at that position in every row.
    overlaps:     per column; or empty when not known: then cells count as shared whole or not at all.
    before:       pairs of columns, in this order originally, that keep it in every row.
    header_tokens, block_size: what all prompts begin with, and the tokens a KV block: a prefix counts in whole blocks.
    """

    codes: np.ndarray
    cell_tokens: tuple[np.ndarray, ...]
    pinned: frozenset[int] = frozenset()
    overlaps: tuple[ValueOverlaps, ...] = ()
    before: tuple[tuple[int, int], ...] = ()
    header_tokens: int = 0
    block_size: int = 1

    @property
    def num_rows(self) -> int:
        return int(self.codes.shape[1])

    @property
    def num_columns(self) -> int:
        return int(self.codes.shape[0])


@dataclass(frozen=True)
class Plan:
    """An order for the rows and, inside each row, for the fields.

    rows:   int64 ``[num_distinct]``: a permutation of the distinct rows, in the order they are asked.
    fields: int32 ``[num_distinct, num_columns]``: ``fields[i]`` is the column order of row ``rows[i]``. A planner
            that gives all rows one order returns a broadcast view.
    """

    planner: str
    rows: np.ndarray
    fields: np.ndarray


@dataclass(frozen=True)
class TokenSegments:
    """The token ids of one column's distinct cells, end to end.

    tokens:  int32 ``[sum of lengths]``
    offsets: int64 ``[num_values + 1]``: the cell with code c is ``tokens[offsets[c]:offsets[c + 1]]``.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class PromptSegments:
    """Everything a prompt is made of: ``header + cells in planned order + tail``, all token ids.

    header: int32, the same for all rows: the system prompt, the instruction if it stands first, the opening of the row.
    cells:  per column the segments of its distinct values.
    tail:   int32, the same for all rows: what closes the row, the instruction if it stands last, the answer's start.
    """

    header: np.ndarray
    cells: tuple[TokenSegments, ...]
    tail: np.ndarray


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as an engine was asked them: what they left in its KV cache, later prompts may find there.

    table: its names and values, which ``codes`` count; codes: int32 ``[num_columns, n]`` of the planned rows.
    row_first: whether the prompts begin with the row.
    """

    table: EncodedTable
    segments: PromptSegments
    codes: np.ndarray
    plan: Plan
    row_first: bool


# ------------------------------------------------------------------------------------------- prompts -> engine
@dataclass(frozen=True)
class FreeText:
    """Any text, at most ``max_tokens`` long."""

    max_tokens: int = 64


@dataclass(frozen=True)
class Choice:
    """Exactly one of the labels. max_tokens: room on a server, for a model that thinks first; None for the label's."""

    labels: tuple[str, ...]
    max_tokens: int | None = None


@dataclass(frozen=True)
class IntegerRange:
    """A whole number, both ends included. max_tokens: as for ``Choice``."""

    low: int
    high: int
    max_tokens: int | None = None


@dataclass(frozen=True)
class JsonSchema:
    """A JSON document that the schema admits, at most ``max_tokens`` long."""

    schema: Mapping[str, Any]
    max_tokens: int = 256


AnswerFormat = FreeText | Choice | IntegerRange | JsonSchema


@dataclass(frozen=True)
class Prompt:
    """One question. ``key`` is the first input row of its group.

    An engine that takes token ids reads ``token_ids``; one that talks to a chat endpoint reads ``system`` and
    ``user``. The unused form is empty.
    """

    key: int
    token_ids: Sequence[int] = ()
    system: str = ""
    user: str = ""


@dataclass(frozen=True)
class Completion:
    """What the engine says to one prompt: either ``text`` or ``error`` is set.

    prompt_tokens, output_tokens: as the engine counted them.
    cached_tokens: prompt tokens served from the KV cache; None where the engine does not say.
    cut: the text was stopped at ``max_tokens``, not by the model.
    """

    key: int
    text: str | None
    error: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    cut: bool = False


@dataclass(frozen=True)
class EngineInfo:
    """What the plan needs to know of an engine.

    max_model_len:    tokens, prompt and answer together; None if the engine does not say.
    kv_cache_tokens:  size of the KV cache; None if unknown.
    block_size:       tokens a KV block; prefixes are reused in whole blocks.
    prefix_caching:   False when the engine reuses nothing.
    eviction:         which block goes when the KV cache is full, one of ``kv.policy.POLICIES``.
    fingerprint:      what else tells this model from others of its name, as far as known: weights, revision, precision.
    """

    model: str
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    block_size: int = 16
    prefix_caching: bool = True
    eviction: str = "lru"
    fingerprint: str = ""


# ---------------------------------------------------------------------------------------------------- results
@dataclass(frozen=True)
class CacheForecast:
    """Prompt tokens of a planned batch and how many of them the KV cache is predicted to serve."""

    prompt_tokens: int
    hit_tokens: int

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.hit_tokens


@dataclass(frozen=True)
class Agreement:
    """Rows asked once more, in another way, and how many gave the same answer.

    sample:     what was asked again and how.
    population: rows that could have been drawn; num_asked of them were.
    num_failed: gave no usable answer the second time: neither agree nor disagree.
    low, high:  95% confidence interval of the share of equal answers (Wilson).
    changed:    a few that differ: row, answer of the run, answer now.
    """

    sample: str
    population: int
    num_asked: int
    num_agreed: int
    num_failed: int
    low: float
    high: float
    changed: tuple[tuple[int, Any, Any], ...] = ()

    @property
    def share(self) -> float | None:
        compared = self.num_asked - self.num_failed
        return self.num_agreed / compared if compared else None


@dataclass(frozen=True)
class AuditReport:
    """How far answers depend on the order of fields and on merging; ``note`` says why it is incomplete, if so."""

    seed: int
    samples: tuple[Agreement, ...]
    note: str = ""


@dataclass(frozen=True)
class RunReport:
    """What a run did and what it saved. Rates are fractions, times are seconds.

    num_asked counts the distinct rows sent to the engine in this run; num_resumed those that a checkpoint already
    held; num_cached those that the result cache held. num_failed and num_cut count rows of the table: without answer,
    and with a text that was cut off at ``max_tokens``. ``measured_*`` are the engine's own counts over the rows asked
    (None: the engine does not report them or nothing was sent). ``predicted`` and ``original`` are forecasts over the
    same rows, in the planned and in the original field and row order. ``ceiling`` is the share of prompt tokens that
    no order of rows and fields exceeds (``plan/bound.py``).
    """

    question: str
    model: str
    planner: str
    field_order: tuple[str, ...]
    num_rows: int
    num_distinct: int
    num_asked: int
    num_resumed: int
    num_failed: int
    failures: Mapping[str, int]
    predicted: CacheForecast
    original: CacheForecast
    ceiling: float
    token_counts: str
    measured_prompt_tokens: int | None = None
    measured_cached_tokens: int | None = None
    output_tokens: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    num_cached: int = 0
    dedup: DedupReport | None = None
    audit: AuditReport | None = None
    layout: str = "question-first"
    num_cut: int = 0

    @property
    def measured_hit_rate(self) -> float | None:
        if not self.measured_prompt_tokens or self.measured_cached_tokens is None:
            return None
        return self.measured_cached_tokens / self.measured_prompt_tokens

    @property
    def rows_per_second(self) -> float | None:
        """Distinct rows asked in this run over the seconds the engine took to answer them."""
        seconds = self.stage_seconds.get("ask")
        return self.num_asked / seconds if seconds and self.num_asked else None


@dataclass(frozen=True)
class PlannedQuery:
    """One plan of a query and what it was made from; nothing was asked.

    report:        the forecast; the seconds of preparing are in it as if this plan had been the only one.
    table:         the used columns of all rows, encoded; ``batch.codes`` are its codes for the distinct rows to ask.
    batch, plan:   what the planner saw and what it said.
    header_tokens: of the prompt before its first cell, the same for all rows.
    asked:         the prompts, for forecasts of what is asked after them.
    bound:         the forecast with the best possible eviction (Belady); None for a cache without limit.
    """

    report: RunReport
    table: EncodedTable
    batch: PlanInput
    plan: Plan
    header_tokens: int
    asked: PromptBatch
    bound: CacheForecast | None = None


@dataclass(frozen=True, eq=False)
class JobRecord:
    """What tells a job from others.

    identify: gives ``job``, which takes a look at every value of the table: only where somebody asks.
    table:    the columns that the question uses.
    """

    identify: Callable[[], Mapping[str, Any]]
    table: EncodedTable

    @functools.cached_property
    def job(self) -> Mapping[str, Any]:
        """The question, model, table and settings, as JSON values by name."""
        return self.identify()


@dataclass(frozen=True)
class QueryResult:
    """Answers in input order, one an input row, and what was done.

    answers:     the parsed value of each row; None where ``errors`` holds a reason.
    errors:      one reason a failed row, None for the others.
    statuses:    'ok'; 'cut' for a text that was cut off at ``max_tokens`` and is an answer as far as it goes; 'failed'.
    source_rows: int64 ``[num_rows]``: the row whose answer this is, counted from 0; itself where it was asked, -1 where
                 the row failed.
    origins:     how each row came by its answer: 'asked', 'resumed' (from the checkpoint), 'cached' (from the result
                 cache), inherited by 'exact', 'normalized' or 'semantic' deduplication, or 'failed'.
    asked:       the prompts that were sent, for ``QueryConfig.after`` of the next query; None where none was.
    job:         what tells this job from others.
    """

    answers: list[Any]
    errors: list[str | None]
    report: RunReport
    source_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    origins: list[str] = field(default_factory=list)
    asked: PromptBatch | None = None
    statuses: list[str] = field(default_factory=list)
    job: JobRecord | None = None

    @property
    def num_failed(self) -> int:
        return self.report.num_failed

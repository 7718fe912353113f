"""One frozen configuration of a query: every field with its unit; bad values raise with the fix."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vllm_relational.answer_format.json_schemas import schema_check
from vllm_relational.records import (
    AnswerFormat,
    Choice,
    FreeText,
    IntegerRange,
    JsonSchema,
    PromptBatch,
    RelationalError,
)
from vllm_relational.terminal import warn

OnError = Literal["null", "raise"]
Nulls = Literal["error", "keep"]
DedupMode = Literal["exact", "normalized", "semantic"]
Layout = Literal["question-first", "row-first"]

DEFAULT_ORDER = "tree"
RENAMED_ORDERS = {"published": "original"}  # old name -> name; the old ones go with version 0.3
QUESTION_FIRST: Layout = "question-first"
ROW_FIRST: Layout = "row-first"
# The end of the reason of a row that has a null, for whoever has that option.
KEEP_NULLS = " (keep nulls with --nulls keep)"
MAX_WEIGHT = 1000
MAX_SEED = 2**31 - 2
MAX_TOKENS = 10_000_000  # of an answer: more than any context holds
DEFAULT_SIMILARITY = 0.95
DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_SYSTEM_PROMPT = (
    "You answer a question about one record of a table. The record is given as JSON; names in double quotes in the "
    "question are its fields. Reply with the answer only."
)


@dataclass(frozen=True)
class DedupConfig:
    """Which rows pass for equal and are asked once.

    mode:       'exact': equal values in the columns that the prompt reads. 'normalized': equal after the rules.
                'semantic': close in meaning, after the rules if there are any.
    normalize:  by column, or '*' for the others, names of rules (``dedup.rules``); nothing chosen means a safe default
                for 'normalized' and none for 'semantic'.
    similarity: least cosine similarity of a row and the row that is asked for it, above 0 up to 1.
    similar_columns: columns compared by meaning; rows that differ in another column are not merged. () for the columns
                with text; numbers, dates and the like must then be equal.
    embedder:   folder or hub name of a sentence-transformers model, 'vllm:' and the name of one for vLLM, or a function
                from texts to vectors (``embed.Embedder``).
    """

    mode: DedupMode = "exact"
    normalize: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    similarity: float = DEFAULT_SIMILARITY
    similar_columns: tuple[str, ...] = ()
    embedder: str | Callable[[list[str]], np.ndarray] = DEFAULT_EMBEDDER

    def __post_init__(self) -> None:
        _one_of("dedup", self.mode, get_args(DedupMode))
        if not _is_number(self.similarity):
            raise RelationalError(f"similarity is {self.similarity!r}: give a number, e.g. 0.95")
        if self.normalize and self.mode == "exact":
            raise RelationalError("normalize has no effect with exact deduplication: add --dedup normalized")
        if self.similar_columns and self.mode != "semantic":
            raise RelationalError("similar columns need semantic deduplication: add --dedup semantic")
        if not 0 < self.similarity <= 1:  # NaN fails too
            raise RelationalError(f"similarity is {self.similarity}: give a cosine above 0 up to 1, e.g. 0.95")


@dataclass(frozen=True)
class QueryConfig:
    """How a query is run; what is asked lives in ``Question``.

    order:         the planner, one of ``plan.PLANNERS``: 'tree', 'fixed', 'fixed_v2', 'ggr', 'original', 'exhaustive'.
    pin:           columns that keep their original position in every prompt.
    keep_order:    groups of columns; those of a group keep their original order among themselves in every prompt.
    column_weights: by column, how much its tokens count in planning: 1 by default, 0 not at all. More than 1 draws a
                   column to the front where it repeats, less than 1 to the back.
    system_prompt: first message of every prompt; '' sends none.
    on_error:      'null' gives a failed row no answer and a reason; 'raise' stops at the first failed row.
    nulls:         'error' fails rows with a null in a used column; 'keep' sends the null to the model.
    checkpoint:    file to which answers are appended as they come; None keeps them in memory only.
    resume:        continue from an existing checkpoint.
    progress:      show a progress bar on standard error.
    dedup:         which rows pass for equal.
    cache:         SQLite file of answers that outlives the run and serves other tables; None for none.
    audit:         so many rows of each kind are asked once more after the run, to see what reordering and merging did.
    seed:          of the rows drawn for the audit and of the clusters of semantic deduplication.
    layout:        'question-first': all prompts share the question, then the row follows. 'row-first': the question
                   stands behind the row, so that another question over the same rows finds the rows in the KV cache.
    after:         what the engine was asked just before and may still have in its KV cache: the forecast starts from
                   there, and with 'row-first' the plan may follow the orders of those rows.
    """

    order: str = DEFAULT_ORDER
    pin: tuple[str, ...] = ()
    keep_order: tuple[tuple[str, ...], ...] = ()
    column_weights: Mapping[str, float] = field(default_factory=dict)
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    on_error: OnError = "null"
    nulls: Nulls = "error"
    checkpoint: Path | None = None
    resume: bool = False
    progress: bool = False
    dedup: DedupConfig = field(default_factory=DedupConfig)
    cache: Path | None = None
    audit: int = 0
    seed: int = 0
    layout: Layout = QUESTION_FIRST
    after: tuple[PromptBatch, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", current_order(self.order))
        _one_of("on_error", self.on_error, get_args(OnError))
        _one_of("nulls", self.nulls, get_args(Nulls))
        check_layout(self.layout)
        _check_groups(self.keep_order)
        _check_weights(self.column_weights)
        if self.resume and self.checkpoint is None:
            raise RelationalError("resume needs a checkpoint: name the file with checkpoint=... or use -o with the CLI")
        if not _whole(self.audit) or not _whole(self.seed) or self.seed > MAX_SEED:
            raise RelationalError(
                f"audit is {self.audit!r} and seed is {self.seed!r}: give whole numbers from 0; a seed has 31 bits"
            )


def current_order(name: str) -> str:
    """The name of an order today; warns of one that it had before."""
    if name not in RENAMED_ORDERS:
        return name
    warn(f"the order {name!r} is called {RENAMED_ORDERS[name]!r} now: the old name goes with version 0.3", stacklevel=4)
    return RENAMED_ORDERS[name]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


def _whole(number: Any) -> bool:
    """A whole number from 0; found here, a share such as audit=0.1 does not cost the answers of a whole run."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and bool(number >= 0)


def check_layout(layout: str) -> None:
    """Raise ``RelationalError`` for a layout that there is not."""
    _one_of("layout", layout, get_args(Layout))


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RelationalError(f"{name} is {value!r}: use one of {', '.join(allowed)}")


def _check_groups(groups: tuple[tuple[str, ...], ...]) -> None:
    for group in groups:
        if len(set(group)) < 2:
            raise RelationalError(f"keep_order names {list(group)}: give two columns or more that keep their order")


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not 0 <= weight <= MAX_WEIGHT:  # NaN fails too
            raise RelationalError(f"the weight of column {name!r} is {weight}: give 0 to {MAX_WEIGHT}; 1 is neutral")


def check_answer_format(answer_format: AnswerFormat) -> None:
    """Raise ``RelationalError`` with the fix when no answer could satisfy the answer format."""
    if answer_format.max_tokens is not None or isinstance(answer_format, FreeText | JsonSchema):
        _check_max_tokens(answer_format.max_tokens)
    match answer_format:
        case Choice(labels):
            _check_labels(labels)
        case IntegerRange(low, high) if low >= high:
            raise RelationalError(f"the range {low} to {high} leaves nothing to decide: low must be below high")
        case IntegerRange(low, high) if low < -(2**63) or high >= 2**63:
            raise RelationalError(f"the range {low} to {high} does not fit into 64 bits: narrow it")
        case JsonSchema(schema):
            schema_check(schema)


def _check_labels(labels: tuple[str, ...]) -> None:
    if len(labels) < 2 or not all(label.strip() for label in labels):
        raise RelationalError(f"choices are {list(labels)}: give at least two, none of them empty")
    twins = [label for label, count in Counter(map(folded_label, labels)).items() if count > 1]
    if twins:
        raise RelationalError(f"the choice {twins[0]!r} occurs twice (case and spaces do not count): drop one")


def folded_label(text: str) -> str:
    """What is left of a label where its case, its blanks and the way its accents are encoded do not count."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def _check_max_tokens(max_tokens: Any) -> None:
    if not _whole(max_tokens):
        raise RelationalError(f"max_tokens is {max_tokens!r}: give a whole number from 1")
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise RelationalError(f"max_tokens is {max_tokens}: an answer needs at least 1, and at most {MAX_TOKENS:,}")

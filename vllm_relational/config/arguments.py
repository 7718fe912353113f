"""Options as keyword arguments, for editors. Made by scripts/make_pages.py: do not edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from vllm_relational.records import PromptBatch


class QueryArguments(TypedDict, total=False):
    """Options of ``RelationalLLM.run``, ``query``, ``plan``, ``prepare`` and of ``df.llm``."""

    choices: Iterable[Any] | None
    """labels to choose from: texts, or whole numbers, which become texts."""
    range: Iterable[int] | None
    """(low, high), both included."""
    schema: Mapping[str, Any] | None
    """a JSON schema as a dict."""
    max_tokens: int | None
    """longest answer, for text (64) and JSON (256); for choices and ranges, room on a server whose model thinks
    first."""
    dedup: Literal["exact", "normalized", "semantic"]
    """which rows pass for equal. 'exact': equal values in the columns that the prompt reads. 'normalized': equal after
    the rules. 'semantic': close in meaning, after the rules if there are any."""
    normalize: Mapping[str, str | Iterable[str]] | None
    """by column, or '*' for the others, names of rules (``dedup.rules``); nothing chosen means a safe default for
    'normalized' and none for 'semantic'."""
    similarity: float
    """least cosine similarity of a row and the row that is asked for it, above 0 up to 1."""
    similar_columns: str | Iterable[str] | None
    """columns compared by meaning; rows that differ in another column are not merged. () for the columns with text;
    numbers, dates and the like must then be equal."""
    embedder: str | Path | Callable[[list[str]], Any]
    """folder or hub name of a sentence-transformers model, 'vllm:' and the name of one for vLLM, or a function from
    texts to vectors (``embed.Embedder``)."""
    cache: str | Path | None
    """SQLite file of answers that outlives the run and serves other tables; None for none."""
    audit: int
    """so many rows of each kind are asked once more after the run, to see what reordering and merging did."""
    seed: int
    """of the rows drawn for the audit and of the clusters of semantic deduplication."""
    order: str | None
    """the planner, one of ``plan.PLANNERS``, e.g. 'tree' or 'original'; None for the one of the object."""
    pin: str | Iterable[str] | None
    """columns that keep their original position in every prompt."""
    keep_order: Iterable[str] | Iterable[Iterable[str]] | None
    """groups of columns; those of a group keep their original order among themselves in every prompt."""
    column_weights: Mapping[str, float] | None
    """by column, how much its tokens count in planning: 1 by default, 0 not at all. More than 1 draws a column to the
    front where it repeats, less than 1 to the back."""
    system_prompt: str
    """first message of every prompt; '' sends none."""
    nulls: Literal["error", "keep"]
    """'error' fails rows with a null in a used column; 'keep' sends the null to the model."""
    layout: Literal["question-first", "row-first"]
    """'question-first': all prompts share the question, then the row follows. 'row-first': the question stands behind
    the row, so that another question over the same rows finds the rows in the KV cache."""
    on_error: Literal["null", "raise"]
    """'null' gives a failed row no answer and a reason; 'raise' stops at the first failed row."""
    resume: bool
    """continue from an existing checkpoint."""
    checkpoint: str | Path | None
    """file to which answers are appended as they come; None keeps them in memory only."""
    progress: bool | None
    """show a progress bar on standard error; None shows it where that is a terminal."""
    after: Iterable[PromptBatch] | None
    """what the engine was asked just before and may still have in its KV cache (``QueryResult.asked``): the forecast
    starts from there, and with 'row-first' the plan may follow the orders of those rows."""


class SqlArguments(TypedDict, total=False):
    """Options of ``sql.connect``: how SQL asks."""

    dedup: Literal["exact", "normalized", "semantic"]
    """which rows pass for equal. 'exact': equal values in the columns that the prompt reads. 'normalized': equal after
    the rules. 'semantic': close in meaning, after the rules if there are any."""
    normalize: Mapping[str, str | Iterable[str]] | None
    """by column, or '*' for the others, names of rules (``dedup.rules``); nothing chosen means a safe default for
    'normalized' and none for 'semantic'."""
    similarity: float
    """least cosine similarity of a row and the row that is asked for it, above 0 up to 1."""
    similar_columns: str | Iterable[str] | None
    """columns compared by meaning; rows that differ in another column are not merged. () for the columns with text;
    numbers, dates and the like must then be equal."""
    embedder: str | Path | Callable[[list[str]], Any]
    """as of ``run``."""
    cache: str | Path | None
    """SQLite file of answers that outlives the run and serves other tables; None for none."""
    audit: int
    """so many rows of each kind are asked once more after the run, to see what reordering and merging did."""
    seed: int
    """of the rows drawn for the audit and of the clusters of semantic deduplication."""
    max_tokens: int
    """the longest answer of LLM and LLM_AGG in tokens."""
    max_json_tokens: int
    """the longest answer of LLM_EXTRACT in tokens."""
    keeps_nulls: bool
    """a null argument is sent to the model as null; by default the answer is null and nothing is asked."""
    system_prompt: str
    """the first message of every prompt; '' sends none."""
    optimize: bool
    """False computes every call for all rows that SQL would compute it for, call by call."""
    order: str | None
    """the planner of every operator; None for the one of the LLM object."""
    sample_rows: int
    """inputs a predicate that are asked first to estimate how many rows it keeps."""
    batch_rows: int
    """rows before a LIMIT that are asked at least at once."""
    max_pairs: int
    """pairs of a semantic join that are asked at most where nothing proposes candidates."""
    layout: Literal["question-first", "row-first"] | None
    """of every prompt but those of LLM_AGG, 'question-first' or 'row-first'; None chooses by statement."""
    candidates: Callable[..., Any] | None
    """proposes pairs of a semantic join, see ``passes.blocking``."""
    candidates_k: int
    """proposed pairs a row of one side."""
    audit_pairs: int
    """pairs that were not proposed and are asked nevertheless, to estimate the recall."""
    rates: Any
    """to show seconds beside tokens."""
    prices: Any
    """to show dollars beside tokens."""
    retriever: Any
    """searches for ``retrieve``; None for one that opens each index with the model that it names."""
    read_only: bool
    """open the database for reading only."""

"""The options of a query: which there are, what each means, and which of them exclude each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import model_validator

from vllm_relational.answer_format.check import MAX_TOKENS, check_answer_format
from vllm_relational.config.kinds import (
    Batches,
    Bounds,
    EmbedderName,
    File,
    Flag,
    Groups,
    Labels,
    Names,
    Number,
    Order,
    Rules,
    Schema,
    Text,
    Weights,
    Whole,
)
from vllm_relational.config.names import (
    DEFAULT_EMBEDDER,
    DEFAULT_ORDER,
    DEFAULT_SIMILARITY,
    DEFAULT_SYSTEM_PROMPT,
    MAX_SEED,
    MAX_WEIGHT,
    QUESTION_FIRST,
    DedupMode,
    Layout,
    Nulls,
    OnError,
    one_of,
)
from vllm_relational.config.option import Cli, Options, option
from vllm_relational.records import AnswerFormat, Choice, FreeText, IntegerRange, JsonSchema, RelationalError

# Which commands have an option.
RUN, ASKING, PLANNING = ("run",), ("run", "bench"), ("run", "bench", "plan")
MERGING, STORING = ("run", "plan", "sql", "explain"), ("run", "sql")


class MergingOptions(Options):
    """Which rows pass for equal, where answers are kept, what is asked again; for ``run`` and SQL."""

    dedup: DedupMode = option(
        "exact",
        "which rows pass for equal. 'exact': equal values in the columns that the prompt reads. 'normalized': equal "
        "after the rules. 'semantic': close in meaning, after the rules if there are any.",
        one_of(DedupMode),
        cli=Cli("Rows that pass for equal are asked once: exact, normalized, semantic.", MERGING, "merging"),
    )
    normalize: Rules = option(
        {},
        "by column, or '*' for the others, names of rules (``dedup.rules``); nothing chosen means a safe default for "
        "'normalized' and none for 'semantic'.",
        "give rules by column, e.g. {'*': ['default']}",
        cli=Cli(
            "COLUMN=rule,rule (* for all others): unicode, case, punctuation, whitespace, spelling, stopwords, lemma, "
            "stem, default, exact; stem:de for German. Repeatable.",
            MERGING,
            "merging",
            form="rules",
        ),
    )
    similarity: Number = option(
        DEFAULT_SIMILARITY,
        "least cosine similarity of a row and the row that is asked for it, above 0 up to 1.",
        "give a cosine above 0 up to 1, e.g. 0.95",
        gt=0,
        le=1,
        cli=Cli("With --dedup semantic: least cosine similarity to the row asked.", MERGING, "merging"),
    )
    similar_columns: Names = option(
        (),
        "columns compared by meaning; rows that differ in another column are not merged. () for the columns with text; "
        "numbers, dates and the like must then be equal.",
        "give columns, e.g. ['title']",
        cli=Cli(
            "With --dedup semantic: columns compared by meaning, a,b; others must be equal.",
            MERGING,
            "merging",
            flag="--similar",
            form="list",
        ),
    )
    embedder: EmbedderName = option(
        DEFAULT_EMBEDDER,
        "folder or hub name of a sentence-transformers model, 'vllm:' and the name of one for vLLM, or a function from "
        "texts to vectors (``embed.Embedder``).",
        "give a folder or hub name, or a function from texts to vectors",
        cli=Cli(
            "With --dedup semantic: folder or hub name of an embedding model; vllm:NAME for vLLM.",
            ("run", "plan"),
            "merging",
        ),
    )
    cache: File | None = option(
        None,
        "SQLite file of answers that outlives the run and serves other tables; None for none.",
        "give the name of a file",
        cli=Cli("SQLite file of answers kept across runs; made where there is none.", STORING, "keeping"),
    )
    audit: Whole = option(
        0,
        "so many rows of each kind are asked once more after the run, to see what reordering and merging did.",
        "give a whole number of rows from 0",
        ge=0,
        cli=Cli("Afterwards ask N rows again in original order, and N merged rows.", STORING, "keeping"),
    )
    seed: Whole = option(
        0,
        "of the rows drawn for the audit and of the clusters of semantic deduplication.",
        "give a whole number from 0; a seed has 31 bits",
        ge=0,
        le=MAX_SEED,
        cli=Cli("Of the rows that --audit draws and of semantic clusters.", ("run", "sql", "explain"), "keeping"),
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.normalize and self.dedup == "exact":
            raise RelationalError("normalize has no effect with exact deduplication: add --dedup normalized")
        if self.similar_columns and self.dedup != "semantic":
            raise RelationalError("similar columns need semantic deduplication: add --dedup semantic")
        return self


class QueryConfig(MergingOptions):
    """How a query is run; what it asks lives in ``Question``, what an answer may be in ``AnswerOptions``."""

    order: Order = option(
        DEFAULT_ORDER,
        "the planner, one of ``plan.PLANNERS``, e.g. 'tree' or 'original'; None for the one of the object.",
        "give the name of a planner, e.g. 'tree'",
        cli=Cli("Field and row order: {planners}.", RUN, "prompts"),
    )
    pin: Names = option(
        (),
        "columns that keep their original position in every prompt.",
        "give columns, e.g. ['title']",
        cli=Cli("Columns that keep their original position: a,b.", PLANNING, "prompts", form="list"),
    )
    keep_order: Groups = option(
        (),
        "groups of columns; those of a group keep their original order among themselves in every prompt.",
        "give a list of columns, or a list of such lists",
        cli=Cli(
            "Columns that keep their original order among themselves: a,b. Repeatable.",
            PLANNING,
            "prompts",
            form="lists",
        ),
    )
    column_weights: Weights = option(
        {},
        "by column, how much its tokens count in planning: 1 by default, 0 not at all. More than 1 draws a column to "
        "the front where it repeats, less than 1 to the back.",
        "give numbers by column, e.g. {'title': 2}",
        cli=Cli(
            "COLUMN=NUMBER: how much its tokens count in planning; 1 by default.",
            PLANNING,
            "prompts",
            flag="--weight",
            form="weights",
        ),
    )
    system_prompt: Text = option(
        DEFAULT_SYSTEM_PROMPT,
        "first message of every prompt; '' sends none.",
        "give a text; '' sends none",
        identity="system prompt",
        cli=Cli("First message of every prompt; '' for none.", ASKING, "prompts", shown=False),
    )
    nulls: Nulls = option(
        "error",
        "'error' fails rows with a null in a used column; 'keep' sends the null to the model.",
        one_of(Nulls),
        cli=Cli("error: a null in a used column fails the row; keep: the model sees null.", ASKING, "prompts"),
    )
    layout: Layout = option(
        QUESTION_FIRST,
        "'question-first': all prompts share the question, then the row follows. 'row-first': the question stands "
        "behind the row, so that another question over the same rows finds the rows in the KV cache.",
        one_of(Layout),
        identity="layout",
        cli=Cli("What a prompt begins with: question-first or row-first.", PLANNING, "prompts"),
    )
    on_error: OnError = option(
        "null",
        "'null' gives a failed row no answer and a reason; 'raise' stops at the first failed row.",
        one_of(OnError),
        cli=Cli("null: a failed row gets a reason; raise: stop at the first.", RUN, "prompts"),
    )
    resume: Flag = option(
        False,
        "continue from an existing checkpoint.",
        "give True or False",
        cli=Cli("Continue an interrupted run.", RUN, "prompts", flag="--resume"),
    )
    checkpoint: File | None = option(
        None,
        "file to which answers are appended as they come; None keeps them in memory only.",
        "give the name of a file",
        cli=Cli("Default: OUTPUT.checkpoint.jsonl.", RUN, "prompts"),
    )
    progress: Flag | None = option(
        None,
        "show a progress bar on standard error; None shows it where that is a terminal.",
        "give True or False",
    )
    after: Batches = option(
        (),
        "what the engine was asked just before and may still have in its KV cache (``QueryResult.asked``): the "
        "forecast starts from there, and with 'row-first' the plan may follow the orders of those rows.",
        "give a list of QueryResult.asked",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_groups(self.keep_order)
        _check_weights(self.column_weights)
        if self.resume and self.checkpoint is None:
            raise RelationalError("resume needs a checkpoint: name the file with checkpoint=... or use -o with the CLI")
        return self


class AnswerOptions(Options):
    """What an answer may be: one of ``choices``, ``range`` and ``schema``, or text."""

    choices: Labels | None = option(
        None,
        "labels to choose from: texts, or whole numbers, which become texts.",
        "give a list of labels, e.g. ['yes', 'no']",
        cli=Cli("Labels to choose from: yes,no or a JSON list.", ASKING, "answers", form="labels"),
    )
    range: Bounds | None = option(
        None,
        "(low, high), both included.",
        "give two whole numbers, e.g. range=(1, 5)",
        cli=Cli("Answer with a whole number: 1,5.", ASKING, "answers", form="range"),
    )
    schema_: Schema | None = option(
        None,
        "a JSON schema as a dict.",
        "give a JSON schema as a dict",
        alias="schema",
        cli=Cli("JSON schema file that every answer follows.", ASKING, "answers", form="schema"),
    )
    max_tokens: Whole | None = option(
        None,
        "longest answer, for text (64) and JSON (256); for choices and ranges, room on a server whose model thinks "
        "first.",
        f"an answer needs at least 1: give a whole number up to {MAX_TOKENS:,}",
        ge=1,
        le=MAX_TOKENS,
        cli=Cli("Longest answer in tokens, thought included: text 64, JSON 256.", ASKING, "answers"),
    )

    def answer_format(self) -> AnswerFormat:
        """The one that these options name. Raises ``RelationalError`` where no answer could satisfy it."""
        if sum(given is not None for given in (self.choices, self.range, self.schema_)) > 1:
            raise RelationalError("choices, range and schema exclude each other: give one")
        longest = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        found: AnswerFormat = FreeText(**longest)
        if self.choices is not None:
            found = Choice(self.choices, **longest)
        elif self.range is not None:
            found = IntegerRange(*self.range, **longest)
        elif self.schema_ is not None:
            found = JsonSchema(self.schema_, **longest)
        check_answer_format(found)
        return found


class QueryOptions(QueryConfig, AnswerOptions):
    """Options of ``RelationalLLM.run``, ``query``, ``plan``, ``prepare`` and of ``df.llm``."""


def _check_groups(groups: tuple[tuple[str, ...], ...]) -> None:
    for group in groups:
        if len(set(group)) < 2:
            raise RelationalError(f"keep_order names {list(group)}: give two columns or more that keep their order")


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not 0 <= weight <= MAX_WEIGHT:  # NaN fails too
            raise RelationalError(f"the weight of column {name!r} is {weight}: give 0 to {MAX_WEIGHT}; 1 is neutral")

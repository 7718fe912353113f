"""The options of ``sql.connect``."""

from __future__ import annotations

from vllm_relational.answer_format.check import MAX_TOKENS
from vllm_relational.config.kinds import (
    AnLlm,
    ARetriever,
    EmbedderName,
    File,
    Flag,
    Function,
    Order,
    SomePrices,
    SomeRates,
    Text,
    Whole,
)
from vllm_relational.config.names import (
    DEFAULT_EMBEDDER,
    DEFAULT_ORDER,
    DEFAULT_SYSTEM_PROMPT,
    Layout,
    one_of,
)
from vllm_relational.config.option import Cli, Options, option
from vllm_relational.config.query import MergingOptions
from vllm_relational.records import FreeText, JsonSchema

BOTH = ("sql", "explain")


class SqlOptions(MergingOptions):
    """Options of ``sql.connect``: how SQL asks."""

    max_tokens: Whole = option(
        FreeText.max_tokens,
        "the longest answer of LLM and LLM_AGG in tokens.",
        "give a whole number from 1",
        ge=1,
        le=MAX_TOKENS,
        cli=Cli("Longest answer of LLM and LLM_AGG in tokens.", BOTH, "asking"),
    )
    max_json_tokens: Whole = option(
        JsonSchema.max_tokens,
        "the longest answer of LLM_EXTRACT in tokens.",
        "give a whole number from 1",
        ge=1,
        le=MAX_TOKENS,
    )
    keeps_nulls: Flag = option(
        False,
        "a null argument is sent to the model as null; by default the answer is null and nothing is asked.",
        "give True or False",
    )
    system_prompt: Text = option(
        DEFAULT_SYSTEM_PROMPT, "the first message of every prompt; '' sends none.", "give a text; '' sends none"
    )
    optimize: Flag = option(
        True,
        "False computes every call for all rows that SQL would compute it for, call by call.",
        "give True or False",
        cli=Cli("Rewrite the plan; off to compare.", BOTH, "asking", flag="--optimize/--no-optimize"),
    )
    order: Order | None = option(
        None,
        "the planner of every operator; None for the one of the LLM object.",
        "give the name of a planner, e.g. 'tree'",
        cli=Cli("Field and row order of every operator.", BOTH, "planning", default=DEFAULT_ORDER),
    )
    sample_rows: Whole = option(
        32,
        "inputs a predicate that are asked first to estimate how many rows it keeps.",
        "give a whole number from 0",
        ge=0,
    )
    batch_rows: Whole = option(
        64, "rows before a LIMIT that are asked at least at once.", "give a whole number from 1", ge=1
    )
    max_pairs: Whole = option(
        100_000,
        "pairs of a semantic join that are asked at most where nothing proposes candidates.",
        "give a whole number from 0",
        ge=0,
    )
    layout: Layout | None = option(
        None,
        "of every prompt but those of LLM_AGG, 'question-first' or 'row-first'; None chooses by statement.",
        one_of(Layout),
        cli=Cli(
            "What prompts begin with: question-first or row-first; default by forecast, for each statement.",
            BOTH,
            "planning",
        ),
    )
    embedder: EmbedderName = option(
        DEFAULT_EMBEDDER,
        "as of ``run``.",
        "give a folder or hub name, or a function from texts to vectors",
        cli=Cli(
            "Embedding model, vllm:NAME for one in vLLM: semantic joins ask about likely pairs only, --dedup semantic "
            "goes by it.",
            BOTH,
            "merging",
            default=None,
        ),
    )
    candidates: Function = option(
        None,
        "proposes pairs of a semantic join, see ``passes.blocking``.",
        "give retrieval.nearest_pairs(...)",
    )
    candidates_k: Whole = option(
        10,
        "proposed pairs a row of one side.",
        "give a whole number from 1",
        ge=1,
        cli=Cli("With --embedder: likely pairs a row of the first table.", BOTH, "merging", flag="--candidates"),
    )
    audit_pairs: Whole = option(
        64,
        "pairs that were not proposed and are asked nevertheless, to estimate the recall.",
        "give a whole number from 0",
        ge=0,
    )
    rates: SomeRates = option(
        None,
        "to show seconds beside tokens.",
        "give sql.cost.Rates(...)",
        cli=Cli("Engine's tokens a second, PREFILL,DECODE, to forecast seconds.", BOTH, "pricing", form="text"),
    )
    prices: SomePrices = option(
        None,
        "to show dollars beside tokens.",
        "give sql.cost.Prices(...)",
        cli=Cli("Dollars a million tokens: INPUT,CACHED,OUTPUT.", BOTH, "pricing", form="text"),
    )
    retriever: ARetriever = option(
        None,
        "searches for ``retrieve``; None for one that opens each index with the model that it names.",
        "give an object with identity and passages",
    )
    read_only: Flag = option(False, "open the database for reading only.", "give True or False")


class Places(Options):
    """What ``sql.connect`` connects."""

    database: File = option(..., "a DuckDB database.", "give the name of a database file, or ':memory:'")
    side: File | None = option(
        None,
        "a file for the operators' inputs and answers, from which a later session goes on; None keeps them in memory. "
        "They never go into the database.",
        "give the name of a file",
    )
    llm: AnLlm = option(..., "a ``RelationalLLM``.", "give a RelationalLLM")

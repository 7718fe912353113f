"""Every option that a user may give, typed once: how its value is checked, and in words what it takes.

Python, SQL and the command line hand their options to ``read_options``. A value of another type or out of bounds, and a
name that there is not, raise ``RelationalError`` with the option's name: what it got, what it takes. Descriptions
complete the sentence "NAME is VALUE: ...".
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from vllm_relational.answer_format.json_schemas import plain_schema
from vllm_relational.config import (
    DEFAULT_EMBEDDER,
    DEFAULT_SIMILARITY,
    DEFAULT_SYSTEM_PROMPT,
    MAX_SEED,
    MAX_TOKENS,
    QUESTION_FIRST,
    DedupConfig,
    DedupMode,
    Layout,
    Nulls,
    OnError,
    QueryConfig,
    check_answer_format,
)
from vllm_relational.option_kinds import (
    AnEngine,
    AnLlm,
    ARetriever,
    Batches,
    Bounds,
    EmbedderName,
    File,
    Flag,
    Function,
    Groups,
    Labels,
    ModelName,
    Named,
    Names,
    Number,
    Rules,
    Settings,
    SomePrices,
    SomeRates,
    Text,
    Weights,
    Whole,
    read_text,
    shown,
)
from vllm_relational.records import AnswerFormat, Choice, FreeText, IntegerRange, JsonSchema, RelationalError
from vllm_relational.terminal import is_terminal


def _one_of(kind: Any) -> str:
    return f"use one of {', '.join(kind.__args__)}"


# -------------------------------------------------------------------------------------------------------- the options
class Options(BaseModel):
    """Options as read: each in one type, or its default. Not to be made by hand: see ``read_options``."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class MergingOptions(Options):
    """Which rows pass for equal, where answers are kept, what is asked again; for ``run`` and SQL."""

    dedup: DedupMode = Field("exact", description=_one_of(DedupMode))
    normalize: Rules = Field({}, description="give rules by column, e.g. {'*': ['default']}")
    similarity: Number = Field(DEFAULT_SIMILARITY, gt=0, le=1, description="give a cosine above 0 up to 1, e.g. 0.95")
    similar_columns: Names = Field((), description="give columns, e.g. ['title']")
    embedder: EmbedderName = Field(
        DEFAULT_EMBEDDER, description="give a folder or hub name, or a function from texts to vectors"
    )
    cache: File | None = Field(None, description="give the name of a file")
    audit: Whole = Field(0, ge=0, description="give a whole number of rows from 0")
    seed: Whole = Field(0, ge=0, le=MAX_SEED, description="give a whole number from 0; a seed has 31 bits")


class RunOptions(MergingOptions):
    """Options of ``RelationalLLM.run``, ``query``, ``plan``, ``prepare`` and of ``df.llm``; see ``QueryConfig``."""

    choices: Labels | None = Field(None, description="give a list of labels, e.g. ['yes', 'no']")
    range: Bounds | None = Field(None, description="give two whole numbers, e.g. range=(1, 5)")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="give a JSON schema as a dict")
    max_tokens: Whole | None = Field(
        None, ge=1, le=MAX_TOKENS, description=f"an answer needs at least 1: give a whole number up to {MAX_TOKENS:,}"
    )
    order: Named | None = Field(None, description="give the name of a planner, e.g. 'tree'")
    pin: Names = Field((), description="give columns, e.g. ['title']")
    keep_order: Groups = Field((), description="give a list of columns, or a list of such lists")
    column_weights: Weights = Field({}, description="give numbers by column, e.g. {'title': 2}")
    system_prompt: Text = Field(DEFAULT_SYSTEM_PROMPT, description="give a text; '' sends none")
    on_error: OnError = Field("null", description=_one_of(OnError))
    nulls: Nulls = Field("error", description=_one_of(Nulls))
    checkpoint: File | None = Field(None, description="give the name of a file")
    resume: Flag = Field(False, description="give True or False")
    progress: Flag | None = Field(None, description="give True or False")
    layout: Layout = Field(QUESTION_FIRST, description=_one_of(Layout))
    after: Batches = Field((), description="give a list of QueryResult.asked")


class LlmOptions(Options):
    """Arguments of ``RelationalLLM`` but for those of the engine."""

    model: ModelName | None = Field(None, description="give a folder or hub name")
    base_url: Named | None = Field(None, description="give an address, e.g. http://localhost:8000/v1")
    tokenizer: ModelName | None = Field(None, description="give a folder or hub name")
    order: Named = Field(description="give the name of a planner, e.g. 'tree'")
    engine: AnEngine = Field(None, description="give an object with start, ask, reset_cache and close (engine/base.py)")
    quiet: Flag = Field(True, description="give True or False")
    scheduler: Settings | None = Field(None, description="give settings, e.g. {'token_exact': True}")
    attention: Text | None = Field(None, description="use 'dipr', or None for vLLM's own")
    dipr: Settings | None = Field(None, description="give settings, e.g. {'alpha': 0.001}")


class ServerOptions(Options):
    """Arguments of ``RelationalLLM`` for a server, see ``EndpointEngine``."""

    api_key: Text | None = Field(None, description="give a text, or set OPENAI_API_KEY")
    concurrency: Whole = Field(32, ge=1, le=4096, description="give a whole number of requests from 1 to 4,096")
    timeout_s: Number = Field(600.0, gt=0, le=1e8, description="give seconds above 0")
    max_retries: Whole = Field(5, ge=0, le=1_000_000, description="give a whole number from 0")
    retry_delay_s: Number = Field(0.5, ge=0, le=1e8, description="give seconds from 0")
    served_as: Named | None = Field(None, description="give a model's name")


class SqlOptions(MergingOptions):
    """Options of ``sql.connect``; see ``sql.operator.Settings``."""

    max_tokens: Whole = Field(64, ge=1, le=MAX_TOKENS, description="give a whole number from 1")
    max_json_tokens: Whole = Field(256, ge=1, le=MAX_TOKENS, description="give a whole number from 1")
    keeps_nulls: Flag = Field(False, description="give True or False")
    system_prompt: Text = Field(DEFAULT_SYSTEM_PROMPT, description="give a text; '' sends none")
    order: Named | None = Field(None, description="give the name of a planner, e.g. 'tree'")
    optimize: Flag = Field(True, description="give True or False")
    sample_rows: Whole = Field(32, ge=0, description="give a whole number from 0")
    batch_rows: Whole = Field(64, ge=1, description="give a whole number from 1")
    max_pairs: Whole = Field(100_000, ge=0, description="give a whole number from 0")
    candidates: Function = Field(None, description="give retrieval.nearest_pairs(...)")
    candidates_k: Whole = Field(10, ge=1, description="give a whole number from 1")
    audit_pairs: Whole = Field(64, ge=0, description="give a whole number from 0")
    rates: SomeRates = Field(None, description="give sql.cost.Rates(...)")
    prices: SomePrices = Field(None, description="give sql.cost.Prices(...)")
    layout: Layout | None = Field(None, description=_one_of(Layout))
    retriever: ARetriever = Field(None, description="give an object with identity and passages")
    read_only: Flag = Field(False, description="give True or False")


class Places(Options):
    """What ``sql.connect`` connects."""

    database: File = Field(description="give the name of a database file, or ':memory:'")
    side: File | None = Field(None, description="give the name of a file")
    llm: AnLlm = Field(description="give a RelationalLLM")


Kind = TypeVar("Kind", bound=Options)


# ------------------------------------------------------------------------------------------------------------ reading
def read_options(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """The options in their types. Raises ``RelationalError``, see the module."""
    known = {field.alias or name: field for name, field in kind.model_fields.items()}
    for name in given:
        if name not in known:
            raise RelationalError(unknown_option(name, known))
    chosen = {name: value for name, value in given.items() if value is not None or not _may_be_left_out(known[name])}
    if chosen.get("schema") is not None:
        chosen["schema"] = plain_schema(chosen["schema"])
    try:
        return kind.model_validate(chosen)
    except ValidationError as error:
        raise RelationalError(_explained(error, known, given)) from None


def _may_be_left_out(field: FieldInfo) -> bool:
    """Whether None is the same as not to give the option: where nothing is chosen by default."""
    return not field.is_required() and field.default in (None, (), {})


def unknown_option(name: str, known: Iterable[str]) -> str:
    """One line for a name that there is not: the nearest one, and all."""
    names = sorted(known)
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    return f"there is no option {name!r}{hint} (options: {', '.join(names)})"


def _explained(error: ValidationError, known: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    said = str(first.get("ctx", {}).get("error", ""))  # of the ValueError of a check
    return f"{name} is {shown(given[name])}: {said or known[name].description}"


# ---------------------------------------------------------------------------------------------- what options decide
def query_settings(prompt: str, given: Mapping[str, Any], order: str) -> tuple[QueryConfig, AnswerFormat]:
    """How a query is run and answered. order: the planner where the options name none. Raises ``RelationalError``."""
    _check_prompt(prompt)
    read = read_options(RunOptions, given)
    config = QueryConfig(
        order=read.order or order,
        pin=read.pin,
        keep_order=read.keep_order,
        column_weights=read.column_weights,
        system_prompt=read.system_prompt,
        on_error=read.on_error,
        nulls=read.nulls,
        checkpoint=read.checkpoint,
        resume=read.resume,
        progress=is_terminal(sys.stderr) if read.progress is None else read.progress,
        dedup=DedupConfig(read.dedup, read.normalize, read.similarity, read.similar_columns, read.embedder),
        cache=read.cache,
        audit=read.audit,
        seed=read.seed,
        layout=read.layout,
        after=read.after,
    )
    return config, _decision(read)


def _check_prompt(prompt: Any) -> None:
    try:
        read_text(prompt)
    except ValueError as error:
        raise RelationalError(
            f"the prompt is {shown(prompt)}: {str(error) or 'give a text that names columns'}"
        ) from None


def _decision(read: RunOptions) -> AnswerFormat:
    if sum(option is not None for option in (read.choices, read.range, read.schema_)) > 1:
        raise RelationalError("choices, range and schema exclude each other: give one")
    longest = {} if read.max_tokens is None else {"max_tokens": read.max_tokens}
    answer_format: AnswerFormat = FreeText(**longest)
    if read.choices is not None:
        answer_format = Choice(read.choices, **longest)
    elif read.range is not None:
        answer_format = IntegerRange(*read.range, **longest)
    elif read.schema_ is not None:
        answer_format = JsonSchema(read.schema_, **longest)
    check_answer_format(answer_format)
    return answer_format


def llm_options(given: Mapping[str, Any], engine_args: dict[str, Any]) -> LlmOptions:
    """The arguments of ``RelationalLLM``; ``engine_args`` for a server are read in place, vLLM reads its own."""
    read = read_options(LlmOptions, given)
    if read.base_url is not None:
        server = read_options(ServerOptions, engine_args)
        engine_args |= {name: getattr(server, name) for name in engine_args}
        return read
    for name in engine_args:
        if name in ServerOptions.model_fields:
            raise RelationalError(f"{name} is for a server: name one with base_url, or leave {name} out")
        if read.engine is not None:
            known = {*LlmOptions.model_fields, *ServerOptions.model_fields}
            raise RelationalError(f"an engine is given, which takes no arguments here: {unknown_option(name, known)}")
    return read

"""The Python interface: one object that holds an engine and answers questions over tables."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from vllm_relational.config import DEFAULT_ORDER, QueryConfig, QueryOptions
from vllm_relational.config.arguments import QueryArguments
from vllm_relational.config.kinds import check_prompt
from vllm_relational.config.llm import CONTEXTS, llm_options
from vllm_relational.config.signature import takes
from vllm_relational.engine.base import Engine
from vllm_relational.files.named import NamedFile, check_distinct
from vllm_relational.prompts import FourByteEstimate, Tokenizer, load_tokenizer
from vllm_relational.query.job_record import EarlierOutput
from vllm_relational.query.no_engine import NoEngine
from vllm_relational.query.pipeline import run_query
from vllm_relational.query.prepared import Prepared, prepare
from vllm_relational.records import (
    AnswerFormat,
    EngineInfo,
    IntegerRange,
    JsonSchema,
    QueryResult,
    RelationalError,
    RunReport,
)
from vllm_relational.results.parse import arrow_type
from vllm_relational.table import read_table
from vllm_relational.terminal import warn

# Longer reasons are cut in warnings; the whole ones are in ``last_result.errors``.
SHOWN_REASONS = 3
NO_MODEL = "none: sizes only"


_takes_options = takes(QueryOptions, order=None)


class RelationalLLM:
    """Answers questions over tables.

    model:       folder or hub name; with ``base_url`` the server's model name, or None for its only one.
    base_url:    an OpenAI-compatible server (``http://host:8000/v1``) instead of vLLM in this process.
    tokenizer:   folder or hub name, where it is not the model's; with ``base_url`` it makes token counts exact.
    order:       default field and row order of queries.
    scheduler:   with vLLM in this process, settings of our scheduler (``vllm_ext/settings.py``), as
                 ``{"token_exact": True}``. None keeps vLLM's own; rows come in planned order in any case.
    attention:   with vLLM in this process, ``"dipr"`` decodes long contexts by sparse attention (docs/dipr.md), with
                 the settings ``dipr``, as ``{"alpha": 0.001}``. None keeps vLLM's own.
    contexts:    with vLLM in this process, a folder that keeps what was computed of prompts, for later jobs in any
                 process (docs/context_vllm.md), of at most ``contexts_size`` GiB. On a GPU they pass through
                 ``contexts_memory`` GiB of CPU memory.
    engine_args: with vLLM in this process, any argument of ``vllm.LLM``; with ``base_url``, those of
                 ``EndpointEngine`` (api_key, concurrency, timeout_s...).

    The engine starts at the first question and stays until ``close()``. The newest object, until it is closed, also
    serves the ``df.llm`` accessor.
    """

    _newest: RelationalLLM | None = None

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        base_url: str | None = None,
        tokenizer: str | Path | None = None,
        order: str = DEFAULT_ORDER,
        engine: Engine | None = None,
        quiet: bool = True,
        scheduler: Mapping[str, Any] | None = None,
        attention: str | None = None,
        dipr: Mapping[str, Any] | None = None,
        contexts: str | Path | None = None,
        contexts_size: float | None = None,
        contexts_memory: float | None = None,
        **engine_args: Any,
    ) -> None:
        given = llm_options(
            {
                "model": model,
                "base_url": base_url,
                "tokenizer": tokenizer,
                "order": order,
                "engine": engine,
                "quiet": quiet,
                "scheduler": scheduler,
                "attention": attention,
                "dipr": dipr,
                "contexts": contexts,
                "contexts_size": contexts_size,
                "contexts_memory": contexts_memory,
            },
            engine_args,
        )
        if scheduler is not None and base_url is not None:
            raise RelationalError(
                "a server got its scheduler when it started: give vllm-relational serve MODEL --token-exact, --eviction"
            )
        if (attention is not None or dipr is not None) and base_url is not None:
            raise RelationalError(
                "a server got its attention when it started: give vllm-relational serve MODEL --attention dipr"
            )
        if given.contexts is not None and (base_url is not None or engine is not None):
            raise RelationalError(
                "contexts are kept by vLLM itself: give vllm-relational serve MODEL --contexts FOLDER to a server, or "
                "contexts= to vLLM in this process"
            )
        self.order = given.order
        self.last_result: QueryResult | None = None
        self._model, self._base_url, self._quiet = given.model, given.base_url, given.quiet
        if given.tokenizer is not None and base_url is None:
            engine_args["tokenizer"] = given.tokenizer
        if scheduler is not None:
            engine_args["scheduler"] = scheduler
        if attention is not None or dipr is not None:
            engine_args |= {"attention": attention, "dipr": dipr}
        engine_args |= {name: value for name in CONTEXTS if (value := getattr(given, name)) is not None}
        self._engine_args = engine_args
        self._engine = engine
        self._tokenizer_name = given.tokenizer or (given.model if base_url is None else None)
        self._tokenizer: Tokenizer | None = None
        RelationalLLM._newest = self

    # ------------------------------------------------------------------------------------------------- asking
    @_takes_options
    def query(self, table: Any, prompt: str, **options: Unpack[QueryArguments]) -> Any:
        """Ask ``prompt`` of every row; answers come back in the table's order, one a row.

        Takes the options of ``run``. Returns a pandas Series with the DataFrame's index, a polars Series, a pyarrow
        Array for pyarrow tables and DuckDB relations, and a pandas Series for files. Failed rows are null; a
        warning counts them and ``last_result.errors`` says why. Texts cut off at max_tokens are counted likewise.
        """
        config, answer_format = self._settings(prompt, options)
        result = self._answered(table, prompt, config, answer_format)
        _warn_of_failures(result)
        _warn_of_cut_answers(result)
        return _like(table, result, answer_format)

    @takes(QueryOptions, explained=True, order=None)
    def run(
        self,
        table: Any,
        prompt: str,
        *,
        earlier: EarlierOutput | None = None,
        **options: Unpack[QueryArguments],
    ) -> QueryResult:
        """Ask ``prompt`` of every row and return answers, errors and the report.

        earlier: the output that the caller replaces with this one, see ``job_record.EarlierOutput``.
        Raises ``RelationalError`` when the query or an option is wrong, ``EngineDiedError``, ``RowFailedError``.
        """
        return self._answered(table, prompt, *self._settings(prompt, options), earlier)

    def _answered(
        self,
        table: Any,
        prompt: str,
        config: QueryConfig,
        answer_format: AnswerFormat,
        earlier: EarlierOutput | None = None,
    ) -> QueryResult:
        if earlier is not None and not isinstance(earlier, EarlierOutput):
            raise RelationalError(
                f"earlier is of the type {type(earlier).__name__}: give an EarlierOutput, or leave it out"
            )
        check_distinct(_named_files(table, config))
        arrow = read_table(table)
        engine, tokenizer = self.engine, self._load_tokenizer()
        self.last_result = run_query(arrow, prompt, answer_format, config, engine, tokenizer, self._keep, earlier)
        return self.last_result

    def _keep(self, result: QueryResult) -> None:
        """Of a run that Ctrl-C or an error ends, what was answered."""
        self.last_result = result

    @_takes_options
    def plan(
        self, table: Any, prompt: str, info: EngineInfo | None = None, **options: Unpack[QueryArguments]
    ) -> RunReport:
        """Plan the query and forecast cache hits without starting an engine; options of ``run``.

        info: the engine to plan for; by default this one as it will most likely be, with an unlimited KV cache.
        """
        if info is not None and not isinstance(info, EngineInfo):
            raise RelationalError(f"info is of the type {type(info).__name__}: give an EngineInfo, or leave it out")
        info = info or self.expected_engine()
        return self.prepare(table, prompt, **options).plan(info).report

    @_takes_options
    def prepare(self, table: Any, prompt: str, **options: Unpack[QueryArguments]) -> Prepared:
        """Read, deduplicate and tokenise a query that is then planned several times; options of ``run``.

        ``prepare(...).plan(llm.expected_engine(), order)`` forecasts one order.
        """
        config, answer_format = self._settings(prompt, options)
        return prepare(read_table(table), prompt, answer_format, config, self._load_tokenizer())

    # ------------------------------------------------------------------------------------------------ the engine
    @property
    def engine(self) -> Engine:
        """The engine behind this object; made, not started, when first needed."""
        if self._engine is None:
            self._engine = _make_engine(self._model, self._base_url, self._quiet, self._engine_args)
        return self._engine

    def without_engine(self, model: str) -> RelationalLLM:
        """This object for queries whose answers are all there: it starts no engine, and names that model's answers."""
        made = copy.copy(self)
        made._engine = NoEngine(model)
        return made

    def start(self) -> EngineInfo:
        """Start the engine, unless it runs; what it says of itself."""
        return self.engine.start()

    def reset_cache(self) -> bool:
        """Forget cached prefixes, so that the next query starts cold; False where the engine cannot."""
        return self.engine.reset_cache()

    def close(self) -> None:
        """Stop the engine and free its memory."""
        if self._engine is not None:
            self._engine.close()
        if RelationalLLM._newest is self:
            RelationalLLM._newest = None

    def __enter__(self) -> RelationalLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def newest(cls) -> RelationalLLM:
        """The object that ``df.llm`` uses: the one made last and not closed."""
        if cls._newest is None:
            raise RelationalError("df.llm needs a model: make one first, llm = RelationalLLM('PATH_OR_NAME')")
        return cls._newest

    def expected_engine(self) -> EngineInfo:
        """What the engine will most likely be, as far as that is known without starting it. A server is asked once what
        it is, and need not answer."""
        if self._engine is None and self._base_url is None and self._model is None:
            return EngineInfo(NO_MODEL)
        expected = getattr(self.engine, "expected", None)  # engines of users may not say
        if expected is None:
            return EngineInfo(str(getattr(self.engine, "model", NO_MODEL)))
        info: EngineInfo = expected()
        return info if self._base_url is None else dataclasses.replace(info, model=self._model or NO_MODEL)

    def _load_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            name, args = self._tokenizer_name, self._engine_args
            revision = args.get("tokenizer_revision") or args.get("revision")
            trust = bool(args.get("trust_remote_code", False))
            self._tokenizer = load_tokenizer(name, revision, trust) if name else FourByteEstimate()
        return self._tokenizer

    def _settings(self, prompt: str, options: Mapping[str, Any]) -> tuple[QueryConfig, AnswerFormat]:
        check_prompt(prompt)
        order = self.order if options.get("order") is None else options["order"]
        read = QueryOptions.read({**options, "order": order})
        return read, read.answer_format()


def _named_files(table: Any, config: QueryConfig) -> Iterator[NamedFile]:
    """The files of a query."""
    names = {"table": table if isinstance(table, str | Path) else None}
    names |= {"checkpoint": config.checkpoint, "cache": config.cache}
    for role, path in names.items():
        if path is not None:
            yield NamedFile(role, Path(path), role != "table")


def _make_engine(model: str | None, base_url: str | None, quiet: bool, engine_args: dict[str, Any]) -> Engine:
    if base_url is not None:
        from vllm_relational.engine.endpoint import EndpointEngine

        return EndpointEngine(base_url, model=model, **engine_args)
    if model is None:
        raise RelationalError("name a model (a folder or a hub name), or a server with base_url")
    from vllm_relational.engine.vllm_engine import VllmEngine

    return VllmEngine(model, quiet=quiet, **engine_args)


def _warn_of_cut_answers(result: QueryResult) -> None:
    if result.report.num_cut:
        warn(
            f"{result.report.num_cut} of {len(result.answers)} answers were cut off at max_tokens "
            "(last_result.statuses says which): raise it for whole ones",
            stacklevel=3,
        )


def _warn_of_failures(result: QueryResult) -> None:
    if not result.num_failed:
        return
    reasons = [f"row {row}: {reason}" for row, reason in enumerate(result.errors) if reason][:SHOWN_REASONS]
    warn(
        f"{result.num_failed} of {len(result.answers)} rows failed and are null ({'; '.join(reasons)}): "
        "see last_result.errors",
        stacklevel=3,
    )


def _arrow_column(answers: list[Any], answer_format: AnswerFormat) -> pa.Array:
    """JSON answers keep their type where they share one, and are JSON texts otherwise."""
    if not isinstance(answer_format, JsonSchema):
        return pa.array(answers, arrow_type(answer_format))
    try:
        return pa.array(answers) if any(answer is not None for answer in answers) else pa.array(answers, pa.string())
    except (pa.ArrowException, OverflowError):
        texts = [None if answer is None else json.dumps(answer, ensure_ascii=False) for answer in answers]
        return pa.array(texts, pa.string())


def _like(table: Any, result: QueryResult, answer_format: AnswerFormat) -> Any:
    """The answers in the kind of column that belongs to the kind of table."""
    module = type(table).__module__.split(".")[0]
    if module == "polars":
        import polars

        return polars.Series("answer", _arrow_column(result.answers, answer_format))
    if module in {"pyarrow", "duckdb", "_duckdb"}:
        return _arrow_column(result.answers, answer_format)
    import pandas

    dtype = "Int64" if isinstance(answer_format, IntegerRange) else "object"
    index = table.index if module == "pandas" else None
    return pandas.Series(result.answers, index=index, dtype=dtype, name="answer")

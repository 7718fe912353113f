"""The commands ``sql`` and ``explain`` of the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_relational.cli import errors as cli_errors
from vllm_relational.cli import files as cli_files
from vllm_relational.cli import options as cli_options
from vllm_relational.cli.options import (
    Audit,
    BaseUrl,
    CacheFile,
    Concurrency,
    Dedup,
    EngineArg,
    Model,
    Normalize,
    Retries,
    Seed,
    ServedAs,
    Similar,
    Similarity,
    Timeout,
    Tokenizer,
    Verbose,
)
from vllm_relational.config import DEFAULT_ORDER, DEFAULT_SIMILARITY
from vllm_relational.records import FreeText, RelationalError

Sql = Annotated[str | None, typer.Argument(help="Statements in DuckDB's SQL, with LLM functions.")]
SqlFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the SQL from this file.")]
Database = Annotated[str | None, typer.Option(help="DuckDB database file; default none, for queries over files.")]
Side = Annotated[Path | None, typer.Option(help="Database file that keeps inputs and answers; default in memory.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer of LLM and LLM_AGG in tokens.")]
Optimize = Annotated[bool, typer.Option(help="Rewrite the plan; off to compare.")]
Order = Annotated[str, typer.Option(help="Field and row order of every operator.")]
Rates = Annotated[str | None, typer.Option(help="Engine's tokens a second, PREFILL,DECODE, to forecast seconds.")]
Embedder = Annotated[
    str | None,
    typer.Option(
        help="Embedding model, vllm:NAME for one in vLLM: semantic joins ask about likely pairs only, --dedup semantic "
        "goes by it."
    ),
]
Pairs = Annotated[int, typer.Option(help="With --embedder: likely pairs a row of the first table.")]
Layout = Annotated[
    str | None,
    typer.Option(help="What prompts begin with: question-first or row-first; default by forecast, for each statement."),
]
Prices = Annotated[str | None, typer.Option(help="Dollars a million tokens: INPUT,CACHED,OUTPUT.")]


def sql(
    statement: Sql = None,
    file: SqlFile = None,
    db: Database = None,
    model: Model = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Rows to .csv, .tsv, .parquet or .jsonl; default a table.")
    ] = None,
    side: Side = None,
    max_tokens: MaxTokens = FreeText.max_tokens,
    optimize: Optimize = True,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 32,
    timeout: Timeout = None,
    retries: Retries = None,
    served_as: ServedAs = None,
    order: Order = DEFAULT_ORDER,
    layout: Layout = None,
    dedup: Dedup = "exact",
    normalize: Normalize = None,
    similarity: Similarity = DEFAULT_SIMILARITY,
    similar: Similar = None,
    embedder: Embedder = None,
    candidates: Pairs = 10,
    cache: CacheFile = None,
    audit: Audit = 0,
    seed: Seed = 0,
    rates: Rates = None,
    prices: Prices = None,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
    verbose: Verbose = False,
    overwrite: cli_files.Overwrite = False,
) -> int:
    """Run SQL whose expressions may ask the model: LLM, LLM_FILTER, LLM_CLASSIFY, LLM_SCORE, LLM_EXTRACT, LLM_AGG."""
    _check_installed()
    from vllm_relational.cli import sql_session as command
    from vllm_relational.sql.opened_files import CheckedModel, checking

    text = command.statement_text(statement, file)
    command.check_target(output)
    cli_errors.check_standard_output(output)
    cli_files.check_files(
        reads={"--file": file, **cli_files.files_in_sql(text)},
        outputs={"--output": output},
        stores={"--db": cli_files.database(db), "--side": side, "--cache": cache},
        overwrite=overwrite,
    )
    options = _settings(max_tokens, optimize, order, layout, embedder, candidates)
    options |= _merging(dedup, normalize, similarity, similar, embedder, seed) | {"cache": cache, "audit": audit}
    arguments = cli_options.engine_arguments(engine_arg) | cli_options.server_arguments(timeout, retries, served_as)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, concurrency, arguments)
    try:
        asked = CheckedModel(llm)
        with command.opened(asked, db, side, rates, prices, **options) as connection:
            with checking(asked, connection.duckdb, output):
                command.run_sql(connection, text, output, asked.check)
            if connection.last_run is not None:
                cli_options.say(connection.report())
            return int(len(connection.errors()) > 0)
    except KeyboardInterrupt:
        cli_options.say(command.interrupted(side))
        raise
    finally:
        llm.close()


def explain(
    statement: Sql = None,
    file: SqlFile = None,
    db: Database = None,
    model: Model = None,
    side: Side = None,
    max_tokens: MaxTokens = FreeText.max_tokens,
    optimize: Optimize = True,
    base_url: BaseUrl = None,
    order: Order = DEFAULT_ORDER,
    layout: Layout = None,
    dedup: Dedup = "exact",
    normalize: Normalize = None,
    similarity: Similarity = DEFAULT_SIMILARITY,
    similar: Similar = None,
    embedder: Embedder = None,
    candidates: Pairs = 10,
    seed: Seed = 0,
    rates: Rates = None,
    prices: Prices = None,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
) -> int:
    """Show what a statement would ask, operator by operator, with tokens and cost. Sends nothing to a model."""
    cli_errors.check_standard_output()
    _check_installed()
    from vllm_relational.cli import sql_session as command

    text = command.statement_text(statement, file)
    options = _settings(max_tokens, optimize, order, layout, embedder, candidates)
    options |= _merging(dedup, normalize, similarity, similar, embedder, seed)
    llm = cli_options.make_llm(model, base_url, tokenizer, False, 1, cli_options.engine_arguments(engine_arg))
    with command.opened(llm, db, side, rates, prices, read_only=db is not None, **options) as connection:
        print(command.explained(connection, text))
    return 0


def add_commands(command: Callable[[Callable[..., int]], Any]) -> None:
    """Register both commands."""
    command(sql)
    command(explain)


def _settings(
    max_tokens: int, optimize: bool, order: str, layout: str | None, embedder: str | None, k: int
) -> dict[str, Any]:
    """How every operator asks, as options of ``sql.connect``."""
    asked = {"max_tokens": max_tokens, "optimize": optimize, "order": order, "layout": layout}
    return asked | _candidates(embedder, k)


def _merging(
    mode: str, normalize: list[str] | None, similarity: float, similar: str | None, embedder: str | None, seed: int
) -> dict[str, Any]:
    """Which inputs share an answer, as options of ``sql.connect``: those of ``run``, but for its default embedder."""
    options = cli_options.dedup_options(mode, normalize, similarity, similar, embedder or "")
    if embedder is None:
        del options["embedder"]
    return {**options, "seed": seed}


def _candidates(embedder: str | None, k: int) -> dict[str, Any]:
    if embedder is None:
        return {}
    from vllm_relational.query.embedders import open_embedder
    from vllm_relational.retrieval import nearest_pairs

    if k < 1:
        raise RelationalError(f"--candidates is {k}: ask about 1 pair a row or more")
    return {"candidates": nearest_pairs(open_embedder(embedder)), "candidates_k": k}


def _check_installed() -> None:
    if importlib.util.find_spec("duckdb") is None or importlib.util.find_spec("sqlglot") is None:
        raise RelationalError("SQL needs duckdb and sqlglot: pip install 'vllm-relational[sql]'")

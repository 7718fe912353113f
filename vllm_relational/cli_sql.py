"""The commands ``sql`` and ``explain`` of the command line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_relational import cli_options
from vllm_relational.cli_options import BaseUrl, Concurrency, EngineArg, Model, Tokenizer, Verbose
from vllm_relational.config import DEFAULT_ORDER
from vllm_relational.records import RelationalError

Sql = Annotated[str | None, typer.Argument(help="Statements in DuckDB's SQL, with LLM functions.")]
SqlFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the SQL from this file.")]
Database = Annotated[str | None, typer.Option(help="DuckDB database file; default none, for queries over files.")]
Side = Annotated[Path | None, typer.Option(help="Database file that keeps inputs and answers; default in memory.")]
Rates = Annotated[str | None, typer.Option(help="Engine's tokens a second, PREFILL,DECODE, to forecast seconds.")]
Embedder = Annotated[
    str | None,
    typer.Option(help="Semantic joins ask about likely pairs only, by this embedding model; vllm:NAME for vLLM."),
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
    max_tokens: Annotated[int, typer.Option(help="Longest answer of LLM and LLM_AGG in tokens.")] = 64,
    optimize: Annotated[bool, typer.Option(help="Rewrite the plan; off to compare.")] = True,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 32,
    order: Annotated[str, typer.Option(help="Field and row order of every operator.")] = DEFAULT_ORDER,
    layout: Layout = None,
    embedder: Embedder = None,
    candidates: Pairs = 10,
    rates: Rates = None,
    prices: Prices = None,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
    verbose: Verbose = False,
) -> int:
    """Run SQL whose expressions may ask the model: LLM, LLM_FILTER, LLM_CLASSIFY, LLM_SCORE, LLM_EXTRACT, LLM_AGG."""
    _check_installed()
    from vllm_relational.sql import command

    text = command.statement_text(statement, file)
    command.check_target(output)
    arguments = cli_options.engine_arguments(engine_arg)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, concurrency, arguments)
    options = {"max_tokens": max_tokens, "optimize": optimize, "order": order, "layout": layout}
    options |= _candidates(embedder, candidates)
    try:
        with command.opened(llm, db, side, rates, prices, **options) as connection:
            command.run_sql(connection, text, output)
            if connection.last_run is not None:
                print(connection.report(), file=sys.stderr, flush=True)
            return int(len(connection.errors()) > 0)
    finally:
        llm.close()


def explain(
    statement: Sql = None,
    file: SqlFile = None,
    db: Database = None,
    model: Model = None,
    side: Side = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer of LLM and LLM_AGG in tokens.")] = 64,
    optimize: Annotated[bool, typer.Option(help="Rewrite the plan; off to compare.")] = True,
    base_url: BaseUrl = None,
    order: Annotated[str, typer.Option(help="Field and row order of every operator.")] = DEFAULT_ORDER,
    layout: Layout = None,
    embedder: Embedder = None,
    candidates: Pairs = 10,
    rates: Rates = None,
    prices: Prices = None,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
) -> int:
    """Show what a statement would ask, operator by operator, with tokens and cost. Sends nothing to a model."""
    _check_installed()
    from vllm_relational.sql import command

    text = command.statement_text(statement, file)
    arguments = cli_options.engine_arguments(engine_arg)
    llm = cli_options.make_llm(model, base_url, tokenizer, False, 1, arguments)
    options = {"max_tokens": max_tokens, "optimize": optimize, "order": order, "layout": layout}
    options |= _candidates(embedder, candidates)
    with command.opened(llm, db, side, rates, prices, read_only=db is not None, **options) as connection:
        print(command.explained(connection, text))
    return 0


def add_commands(command: Callable[[Callable[..., int]], Any]) -> None:
    """Register both commands."""
    command(sql)
    command(explain)


def _candidates(embedder: str | None, k: int) -> dict[str, Any]:
    if embedder is None:
        return {}
    from vllm_relational.retrieval import nearest_pairs
    from vllm_relational.retrieving import open_embedder

    if k < 1:
        raise RelationalError(f"--candidates is {k}: ask about 1 pair a row or more")
    return {"candidates": nearest_pairs(open_embedder(embedder)), "candidates_k": k}


def _check_installed() -> None:
    if importlib.util.find_spec("duckdb") is None or importlib.util.find_spec("sqlglot") is None:
        raise RelationalError("SQL needs duckdb and sqlglot: pip install 'vllm-relational[sql]'")

"""The commands ``sql`` and ``explain`` of the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_relational.cli import errors as cli_errors
from vllm_relational.cli import files as cli_files
from vllm_relational.cli import options as cli_options
from vllm_relational.cli.fields import Given, values, with_options
from vllm_relational.cli.options import BaseUrl, EngineArg, Model, Tokenizer, Verbose
from vllm_relational.config.llm import LlmOptions, ServerOptions
from vllm_relational.config.sql import SqlOptions
from vllm_relational.records import RelationalError

Sql = Annotated[str | None, typer.Argument(help="Statements in DuckDB's SQL, with LLM functions.")]
SqlFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the SQL from this file.")]
Database = Annotated[str | None, typer.Option(help="DuckDB database file; default none, for queries over files.")]
Side = Annotated[Path | None, typer.Option(help="Database file that keeps inputs and answers; default in memory.")]


@with_options(SqlOptions, ServerOptions, LlmOptions)
def sql(
    statement: Sql = None,
    *,
    file: SqlFile = None,
    db: Database = None,
    model: Model = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Rows to .csv, .tsv, .parquet or .jsonl; default a table.")
    ] = None,
    side: Side = None,
    asking: Given,
    base_url: BaseUrl = None,
    server: Given,
    planning: Given,
    merging: Given,
    keeping: Given,
    pricing: Given,
    contexts: Given,
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
        stores={"--db": cli_files.database(db), "--side": side, "--cache": keeping["cache"]},
        overwrite=overwrite,
    )
    options = _settings({**asking, **planning, **merging, **keeping, **pricing})
    arguments = cli_options.engine_arguments(engine_arg) | values(server, ServerOptions)
    arguments |= values(contexts, LlmOptions)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, arguments)
    try:
        asked = CheckedModel(llm)
        with command.opened(asked, db, side, **options) as connection:
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


@with_options(SqlOptions)
def explain(
    statement: Sql = None,
    *,
    file: SqlFile = None,
    db: Database = None,
    model: Model = None,
    side: Side = None,
    asking: Given,
    base_url: BaseUrl = None,
    planning: Given,
    merging: Given,
    keeping: Given,
    pricing: Given,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
) -> int:
    """Show what a statement would ask, operator by operator, with tokens and cost. Sends nothing to a model."""
    cli_errors.check_standard_output()
    _check_installed()
    from vllm_relational.cli import sql_session as command

    text = command.statement_text(statement, file)
    options = _settings({**asking, **planning, **merging, **keeping, **pricing})
    llm = cli_options.make_llm(model, base_url, tokenizer, False, cli_options.engine_arguments(engine_arg))
    with command.opened(llm, db, side, read_only=db is not None, **options) as connection:
        print(command.explained(connection, text))
    return 0


def add_commands(command: Callable[[Callable[..., int]], Any]) -> None:
    """Register both commands."""
    command(sql)
    command(explain)


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """How every operator asks, as options of ``sql.connect``. An embedder also narrows semantic joins."""
    from vllm_relational.cli import sql_session as command

    options = values(given, SqlOptions)
    if "embedder" in options:
        options["candidates"] = _candidates(options["embedder"], options["candidates_k"])
    return options | command.pricing(given["rates"], given["prices"])


def _candidates(embedder: str, k: int) -> Any:
    from vllm_relational.query.embedders import open_embedder
    from vllm_relational.retrieval import nearest_pairs

    if k < 1:
        raise RelationalError(f"--candidates is {k}: ask about 1 pair a row or more")
    return nearest_pairs(open_embedder(embedder))


def _check_installed() -> None:
    if importlib.util.find_spec("duckdb") is None or importlib.util.find_spec("sqlglot") is None:
        raise RelationalError("SQL needs duckdb and sqlglot: pip install 'vllm-relational[sql]'")

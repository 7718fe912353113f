"""The command ``run``: one question of every row of a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_relational.cli import errors as cli_errors
from vllm_relational.cli import files as cli_files
from vllm_relational.cli import options as cli_options
from vllm_relational.cli import output as cli_output
from vllm_relational.cli import resume as cli_resume
from vllm_relational.cli import retrieval as cli_retrieval
from vllm_relational.cli.fields import Given, values, with_options
from vllm_relational.cli.options import (
    BaseUrl,
    EngineArg,
    Eviction,
    Limit,
    Model,
    Output,
    Prompt,
    Report,
    Table,
    TokenExact,
    Tokenizer,
    Verbose,
)
from vllm_relational.cli.resume import is_complete
from vllm_relational.config import QueryOptions
from vllm_relational.config.llm import ServerOptions
from vllm_relational.records import RelationalError

if TYPE_CHECKING:
    from vllm_relational.query.job_record import EarlierOutput

# Options of a run that a plan, which asks nothing and keeps nothing, does without.
OF_RUNS = ("on_error", "resume", "checkpoint", "cache")


@with_options(QueryOptions, ServerOptions)
def run(
    table: Table,
    prompt: Prompt,
    *,
    model: Model = None,
    output: Output = None,
    answers: Given,
    base_url: BaseUrl = None,
    server: Given,
    prompts: Given,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and forecast; start no engine.")] = False,
    capacity: Annotated[int | None, typer.Option(help="With --dry-run: KV cache in tokens; default: no limit.")] = None,
    eviction: Eviction = None,
    token_exact: TokenExact = False,
    report: Report = None,
    answer_column: Annotated[str, typer.Option(help="Column for the answers.")] = "answer",
    error_column: Annotated[str, typer.Option(help="Column for the reasons of failed rows.")] = "error",
    status_column: Annotated[
        str, typer.Option(help="Column that says of each row: ok, cut (text stopped at --max-tokens), failed.")
    ] = "status",
    merging: Given,
    explain_dedup: Annotated[
        str | None,
        typer.Option(
            help="Add this column, the number of the row whose answer it is (from 0), and NAME_how: asked, resumed, "
            "cached, exact, normalized, semantic, failed."
        ),
    ] = None,
    keeping: Given,
    limit: Limit = None,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
    verbose: Verbose = False,
    retrieve: Annotated[
        str | None, typer.Option(help="Column of questions: adds context_1 to context_k from --index first.")
    ] = None,
    index: Annotated[Path | None, typer.Option(help="With --retrieve: made with the command index.")] = None,
    passages: Annotated[int, typer.Option("-k", min=1, help="With --retrieve: passages a question.")] = 5,
    overwrite: cli_files.Overwrite = False,
) -> int:
    """Ask one question of every row of TABLE."""
    cli_output.check_names(
        {"--answer-column": answer_column, "--error-column": error_column, "--status-column": status_column}
        | {"--explain-dedup": explain_dedup}
    )
    resume, checkpoint = prompts["resume"], prompts["checkpoint"] or cli_files.default_checkpoint(output)
    cli_files.check_files(
        reads={"TABLE": table, "--schema": answers["schema"], **cli_retrieval.index_files(index)},
        outputs={"--output": None if dry_run else output},
        stores={"--checkpoint": None if dry_run else checkpoint, "--cache": keeping["cache"]},
        pages={"--report": report},
        overwrite=overwrite,
        outputs_by_job=True,
    )
    earlier = cli_resume.earlier_output(None if dry_run else output, resume, overwrite)
    there = cli_resume.stamp(output)
    data = cli_options.read_rows(table, limit)
    options = values({**answers, **prompts, **merging, **keeping}, QueryOptions)
    planned = {name: value for name, value in options.items() if name not in OF_RUNS}
    arguments = cli_options.engine_arguments(engine_arg) | values(server, ServerOptions)
    scheduler = cli_options.scheduler_settings(eviction, token_exact)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, arguments, scheduler)
    cli_output.check_page(report)
    origins = (explain_dedup, f"{explain_dedup}_how") if explain_dedup is not None else ()
    new_columns = [answer_column, error_column, status_column, *origins]
    cli_output.check_result_place(data, None if dry_run else output, *new_columns)
    if not dry_run:
        cli_errors.check_standard_output(output)
    if capacity is not None and not dry_run:
        raise RelationalError("--capacity is for --dry-run: a running engine has a KV cache of its own size")
    if retrieve is not None or index is not None:
        data = cli_retrieval.retrieved(data, prompt, retrieve, index, passages)
        cli_output.check_result_place(data, None, *new_columns)
    if dry_run:
        info = cli_options.with_capacity(llm.expected_engine(), capacity)
        return cli_output.finish(llm.plan(data, prompt, info, **planned), report)
    finished: EarlierOutput | None = None
    if earlier is not None and not options["audit"] and is_complete(earlier, llm, model, data, prompt, planned):
        finished, llm = earlier, llm.without_engine(str(earlier.job.get("model")))
    options |= {"checkpoint": checkpoint, "progress": True}
    options |= {"checkpoint": None, "resume": False, "cache": None} if finished else {}
    try:
        result = llm.run(data, prompt, earlier=earlier, **options)
        answered = cli_output.with_answers(data, result, options, answer_column, error_column, status_column)
        answered = cli_output.with_origins(answered, result, *origins)
        if not overwrite:
            cli_resume.check_unchanged(output, there, None if finished else checkpoint)
        same = not cli_resume.write(answered, output, result.job, answer_column, status_column, bool(finished))
        if finished:
            cli_resume.drop_checkpoint(checkpoint, finished)
            cli_options.say(cli_resume.complete_message(output, same))
            return cli_output.write_report(result.report, report)
        cli_resume.settle_checkpoint(checkpoint, output, result)
        return cli_output.finish(result.report, report)
    except KeyboardInterrupt:
        cli_resume.say_interrupted(checkpoint)
        raise
    finally:
        llm.close()


def add_commands(command: Callable[[Callable[..., int]], Any]) -> None:
    """Register the command."""
    command(run)

"""The command ``run``: one question of every row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from vllm_relational.cli.files import default_checkpoint
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
from vllm_relational.cli.output import ResultColumns
from vllm_relational.cli.resume import OutputPlace, is_complete
from vllm_relational.config import QueryOptions
from vllm_relational.config.llm import LlmOptions, ServerOptions
from vllm_relational.records import QueryResult, RelationalError

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_relational.llm import RelationalLLM
    from vllm_relational.query.job_record import EarlierOutput

# Options of a run that a plan, which asks nothing and keeps nothing, does without.
OF_RUNS = ("on_error", "resume", "checkpoint", "cache")


@dataclass(frozen=True)
class TableQuery:
    """What is asked of whom. model: as the user named it; None where the engine's own is meant."""

    llm: RelationalLLM
    model: str | None
    data: pa.Table
    prompt: str
    options: Mapping[str, Any]

    @property
    def planned(self) -> dict[str, Any]:
        """The options of a plan."""
        return {name: value for name, value in self.options.items() if name not in OF_RUNS}

    def answered_by(self, earlier: EarlierOutput | None) -> EarlierOutput | None:
        """The earlier output if it leaves nothing to ask: then no engine is needed. An audit always asks."""
        if earlier is None or self.options["audit"]:
            return None
        complete = is_complete(earlier, self.llm, self.model, self.data, self.prompt, self.planned)
        return earlier if complete else None


@with_options(QueryOptions, ServerOptions, LlmOptions)
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
    contexts: Given,
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
    columns = ResultColumns(answer_column, error_column, status_column, explain_dedup)
    columns.check_names()
    output, checkpoint = (None, None) if dry_run else (output, prompts["checkpoint"] or default_checkpoint(output))
    cli_files.check_files(
        reads={"TABLE": table, "--schema": answers["schema"], **cli_retrieval.index_files(index)},
        outputs={"--output": output},
        stores={"--checkpoint": checkpoint, "--cache": keeping["cache"]},
        pages={"--report": report},
        overwrite=overwrite,
        outputs_by_job=True,
    )
    place = OutputPlace.find(output, checkpoint, prompts["resume"], overwrite)
    data = cli_options.read_rows(table, limit)
    options = values({**answers, **prompts, **merging, **keeping}, QueryOptions)
    arguments = cli_options.engine_arguments(engine_arg) | values(server, ServerOptions)
    arguments |= values(contexts, LlmOptions)
    scheduler = cli_options.scheduler_settings(eviction, token_exact)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, arguments, scheduler)
    _check_results(data, columns, output, report, dry_run)
    _check_capacity(capacity, dry_run)
    if retrieve is not None or index is not None:
        data = cli_retrieval.retrieved(data, prompt, retrieve, index, passages)
        columns.check_free(data)
    query = TableQuery(llm, model, data, prompt, options)
    return _forecast(query, capacity, report) if dry_run else _ask(query, place, columns, report)


def _check_results(data: pa.Table, columns: ResultColumns, output: Path | None, report: Path | None, dry: bool) -> None:
    """Before anything is asked: can the answers and the report be written?"""
    cli_output.check_page(report)
    columns.check_free(data)
    cli_output.check_file(output)
    if not dry:
        cli_errors.check_standard_output(output)


def _check_capacity(capacity: int | None, dry_run: bool) -> None:
    if capacity is not None and not dry_run:
        raise RelationalError("--capacity is for --dry-run: a running engine has a KV cache of its own size")


def _forecast(query: TableQuery, capacity: int | None, report: Path | None) -> int:
    """Plan, show what the run would take, and return the exit status. Starts no engine."""
    info = cli_options.with_capacity(query.llm.expected_engine(), capacity)
    return cli_output.finish(query.llm.plan(query.data, query.prompt, info, **query.planned), report)


def _ask(query: TableQuery, place: OutputPlace, columns: ResultColumns, report: Path | None) -> int:
    """Ask what the output does not answer yet, write the answers, and return the exit status."""
    finished = query.answered_by(place.earlier)
    llm = query.llm.without_engine(str(finished.job.get("model"))) if finished else query.llm
    keeping = {"checkpoint": None, "resume": False, "cache": None} if finished else {"checkpoint": place.checkpoint}
    options = {**query.options, "progress": True, **keeping}
    try:
        result = llm.run(query.data, query.prompt, earlier=place.earlier, **options)
        answered = columns.added_to(query.data, result, options)
        return _write(answered, result, columns, finished, place, report)
    except KeyboardInterrupt:
        cli_resume.say_interrupted(place.checkpoint)
        raise
    finally:
        llm.close()


def _write(
    answered: pa.Table,
    result: QueryResult,
    columns: ResultColumns,
    finished: EarlierOutput | None,
    place: OutputPlace,
    report: Path | None,
) -> int:
    """The output, then the report; the checkpoint goes once it is not needed. Returns the exit status.

    finished: the output that was there, if it answered every row.
    """
    place.check_unchanged(answers_kept=finished is None)
    written = cli_resume.write(answered, place.output, result.job, columns.answer, columns.status, finished is not None)
    if finished:
        cli_resume.drop_checkpoint(place.checkpoint, finished)
        cli_options.say(cli_resume.complete_message(place.output, same=not written))
        return cli_output.write_report(result.report, report)
    cli_resume.settle_checkpoint(place.checkpoint, place.output, result)
    return cli_output.finish(result.report, report)


def add_commands(command: Callable[[Callable[..., int]], Any]) -> None:
    """Register the command."""
    command(run)

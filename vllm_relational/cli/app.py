"""``vllm-relational``: the command line.

Exit status: 0 every row answered, 1 some rows failed, 2 could not run, 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_relational.cli import errors as cli_errors
from vllm_relational.cli import files as cli_files
from vllm_relational.cli import options as cli_options
from vllm_relational.cli import output as cli_output
from vllm_relational.cli import resume as cli_resume
from vllm_relational.cli import retrieval as cli_retrieval
from vllm_relational.cli import sql as cli_sql
from vllm_relational.cli.errors import COULD_NOT_RUN, OK, SOME_ROWS_FAILED
from vllm_relational.cli.options import (
    Audit,
    BaseUrl,
    CacheFile,
    Concurrency,
    Dedup,
    EmbedderName,
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
from vllm_relational.config import (
    DEFAULT_EMBEDDER,
    DEFAULT_ORDER,
    DEFAULT_SIMILARITY,
    DEFAULT_SYSTEM_PROMPT,
    QUESTION_FIRST,
    current_order,
)
from vllm_relational.records import RelationalError, RunReport

COLUMNS = ("answer", "error", "status")  # that are added to a table, by default

app = typer.Typer(
    cls=cli_errors.OneLineErrors,
    help="LLM questions over tables, as fast as the hardware allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Table = Annotated[Path, typer.Argument(help="Parquet, CSV, TSV, JSON lines or Arrow file.")]
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="Question per row: {column}, {*} for all, {{ for a brace.")]
Choices = Annotated[str | None, typer.Option(help="Labels to choose from: yes,no or a JSON list.")]
Range = Annotated[str | None, typer.Option("--range", help="Answer with a whole number: 1,5.")]
Schema = Annotated[Path | None, typer.Option(help="JSON schema file that every answer follows.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(help="Longest answer in tokens, thought included: text 64, JSON 256."),
]
SystemPrompt = Annotated[str, typer.Option(help="First message of every prompt; '' for none.", show_default=False)]
Pin = Annotated[str | None, typer.Option(help="Columns that keep their original position: a,b.")]
KeepOrder = Annotated[
    list[str] | None, typer.Option(help="Columns that keep their original order among themselves: a,b. Repeatable.")
]
Weight = Annotated[
    list[str] | None, typer.Option(help="COLUMN=NUMBER: how much its tokens count in planning; 1 by default.")
]
Layout = Annotated[str, typer.Option(help="What a prompt begins with: question-first or row-first.")]
Nulls = Annotated[str, typer.Option(help="error: a null in a used column fails the row; keep: the model sees null.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N rows.")]
Report = Annotated[Path | None, typer.Option(help="Also write the report as a file: .json, else one HTML page.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Answered table: .parquet, .csv, .jsonl, .arrow; default JSON lines on stdout."
    ),
]
Eviction = Annotated[
    str | None, typer.Option(help="Which cached block vLLM gives up first: lru (default, its own), fifo, batch.")
]
TokenExact = Annotated[bool, typer.Option("--token-exact", help="Reuse prefixes to the token, not the block.")]


def _command(function: Callable[..., int], **settings: Any) -> Callable[..., None]:
    """Register a command: its errors become one line, its return value the exit status. settings: typer's."""
    wrapped = cli_errors.guarded(function)
    app.command(**settings)(wrapped)
    return wrapped


@_command
def run(
    table: Table,
    prompt: Prompt,
    model: Model = None,
    output: Output = None,
    choices: Choices = None,
    bounds: Range = None,
    schema: Schema = None,
    max_tokens: MaxTokens = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 32,
    timeout: Timeout = None,
    retries: Retries = None,
    served_as: ServedAs = None,
    order: Annotated[
        str, typer.Option(help="Field and row order: tree, fixed, fixed_v2, ggr, original.")
    ] = DEFAULT_ORDER,
    pin: Pin = None,
    keep_order: KeepOrder = None,
    weight: Weight = None,
    system_prompt: SystemPrompt = DEFAULT_SYSTEM_PROMPT,
    nulls: Nulls = "error",
    layout: Layout = QUESTION_FIRST,
    on_error: Annotated[str, typer.Option(help="null: a failed row gets a reason; raise: stop at the first.")] = "null",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: OUTPUT.checkpoint.jsonl.")] = None,
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
    dedup: Dedup = "exact",
    normalize: Normalize = None,
    similarity: Similarity = DEFAULT_SIMILARITY,
    similar: Similar = None,
    embedder: EmbedderName = DEFAULT_EMBEDDER,
    explain_dedup: Annotated[
        str | None,
        typer.Option(
            help="Add this column, the number of the row whose answer it is (from 0), and NAME_how: asked, resumed, "
            "cached, exact, normalized, semantic, failed."
        ),
    ] = None,
    cache: CacheFile = None,
    audit: Audit = 0,
    seed: Seed = 0,
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
    checkpoint = checkpoint or cli_files.default_checkpoint(output)
    cli_files.check_files(
        reads={"TABLE": table, "--schema": schema, **cli_retrieval.index_files(index)},
        outputs={"--output": None if dry_run else output},
        stores={"--checkpoint": None if dry_run else checkpoint, "--cache": cache},
        pages={"--report": report},
        overwrite=overwrite,
        outputs_by_job=True,
    )
    earlier = cli_resume.earlier_output(None if dry_run else output, resume, overwrite)
    there = cli_resume.stamp(output)
    data = cli_options.read_rows(table, limit)
    options = cli_options.query_options(
        choices, bounds, schema, max_tokens, pin, keep_order, weight, system_prompt, nulls, layout
    )
    options |= cli_options.dedup_options(dedup, normalize, similarity, similar, embedder)
    arguments = cli_options.engine_arguments(engine_arg) | cli_options.server_arguments(timeout, retries, served_as)
    scheduler = cli_options.scheduler_settings(eviction, token_exact)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, concurrency, arguments, scheduler)
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
    finished = None
    if dry_run:
        info = cli_options.with_capacity(llm.expected_engine(), capacity)
        return _finish(llm.plan(data, prompt, info, order=order, audit=audit, seed=seed, **options), report)
    if earlier is not None and not audit and cli_resume.is_complete(earlier, llm, model, data, prompt, options):
        finished, llm = earlier, llm.without_engine(str(earlier.job.get("model")))
    try:
        result = llm.run(
            data,
            prompt,
            order=order,
            on_error=on_error,
            checkpoint=None if finished else checkpoint,
            resume=resume and not finished,
            progress=True,
            cache=None if finished else cache,
            audit=audit,
            seed=seed,
            earlier=earlier,
            **options,
        )
        answered = cli_output.with_answers(data, result, options, answer_column, error_column, status_column)
        answered = cli_output.with_origins(answered, result, *origins)
        if not overwrite:
            cli_resume.check_unchanged(output, there, None if finished else checkpoint)
        same = not cli_resume.write(answered, output, result.job, answer_column, status_column, bool(finished))
        if finished:
            cli_resume.drop_checkpoint(checkpoint, finished)
            _say(cli_resume.complete_message(output, same))
            return _write_report(result.report, report)
        cli_resume.settle_checkpoint(checkpoint, output, result)
        return _finish(result.report, report)
    except KeyboardInterrupt:
        cli_resume.say_interrupted(checkpoint)
        raise
    finally:
        llm.close()


@_command
def bench(
    table: Table,
    prompt: Prompt,
    model: Model = None,
    orders: Annotated[str, typer.Option(help="Orders to compare, each from a cold cache.")] = "original,fixed,tree",
    output: Output = None,
    choices: Choices = None,
    bounds: Range = None,
    schema: Schema = None,
    max_tokens: MaxTokens = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 32,
    timeout: Timeout = None,
    retries: Retries = None,
    served_as: ServedAs = None,
    pin: Pin = None,
    keep_order: KeepOrder = None,
    weight: Weight = None,
    system_prompt: SystemPrompt = DEFAULT_SYSTEM_PROMPT,
    nulls: Nulls = "error",
    layout: Layout = QUESTION_FIRST,
    report: Report = None,
    csv: Annotated[Path | None, typer.Option(help="Append one line an order to this CSV file.")] = None,
    budget: Annotated[float | None, typer.Option(help="Ask only as many rows as fit into these seconds.")] = None,
    limit: Limit = None,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
    verbose: Verbose = False,
    overwrite: cli_files.Overwrite = False,
) -> int:
    """Ask the same question in several orders on one engine; compare time, cache hits and answers."""
    from vllm_relational.compare.orders import FIELDS, compare_orders, rows_within

    cli_files.check_files(
        reads={"TABLE": table, "--schema": schema},
        outputs={"--output": output},
        stores={"--csv": csv},
        pages={"--report": report},
        overwrite=overwrite,
    )
    data = cli_options.read_rows(table, limit)
    options = cli_options.query_options(
        choices, bounds, schema, max_tokens, pin, keep_order, weight, system_prompt, nulls, layout
    )
    arguments = cli_options.engine_arguments(engine_arg) | cli_options.server_arguments(timeout, retries, served_as)
    cli_output.check_result_place(data, output, *COLUMNS)
    cli_output.check_page(report)
    cli_output.check_csv(csv, FIELDS)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, concurrency, arguments)
    try:
        names = [current_order(name) for name in cli_options.parse_list(orders, "--orders")]
        if budget is not None:
            rows = rows_within(llm, data, prompt, names, options, budget)
            _say(f"{rows} of {data.num_rows} rows fit into {budget:.0f} s on this machine")
            data = data.slice(0, rows)
        comparison = compare_orders(llm, data, prompt, names, options)
    finally:
        llm.close()
    last = comparison.results[-1]
    if output is not None:
        cli_output.write(cli_output.with_answers(data, last, options, *COLUMNS), output)
    status = _finish(last.report, report)
    _say(comparison.render())
    if csv is not None:
        comparison.append_csv(csv, str(table))
    return status


@_command
def plan(
    table: Table,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Question per row; default: all columns.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Instead of a prompt: the columns to send, a,b.")] = None,
    planners: Annotated[
        str, typer.Option("--planner", help="Planners to compare.")
    ] = "original,fixed,fixed_v2,ggr,tree",
    model: Model = None,
    tokenizer: Tokenizer = None,
    pin: Pin = None,
    keep_order: KeepOrder = None,
    weight: Weight = None,
    capacity: Annotated[int | None, typer.Option(help="KV cache in tokens; default without limit.")] = None,
    layout: Layout = QUESTION_FIRST,
    limit: Limit = None,
    budget: Annotated[float | None, typer.Option(help="Seconds of search for tree; default by table size.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a planner on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also draw the best plan's prefix tree as one HTML file.")] = None,
    dedup: Dedup = "exact",
    normalize: Normalize = None,
    similarity: Similarity = DEFAULT_SIMILARITY,
    similar: Similar = None,
    embedder: EmbedderName = DEFAULT_EMBEDDER,
    overwrite: cli_files.Overwrite = False,
) -> int:
    """Compare planners on TABLE: what each would serve from the KV cache, and why. Starts no engine."""
    cli_errors.check_standard_output()
    import dataclasses

    from vllm_relational.compare.planners import compare_planners, template_of

    if prompt is not None and columns is not None:
        raise RelationalError("--prompt and --columns exclude each other: give one")
    cli_files.check_files(reads={"TABLE": table}, pages={"--html": html}, overwrite=overwrite)
    cli_output.check_page(html, "plotly")
    data = cli_options.read_rows(table, limit)
    llm = cli_options.make_llm(model, None, tokenizer, False, 1, {})
    question = prompt or template_of(cli_options.parse_list(columns, "--columns") if columns else None)
    info = dataclasses.replace(cli_options.with_capacity(llm.expected_engine(), capacity), max_model_len=None)
    options = {**cli_options.order_options(pin, keep_order, weight), "nulls": "keep", "layout": layout}
    options |= cli_options.dedup_options(dedup, normalize, similarity, similar, embedder)
    names = [current_order(name) for name in cli_options.parse_list(planners, "--planner")]
    comparison = compare_planners(llm, data, question, names, options, info, budget)
    if as_json:
        for summary in comparison.summaries:
            print(json.dumps(dataclasses.asdict(summary), ensure_ascii=False))
    else:
        from vllm_relational.compare.planners_text import render

        print(render(comparison))
    if html is not None:
        from vllm_relational.compare.planners_html import write_page

        write_page(comparison, table.name, html)
        _say(f"prefix tree: {html}")
    return OK


@_command
def cache(
    file: Annotated[Path, typer.Argument(help="File of a run with --cache.")],
    clear: Annotated[bool, typer.Option("--clear", help="Drop the answers and shrink the file.")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="With --clear: only those of this model.")] = None,
) -> int:
    """Show what the result cache FILE holds, or clear it. Starts no engine."""
    from vllm_relational.results.cache import AnswerCache

    if not file.is_file():
        raise RelationalError(f"there is no file {file}")
    answers = AnswerCache(file)
    try:
        if clear:
            print(f"{answers.clear(model):,} answers dropped")
        for name, entries, characters in answers.sizes():
            print(f"{name}: {entries:,} answers, {characters:,} characters")
        print(f"{file.stat().st_size:,} bytes")
    finally:
        answers.close()
    return OK


@functools.partial(_command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    eviction: Eviction = None,
    order: Annotated[
        str | None, typer.Option(help="Order of a deep queue: prefix-tree (default) or arrival, as vLLM.")
    ] = None,
    deep_queue: Annotated[int | None, typer.Option(help="Waiting requests that make a deep queue: 64.")] = None,
    max_age: Annotated[
        float | None,
        typer.Option(help="A request is overtaken only by those that come at most so many seconds later: 30."),
    ] = None,
    token_exact: TokenExact = False,
    attention: Annotated[
        str | None, typer.Option(help="dipr: decode long contexts by sparse attention (docs/dipr.md); default: vLLM's.")
    ] = None,
    dipr: Annotated[
        list[str] | None, typer.Option(help="With --attention dipr: NAME=VALUE of its settings, e.g. alpha=0.001.")
    ] = None,
) -> int:
    """Start vLLM's OpenAI-compatible server with our scheduler. Further arguments are those of vllm serve."""
    from vllm_relational.engine.server import prepare_server, serve_command

    settings = cli_options.scheduler_settings(eviction, token_exact, order, deep_queue, max_age)
    sparse = cli_options.engine_arguments(dipr, "--dipr")
    command, warning = serve_command(model, settings, context.args, attention, sparse)
    if warning:
        _say(f"warning: {warning}")
    prepare_server()
    os.execv(command[0], command)


_command(cli_retrieval.index)
_command(cli_retrieval.retrieve)
cli_sql.add_commands(_command)


def _finish(report: RunReport, page: Path | None) -> int:
    from vllm_relational.results.report_text import render_text

    _say(render_text(report))
    return _write_report(report, page)


def _write_report(report: RunReport, page: Path | None) -> int:
    """Where one is wanted; returns the exit status."""
    problem = cli_output.write_report(report, page) if page is not None else None
    if page is not None:
        _say(f"error: the report could not be written to {page}: {problem}" if problem else f"report: {page}")
    return COULD_NOT_RUN if problem else SOME_ROWS_FAILED if report.num_failed else OK


_say = cli_options.say


def main() -> None:
    """Entry point of the console script."""
    sys.exit(cli_errors.run_program(app))


if __name__ == "__main__":
    main()

"""``vllm-relational``: the command line.

Exit status: 0 every row answered, 1 some rows failed, 2 could not run, 130 interrupted.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_relational import cli_options, cli_sql
from vllm_relational.cli_options import BaseUrl, Concurrency, EngineArg, Model, Tokenizer, Verbose
from vllm_relational.config import DEFAULT_ORDER, DEFAULT_SYSTEM_PROMPT
from vllm_relational.records import QueryResult, RelationalError, RunReport

if TYPE_CHECKING:
    import pyarrow as pa

OK, SOME_ROWS_FAILED, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
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
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens: text 64, JSON 256 by default.")]
SystemPrompt = Annotated[str, typer.Option(help="First message of every prompt; '' for none.", show_default=False)]
Pin = Annotated[str | None, typer.Option(help="Columns that keep their published position: a,b.")]
KeepOrder = Annotated[
    list[str] | None, typer.Option(help="Columns that keep their published order among themselves: a,b. Repeatable.")
]
Weight = Annotated[
    list[str] | None, typer.Option(help="COLUMN=NUMBER: how much its tokens count in planning; 1 by default.")
]
Nulls = Annotated[str, typer.Option(help="error: a null in a used column fails the row; keep: the model sees null.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N rows.")]
Report = Annotated[Path | None, typer.Option(help="Also write the report as one HTML file.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Answered table: .parquet, .csv, .jsonl, .arrow; default JSON lines on stdout."
    ),
]


def _command(function: Callable[..., int], **settings: Any) -> Callable[..., None]:
    """Register a command: its errors become one line, its return value the exit status. settings: typer's."""

    @functools.wraps(function)
    def wrapped(**arguments: Any) -> None:
        try:
            raise typer.Exit(function(**arguments))
        except RelationalError as error:
            _say(f"error: {str(error).splitlines()[0]}")  # errors of SQL show the place on further lines
            raise typer.Exit(COULD_NOT_RUN) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output went away: nothing left to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(COULD_NOT_RUN) from None
        except OSError as error:
            _say(f"error: {error}")
            raise typer.Exit(COULD_NOT_RUN) from None

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
    order: Annotated[
        str, typer.Option(help="Field and row order: tree, fixed, fixed_v2, ggr, published.")
    ] = DEFAULT_ORDER,
    pin: Pin = None,
    keep_order: KeepOrder = None,
    weight: Weight = None,
    system_prompt: SystemPrompt = DEFAULT_SYSTEM_PROMPT,
    nulls: Nulls = "error",
    on_error: Annotated[str, typer.Option(help="null: a failed row gets a reason; raise: stop at the first.")] = "null",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: OUTPUT.checkpoint.jsonl.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and forecast; start no engine.")] = False,
    report: Report = None,
    answer_column: Annotated[str, typer.Option(help="Column for the answers.")] = "answer",
    error_column: Annotated[str, typer.Option(help="Column for the reasons of failed rows.")] = "error",
    limit: Limit = None,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
    verbose: Verbose = False,
) -> int:
    """Ask one question of every row of TABLE."""
    data = cli_options.read_rows(table, limit)
    options = cli_options.query_options(
        choices, bounds, schema, max_tokens, pin, keep_order, weight, system_prompt, nulls
    )
    arguments = cli_options.engine_arguments(engine_arg)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, concurrency, arguments)
    _check_page(report)
    if dry_run:
        return _finish(llm.plan(data, prompt, order=order, **options), report)
    _check_result_place(data, output, answer_column, error_column)
    checkpoint = checkpoint or _default_checkpoint(output)
    if resume and output is not None and output.exists() and checkpoint is not None and not checkpoint.exists():
        _say(f"nothing to resume: {output} is complete; to ask again, run without --resume")
        return OK
    try:
        result = llm.run(
            data,
            prompt,
            order=order,
            on_error=on_error,
            checkpoint=checkpoint,
            resume=resume,
            progress=True,
            **options,
        )
        _write(_with_answers(data, result, options, answer_column, error_column), output)
        _settle_checkpoint(checkpoint, output, result)
        return _finish(result.report, report)
    except KeyboardInterrupt:
        _say_interrupted(checkpoint)
        raise
    finally:
        llm.close()


@_command
def bench(
    table: Table,
    prompt: Prompt,
    model: Model = None,
    orders: Annotated[str, typer.Option(help="Orders to compare, each from a cold cache.")] = "published,fixed,tree",
    output: Output = None,
    choices: Choices = None,
    bounds: Range = None,
    schema: Schema = None,
    max_tokens: MaxTokens = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 32,
    pin: Pin = None,
    keep_order: KeepOrder = None,
    weight: Weight = None,
    system_prompt: SystemPrompt = DEFAULT_SYSTEM_PROMPT,
    nulls: Nulls = "error",
    report: Report = None,
    csv: Annotated[Path | None, typer.Option(help="Append one line an order to this CSV file.")] = None,
    budget: Annotated[float | None, typer.Option(help="Ask only as many rows as fit into these seconds.")] = None,
    limit: Limit = None,
    tokenizer: Tokenizer = None,
    engine_arg: EngineArg = None,
    verbose: Verbose = False,
) -> int:
    """Ask the same question in several orders on one engine; compare time, cache hits and answers."""
    from vllm_relational.bench import compare_orders, rows_within

    data = cli_options.read_rows(table, limit)
    options = cli_options.query_options(
        choices, bounds, schema, max_tokens, pin, keep_order, weight, system_prompt, nulls
    )
    arguments = cli_options.engine_arguments(engine_arg)
    _check_result_place(data, output, "answer", "error")
    _check_page(report)
    _check_folder(csv)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, concurrency, arguments)
    try:
        names = cli_options.parse_list(orders, "--orders")
        if budget is not None:
            rows = rows_within(llm, data, prompt, names, options, budget)
            _say(f"{rows} of {data.num_rows} rows fit into {budget:.0f} s on this machine")
            data = data.slice(0, rows)
        comparison = compare_orders(llm, data, prompt, names, options)
    finally:
        llm.close()
    last = comparison.results[-1]
    if output is not None:
        _write(_with_answers(data, last, options, "answer", "error"), output)
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
    ] = "published,fixed,fixed_v2,ggr,tree",
    model: Model = None,
    tokenizer: Tokenizer = None,
    pin: Pin = None,
    keep_order: KeepOrder = None,
    weight: Weight = None,
    capacity: Annotated[int | None, typer.Option(help="KV cache in tokens; default without limit.")] = None,
    limit: Limit = None,
    budget: Annotated[float | None, typer.Option(help="Seconds of search for tree; default by table size.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a planner on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also draw the best plan's prefix tree as one HTML file.")] = None,
) -> int:
    """Compare planners on TABLE: what each would serve from the KV cache, and why. Starts no engine."""
    import dataclasses

    from vllm_relational.planning import compare_planners, template_of

    if prompt is not None and columns is not None:
        raise RelationalError("--prompt and --columns exclude each other: give one")
    _check_page(html, "plotly")
    data = cli_options.read_rows(table, limit)
    llm = cli_options.make_llm(model, None, tokenizer, False, 1, {})
    question = prompt or template_of(cli_options.parse_list(columns, "--columns") if columns else None)
    info = dataclasses.replace(llm.expected_engine(), kv_cache_tokens=capacity, max_model_len=None)
    if capacity is not None and capacity < info.block_size:
        raise RelationalError(f"--capacity is {capacity}: a cache holds a block of {info.block_size} tokens or more")
    options = {**cli_options.order_options(pin, keep_order, weight), "nulls": "keep"}
    names = cli_options.parse_list(planners, "--planner")
    comparison = compare_planners(llm, data, question, names, options, info, budget)
    if as_json:
        for summary in comparison.summaries:
            print(json.dumps(dataclasses.asdict(summary), ensure_ascii=False))
    else:
        from vllm_relational.planning_text import render

        print(render(comparison))
    if html is not None:
        from vllm_relational.planning_html import write_page

        write_page(comparison, table.name, html)
        _say(f"prefix tree: {html}")
    return OK


@functools.partial(_command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    eviction: Annotated[
        str | None, typer.Option(help="Which cached block goes first: lru (default, as vLLM), fifo, batch.")
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="Order of a deep queue: prefix-tree (default) or arrival, as vLLM.")
    ] = None,
    deep_queue: Annotated[int | None, typer.Option(help="Waiting requests that make a deep queue: 64.")] = None,
    max_age: Annotated[
        float | None,
        typer.Option(help="A request is overtaken only by those that come at most so many seconds later: 30."),
    ] = None,
    token_exact: Annotated[
        bool, typer.Option("--token-exact", help="Reuse prefixes to the token, not the block.")
    ] = False,
) -> int:
    """Start vLLM's OpenAI-compatible server with our scheduler. Further arguments are those of vllm serve."""
    from vllm_relational.engine.server import serve_command

    given = {"eviction": eviction, "order": order, "deep_queue": deep_queue, "max_age_s": max_age}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if token_exact:
        settings["token_exact"] = True
    command, warning = serve_command(model, settings, context.args)
    if warning:
        _say(f"warning: {warning}")
    os.execv(command[0], command)


cli_sql.add_commands(_command)


def _check_result_place(data: pa.Table, output: Path | None, *columns: str) -> None:
    """Before anything is asked: can the answers be added to the table and written?"""
    from vllm_relational.table import check_output

    for name in columns:
        if name in data.column_names:
            raise RelationalError(
                f"the table has a column {name!r} already: choose another name with --answer-column or --error-column"
            )
    if len(set(columns)) < len(columns):
        raise RelationalError(f"answers and reasons cannot share the column {columns[0]!r}")
    if output is not None:
        check_output(output)


def _check_page(page: Path | None, library: str = "matplotlib") -> None:
    """Before anything is asked or planned: can the page be drawn and written?"""
    _check_folder(page)
    if page is not None and importlib.util.find_spec(library) is None:
        raise RelationalError(f"{page} is drawn with {library}: pip install 'vllm-relational[report]'")


def _check_folder(file: Path | None) -> None:
    if file is None:
        return
    if file.is_dir():
        raise RelationalError(f"cannot write {file}: it is a folder; name a file in it")
    if not file.parent.is_dir():
        raise RelationalError(f"cannot write {file}: the folder {file.parent} does not exist; mkdir -p {file.parent}")


def _default_checkpoint(output: Path | None) -> Path | None:
    return output.with_name(f"{output.name}.checkpoint.jsonl") if output is not None else None


def _with_answers(data: pa.Table, result: QueryResult, options: dict[str, Any], answer: str, error: str) -> pa.Table:
    import pyarrow as pa

    values: list[Any] = result.answers
    if options["schema"] is not None:
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    kind = pa.int64() if options["range"] is not None else pa.string()
    return data.append_column(answer, pa.array(values, kind)).append_column(error, pa.array(result.errors, pa.string()))


def _write(answered: pa.Table, output: Path | None) -> None:
    from vllm_relational.table.write import write_json_lines, write_table

    if output is None:
        write_json_lines(answered)
        sys.stdout.flush()
    else:
        write_table(answered, output)


def _settle_checkpoint(checkpoint: Path | None, output: Path | None, result: QueryResult) -> None:
    """Delete the checkpoint once the output holds everything; keep it while rows failed, for ``--resume``."""
    if checkpoint is None:
        return
    if result.num_failed:
        _say(f"answers are kept in {checkpoint}: run again with --resume to ask the failed rows once more")
    elif output is None:
        _say(f"answers are kept in {checkpoint}")
    else:
        checkpoint.unlink(missing_ok=True)


def _say_interrupted(checkpoint: Path | None) -> None:
    if checkpoint is None:
        _say("interrupted: nothing was kept; with -o or --checkpoint a run can be resumed")
    elif not checkpoint.exists():
        _say("interrupted before the first answer")
    else:
        with checkpoint.open("rb") as lines:
            answers = sum(1 for _ in lines) - 1
        _say(f"interrupted: {max(answers, 0)} answers are in {checkpoint}; continue with --resume")


def _finish(report: RunReport, html: Path | None) -> int:
    from vllm_relational.results.report_text import render_text

    _say(render_text(report))
    if html is not None:
        from vllm_relational.results.report_html import write_html

        write_html(report, html)
        _say(f"report: {html}")
    return SOME_ROWS_FAILED if report.num_failed else OK


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()

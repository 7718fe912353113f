"""The commands ``bench`` and ``plan``: orders side by side, on an engine and without one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_relational.cli import errors as cli_errors
from vllm_relational.cli import files as cli_files
from vllm_relational.cli import options as cli_options
from vllm_relational.cli import output as cli_output
from vllm_relational.cli.fields import PLANNER_NAMES, Given, parse_list, values, with_options
from vllm_relational.cli.options import (
    BaseUrl,
    EngineArg,
    Limit,
    Model,
    Output,
    Prompt,
    Report,
    Table,
    Tokenizer,
    Verbose,
)
from vllm_relational.cli.output import ResultColumns
from vllm_relational.config import QueryOptions, current_order
from vllm_relational.config.llm import ServerOptions
from vllm_relational.records import RelationalError

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_relational.compare.orders import Comparison
    from vllm_relational.llm import RelationalLLM

COLUMNS = ResultColumns("answer", "error", "status")


@with_options(QueryOptions, ServerOptions)
def bench(
    table: Table,
    prompt: Prompt,
    *,
    model: Model = None,
    orders: Annotated[str, typer.Option(help="Orders to compare, each from a cold cache.")] = "original,fixed,tree",
    output: Output = None,
    answers: Given,
    base_url: BaseUrl = None,
    server: Given,
    prompts: Given,
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
    from vllm_relational.compare.orders import FIELDS

    cli_files.check_files(
        reads={"TABLE": table, "--schema": answers["schema"]},
        outputs={"--output": output},
        stores={"--csv": csv},
        pages={"--report": report},
        overwrite=overwrite,
    )
    data = cli_options.read_rows(table, limit)
    options = values({**answers, **prompts}, QueryOptions)
    arguments = cli_options.engine_arguments(engine_arg) | values(server, ServerOptions)
    COLUMNS.check_free(data)
    cli_output.check_file(output)
    cli_output.check_page(report)
    cli_output.check_csv(csv, FIELDS)
    llm = cli_options.make_llm(model, base_url, tokenizer, verbose, arguments)
    try:
        comparison = _compared(llm, data, prompt, parse_list(orders, "--orders"), options, budget)
    finally:
        llm.close()
    last = comparison.results[-1]
    if output is not None:
        cli_output.write(COLUMNS.added_to(data.slice(0, len(last.answers)), last, options), output)
    status = cli_output.finish(last.report, report)
    cli_options.say(comparison.render())
    if csv is not None:
        comparison.append_csv(csv, str(table))
    return status


def _compared(
    llm: RelationalLLM,
    data: pa.Table,
    prompt: str,
    orders: list[str],
    options: dict[str, Any],
    budget: float | None,
) -> Comparison:
    """The table asked in each order: all of it, or as many rows as fit into ``budget`` seconds."""
    from vllm_relational.compare.orders import compare_orders, rows_within

    names = [current_order(name) for name in orders]
    if budget is not None:
        rows = rows_within(llm, data, prompt, names, options, budget)
        cli_options.say(f"{rows} of {data.num_rows} rows fit into {budget:.0f} s on this machine")
        data = data.slice(0, rows)
    return compare_orders(llm, data, prompt, names, options)


@with_options(QueryOptions)
def plan(
    table: Table,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Question per row; default: all columns.")
    ] = None,
    *,
    columns: Annotated[str | None, typer.Option(help="Instead of a prompt: the columns to send, a,b.")] = None,
    planners: Annotated[
        str, typer.Option("--planner", help=f"Planners to compare, of {PLANNER_NAMES}.")
    ] = "original,fixed,fixed_v2,ggr,tree",
    model: Model = None,
    tokenizer: Tokenizer = None,
    prompts: Given,
    capacity: Annotated[int | None, typer.Option(help="KV cache in tokens; default without limit.")] = None,
    limit: Limit = None,
    budget: Annotated[float | None, typer.Option(help="Seconds of search for tree; default by table size.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a planner on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also draw the best plan's prefix tree as one HTML file.")] = None,
    merging: Given,
    overwrite: cli_files.Overwrite = False,
) -> int:
    """Compare planners on TABLE: what each would serve from the KV cache, and why. Starts no engine."""
    cli_errors.check_standard_output()
    from vllm_relational.compare.planners import compare_planners, template_of

    if prompt is not None and columns is not None:
        raise RelationalError("--prompt and --columns exclude each other: give one")
    cli_files.check_files(reads={"TABLE": table}, pages={"--html": html}, overwrite=overwrite)
    cli_output.check_page(html, "plotly")
    data = cli_options.read_rows(table, limit)
    llm = cli_options.make_llm(model, None, tokenizer, False, {})
    question = prompt or template_of(parse_list(columns, "--columns") if columns else None)
    info = dataclasses.replace(cli_options.with_capacity(llm.expected_engine(), capacity), max_model_len=None)
    options = {**values({**prompts, **merging}, QueryOptions), "nulls": "keep"}
    names = [current_order(name) for name in parse_list(planners, "--planner")]
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
        cli_options.say(f"prefix tree: {html}")
    return cli_errors.OK


def add_commands(command: Callable[[Callable[..., int]], Any]) -> None:
    """Register both commands."""
    command(bench)
    command(plan)

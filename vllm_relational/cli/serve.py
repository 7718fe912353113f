"""The command ``serve``: vLLM's server with our scheduler."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from vllm_relational.cli import options as cli_options
from vllm_relational.cli.fields import Given, values, with_options
from vllm_relational.cli.options import Eviction, TokenExact
from vllm_relational.config.llm import LlmOptions


@with_options(LlmOptions)
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    *,
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
    contexts: Given,
) -> int:
    """Start vLLM's OpenAI-compatible server with our scheduler. Further arguments are those of vllm serve."""
    from vllm_relational.engine.server import prepare_server, serve_command

    settings = cli_options.scheduler_settings(eviction, token_exact, order, deep_queue, max_age)
    sparse = cli_options.engine_arguments(dipr, "--dipr")
    kept = values(contexts, LlmOptions)
    command, warning = serve_command(model, settings, context.args, attention, sparse, LlmOptions.read(kept))
    if warning:
        cli_options.say(f"warning: {warning}")
    prepare_server()
    os.execv(command[0], command)


def add_commands(command: Callable[..., Any]) -> None:
    """Register the command; it passes on to vLLM what it does not know."""
    command(serve, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})

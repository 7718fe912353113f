"""Option texts of the command line -> values, and the object that answers."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_relational.config.llm import CONTEXTS
from vllm_relational.kv.policy import POLICIES
from vllm_relational.records import EngineInfo, RelationalError
from vllm_relational.terminal import tell

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_relational.llm import RelationalLLM


# Options that several commands have.
Model = Annotated[str | None, typer.Option("--model", "-m", help="Model folder or hub name.")]
BaseUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible server, e.g. http://localhost:8000/v1.")]
EngineArg = Annotated[list[str] | None, typer.Option(help="vLLM engine argument NAME=VALUE, repeatable.")]
Tokenizer = Annotated[str | None, typer.Option(help="Tokenizer folder or hub name, if not the model's.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show vLLM's log.")]
Table = Annotated[Path, typer.Argument(help="Parquet, CSV, TSV, JSON lines or Arrow file.")]
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="Question per row: {column}, {*} for all, {{ for a brace.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N rows.")]
Report = Annotated[Path | None, typer.Option(help="Also write the report as a file: .json, else one HTML page.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Answered table: .parquet, .csv, .jsonl, .arrow; default JSON lines on stdout."
    ),
]
Eviction = Annotated[
    str | None,
    typer.Option(
        help="Which cached block vLLM gives up first: "
        f"{', '.join(name for name, policy in POLICIES.items() if policy.serves)}. Default: lru, its own."
    ),
]
TokenExact = Annotated[bool, typer.Option("--token-exact", help="Reuse prefixes to the token, not the block.")]

# Have options of their own, or none.
RESERVED_ARGUMENTS = ("model", "tokenizer", "base_url", "order", "concurrency", "verbose", "quiet", "engine", *CONTEXTS)


def read_rows(path: Path, limit: int | None) -> pa.Table:
    """The table, or its first ``limit`` rows."""
    from vllm_relational.table import read_table

    if limit is not None and limit < 1:
        raise RelationalError(f"--limit is {limit}: ask at least 1 row")
    return read_table(path).slice(0, limit)


def engine_arguments(pairs: list[str] | None, option: str = "--engine-arg") -> dict[str, Any]:
    """``NAME=VALUE`` pairs of an option; a value that reads as JSON is taken as JSON."""
    arguments: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name.isidentifier():
            example = "max_model_len=4096" if option == "--engine-arg" else "alpha=0.001"
            raise RelationalError(f"{option} {pair!r}: write NAME=VALUE, e.g. {example}")
        if name in RESERVED_ARGUMENTS:
            raise RelationalError(f"{option} {name}=...: use the option --{name.replace('_', '-')} instead")
        arguments[name] = _json_or_text(value)
    return arguments


def make_llm(
    model: str | None,
    base_url: str | None,
    tokenizer: str | None,
    verbose: bool,
    arguments: dict[str, Any],
    scheduler: dict[str, Any] | None = None,
) -> RelationalLLM:
    """The object that answers; its engine starts at the first question.

    arguments: of the engine; those for a server that always have a value are left out without one.
    scheduler: None or {} for vLLM's own.
    """
    from vllm_relational.llm import RelationalLLM

    prepare_processes()
    if base_url is None:
        arguments = {name: value for name, value in arguments.items() if name != "concurrency"}
        arguments["quiet"] = not verbose
    return RelationalLLM(model, base_url=base_url, tokenizer=tokenizer, scheduler=scheduler or None, **arguments)


def with_capacity(info: EngineInfo, capacity: int | None) -> EngineInfo:
    """An engine with a KV cache of so many tokens; None: without limit."""
    if capacity is not None and capacity < info.block_size:
        raise RelationalError(f"--capacity is {capacity}: a cache holds a block of {info.block_size} tokens or more")
    return dataclasses.replace(info, kv_cache_tokens=capacity)


def scheduler_settings(
    eviction: str | None,
    token_exact: bool,
    order: str | None = None,
    deep_queue: int | None = None,
    max_age_s: float | None = None,
) -> dict[str, Any]:
    """Those settings of our scheduler that were given; ``RelationalError`` for values that there are not."""
    from vllm_relational.vllm_ext.settings import KEY, read_settings

    given = {"eviction": eviction, "order": order, "deep_queue": deep_queue, "max_age_s": max_age_s}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings |= {"token_exact": True} if token_exact else {}
    read_settings({KEY: settings})
    return settings


def prepare_processes() -> None:
    """Before any engine: this process has threads, and a forked engine could inherit a lock that stays locked."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def say(text: str) -> None:
    """A line for the person at the terminal; standard output is for answers."""
    tell(text)


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value

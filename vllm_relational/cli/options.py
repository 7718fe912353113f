"""Option texts of the command line -> values, and the object that answers."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_relational.records import EngineInfo, RelationalError
from vllm_relational.terminal import tell

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_relational.llm import RelationalLLM


# Options that several commands have.
Model = Annotated[str | None, typer.Option("--model", "-m", help="Model folder or hub name.")]
BaseUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible server, e.g. http://localhost:8000/v1.")]
Concurrency = Annotated[int, typer.Option(min=1, help="With --base-url: requests in flight.")]
Timeout = Annotated[
    float | None, typer.Option(help="With --base-url: seconds for the whole answer to one attempt; 600 by default.")
]
Retries = Annotated[
    int | None, typer.Option(help="With --base-url: further attempts after a failed request; 5 by default.")
]
ServedAs = Annotated[
    str | None, typer.Option(help="With --base-url: the model's name in replies, where it is unlike the one asked.")
]
EngineArg = Annotated[list[str] | None, typer.Option(help="vLLM engine argument NAME=VALUE, repeatable.")]
Tokenizer = Annotated[str | None, typer.Option(help="Tokenizer folder or hub name, if not the model's.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show vLLM's log.")]
Dedup = Annotated[str, typer.Option(help="Rows that pass for equal are asked once: exact, normalized, semantic.")]
Normalize = Annotated[
    list[str] | None,
    typer.Option(
        help="COLUMN=rule,rule (* for all others): unicode, case, punctuation, whitespace, spelling, stopwords, lemma, "
        "stem, default, exact; stem:de for German. Repeatable."
    ),
]
Similarity = Annotated[float, typer.Option(help="With --dedup semantic: least cosine similarity to the row asked.")]
Similar = Annotated[
    str | None, typer.Option(help="With --dedup semantic: columns compared by meaning, a,b; others must be equal.")
]
EmbedderName = Annotated[
    str,
    typer.Option(
        "--embedder", help="With --dedup semantic: folder or hub name of an embedding model; vllm:NAME for vLLM."
    ),
]
CacheFile = Annotated[
    Path | None, typer.Option("--cache", help="SQLite file of answers kept across runs; made where there is none.")
]
Audit = Annotated[int, typer.Option(help="Afterwards ask N rows again in original order, and N merged rows.")]
Seed = Annotated[int, typer.Option(help="Of the rows that --audit draws and of semantic clusters.")]

# Have options of their own, or none.
RESERVED_ARGUMENTS = ("model", "tokenizer", "base_url", "order", "concurrency", "verbose", "quiet", "engine")


def read_rows(path: Path, limit: int | None) -> pa.Table:
    """The table, or its first ``limit`` rows."""
    from vllm_relational.table import read_table

    if limit is not None and limit < 1:
        raise RelationalError(f"--limit is {limit}: ask at least 1 row")
    return read_table(path).slice(0, limit)


def query_options(
    choices: str | None,
    bounds: str | None,
    schema: Path | None,
    max_tokens: int | None,
    pin: str | None,
    keep_order: list[str] | None,
    weight: list[str] | None,
    system_prompt: str,
    nulls: str,
    layout: str,
) -> dict[str, Any]:
    """The options of ``RelationalLLM.run`` from those of the command line."""
    return {
        "choices": parse_labels(choices) if choices is not None else None,
        "range": parse_range(bounds) if bounds is not None else None,
        "schema": read_schema(schema) if schema is not None else None,
        "max_tokens": max_tokens,
        **order_options(pin, keep_order, weight),
        "system_prompt": system_prompt,
        "nulls": nulls,
        "layout": layout,
    }


def dedup_options(
    mode: str, normalize: list[str] | None, similarity: float, similar: str | None, embedder: str
) -> dict[str, Any]:
    """What the user asks of deduplication."""
    return {
        "dedup": mode,
        "normalize": dict(map(parse_rules, normalize or [])),
        "similarity": similarity,
        "similar_columns": parse_list(similar, "--similar") if similar else [],
        "embedder": embedder,
    }


def parse_rules(text: str) -> tuple[str, tuple[str, ...]]:
    """``COLUMN=rule,rule``; the last equals sign counts, as a column's name may hold one."""
    name, equals, rules = text.rpartition("=")
    if not equals or not name or not rules.strip():
        raise RelationalError(f"--normalize {text!r}: write COLUMN=rule,rule, e.g. --normalize title=case,whitespace")
    return name, tuple(rule.strip() for rule in rules.split(","))


def order_options(pin: str | None, keep_order: list[str] | None, weight: list[str] | None) -> dict[str, Any]:
    """What the user asks of the order of the fields."""
    return {
        "pin": parse_list(pin, "--pin") if pin else [],
        "keep_order": [parse_list(group, "--keep-order") for group in keep_order or []],
        "column_weights": dict(map(parse_weight, weight or [])),
    }


def parse_weight(text: str) -> tuple[str, float]:
    """``COLUMN=NUMBER``; the last equals sign counts, as a column's name may hold one."""
    name, equals, number = text.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return name, float(number)
    except ValueError:
        raise RelationalError(f"--weight {text!r}: write COLUMN=NUMBER, e.g. --weight description=2") from None


def parse_list(text: str, option: str) -> list[str]:
    """``a,b`` or, for items with commas, a JSON list."""
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",")]
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RelationalError(f"{option} is not a JSON list: {error}") from error
    if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
        raise RelationalError(f"{option} may list texts and numbers only: {text}")
    return [str(item) for item in items]


def parse_labels(text: str) -> tuple[str, ...]:
    """``yes,no`` or a JSON list of texts and whole numbers."""
    from vllm_relational.option_kinds import read_labels

    if not text.lstrip().startswith("["):
        return tuple(parse_list(text, "--choices"))
    try:
        return read_labels(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RelationalError(f"--choices is not a JSON list of labels: {error}") from error


def parse_range(text: str) -> tuple[int, int]:
    """``low,high``."""
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise RelationalError(f"--range is {text!r}: write two whole numbers, e.g. --range 1,5") from error
    return low, high


def read_schema(path: Path) -> dict[str, Any]:
    """The JSON schema in a file."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RelationalError(f"cannot read the JSON schema {path}: {error}") from error
    if not isinstance(schema, dict):
        raise RelationalError(f"the JSON schema {path} is not a JSON object")
    return schema


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


def server_arguments(timeout: float | None, retries: int | None, served_as: str | None) -> dict[str, Any]:
    """Those options of a server that were given, as ``RelationalLLM`` names them."""
    given = {"timeout_s": timeout, "max_retries": retries, "served_as": served_as}
    return {name: value for name, value in given.items() if value is not None}


def make_llm(
    model: str | None,
    base_url: str | None,
    tokenizer: str | None,
    verbose: bool,
    concurrency: int,
    arguments: dict[str, Any],
    scheduler: dict[str, Any] | None = None,
) -> RelationalLLM:
    """The object that answers; its engine starts at the first question. scheduler: None or {} for vLLM's own."""
    from vllm_relational.llm import RelationalLLM

    prepare_processes()
    if base_url is not None:
        arguments = {**arguments, "concurrency": concurrency}
    else:
        arguments = {**arguments, "quiet": not verbose}
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

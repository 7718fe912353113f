"""Option texts of the command line -> values, and the object that answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_relational.records import EngineInfo, RelationalError

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_relational.llm import RelationalLLM


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
    system_prompt: str,
    nulls: str,
) -> dict[str, Any]:
    """The options of ``RelationalLLM.run`` from those of the command line."""
    return {
        "choices": parse_list(choices, "--choices") if choices is not None else None,
        "range": parse_range(bounds) if bounds is not None else None,
        "schema": read_schema(schema) if schema is not None else None,
        "max_tokens": max_tokens,
        "pin": parse_list(pin, "--pin") if pin else [],
        "system_prompt": system_prompt,
        "nulls": nulls,
    }


def parse_list(text: str, option: str) -> list[str]:
    """``a,b`` or, for items with commas, a JSON list."""
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",")]
    try:
        return [str(item) for item in json.loads(text)]
    except ValueError as error:
        raise RelationalError(f"{option} is not a JSON list: {error}") from error


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
    except (OSError, ValueError) as error:
        raise RelationalError(f"cannot read the JSON schema {path}: {error}") from error
    if not isinstance(schema, dict):
        raise RelationalError(f"the JSON schema {path} is not a JSON object")
    return schema


def engine_arguments(pairs: list[str] | None) -> dict[str, Any]:
    """``NAME=VALUE`` pairs; a value that reads as JSON is taken as JSON."""
    arguments: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise RelationalError(f"--engine-arg {pair!r}: write NAME=VALUE, e.g. max_model_len=4096")
        arguments[name.strip().lstrip("-").replace("-", "_")] = _json_or_text(value)
    return arguments


def make_llm(
    model: str | None,
    base_url: str | None,
    tokenizer: str | None,
    verbose: bool,
    concurrency: int,
    arguments: dict[str, Any],
) -> RelationalLLM:
    """The object that answers; its engine starts at the first question."""
    from vllm_relational.llm import RelationalLLM

    # This process has threads by now: a forked engine could inherit a lock that nobody will release.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if base_url is not None:
        return RelationalLLM(model, base_url=base_url, tokenizer=tokenizer, concurrency=concurrency, **arguments)
    return RelationalLLM(model, tokenizer=tokenizer, quiet=not verbose, **arguments)


def imagined_engine(model: str | None, arguments: dict[str, Any]) -> EngineInfo:
    """What a dry run assumes: the model's own context length and a KV cache without limit."""
    return EngineInfo(
        model=model or "no model: sizes only",
        max_model_len=arguments.get("max_model_len") or _positions(model),
        block_size=arguments.get("block_size") or 16,
    )


def _positions(model: str | None) -> int | None:
    config = Path(model, "config.json") if model else None
    if config is None or not config.is_file():
        return None
    positions = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value

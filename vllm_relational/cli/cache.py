"""The command ``cache``: what a result cache holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_relational.cli.errors import OK
from vllm_relational.records import RelationalError


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


def add_commands(command: Callable[[Callable[..., int]], Any]) -> None:
    """Register the command."""
    command(cache)

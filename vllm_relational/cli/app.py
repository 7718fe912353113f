"""``vllm-relational``: the command line.

Exit status: 0 every row answered, 1 some rows failed, 2 could not run, 130 interrupted.
Each group of commands is a module of its own; ``options.py`` holds what several have, ``fields.py`` makes options of
the fields of ``QueryOptions`` and the like.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer
import typer.main

from vllm_relational.cli import cache, compare, context, errors, retrieval, run, serve, sql

app = typer.Typer(
    cls=errors.OneLineErrors,
    help="LLM questions over tables, as fast as the hardware allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _command(function: Callable[..., int], into: typer.Typer = app, **settings: Any) -> None:
    """Register a command: its errors become one line, its return value the exit status. settings: typer's."""
    into.command(**settings)(errors.guarded(function))


for _group in (run, compare, cache, serve, retrieval, sql, context):
    _group.add_commands(_command)
app.add_typer(context.group, name="context")


def commands() -> dict[str, Any]:
    """Every command by the words that call it, ``context add`` for one."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_group(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {word}": each for word, each in inner.items()}
    return found


def main() -> None:
    """Entry point of the console script."""
    sys.exit(errors.run_program(app))


if __name__ == "__main__":
    main()

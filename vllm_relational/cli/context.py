"""The commands ``context add``, ``list``, ``stat``, ``rm``, ``verify``, ``import`` and ``export``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_relational.cli import files as cli_files
from vllm_relational.cli import options as cli_options
from vllm_relational.cli.errors import OK, SOME_ROWS_FAILED
from vllm_relational.records import RelationalError
from vllm_relational.terminal import is_terminal, printable

if TYPE_CHECKING:
    from vllm_relational.context import DB
    from vllm_relational.context.inventory import ContextInfo

SHOWN_ID_CHARS = 12

group = typer.Typer(
    help="Contexts computed once and kept on disk: add, list, stat, rm, verify, import, export.", no_args_is_help=True
)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--contexts", help="Folder of the contexts; default $VLLM_RELATIONAL_CONTEXTS, else in the user's cache folder."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
Wanted = Annotated[str, typer.Argument(help="Name of the context, its id, or the beginning of its id.")]
Name = Annotated[str | None, typer.Option(help="What the context is called from now on.")]
SizeLimit = Annotated[
    str | None, typer.Option("--limit", help="Of the folder, e.g. 200GB: contexts not used for longest are deleted.")
]


def add(
    file: Annotated[Path, typer.Argument(help="Text file, UTF-8.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model folder or hub name.")],
    contexts: Folder = None,
    name: Name = None,
    chat: Annotated[bool, typer.Option("--chat", help="The text begins the first message of a chat.")] = False,
    tokenizer: cli_options.Tokenizer = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: auto, bfloat16, float16 or float32.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU if there is one.")] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens that are computed at a time.")] = 1024,
    limit: SizeLimit = None,
) -> int:
    """Compute the keys and values of a text FILE with transformers and store them."""
    from vllm_relational.context.prefill import add_tokens, load_model, token_ids_of

    cli_files.check_files(reads={"FILE": file})
    text, db = _text_of(file), _open(contexts, limit, make=True)
    loaded, words = load_model(model, tokenizer, dtype, device)
    ids = token_ids_of(text, words, chat)
    started = time.monotonic()
    with _progress(len(ids)) as tell:
        added = add_tokens(db, ids, loaded, name, chunk, tell)
    computed, seconds = added.num_tokens - added.num_known, time.monotonic() - started
    cli_options.say(f"{added.id}: {added.num_tokens:,} tokens in {db.path}, {computed:,} computed in {seconds:.1f} s")
    return OK


def show(contexts: Folder = None, json: Json = False) -> int:
    """List the contexts, the last used one first."""
    infos = _open(contexts).list()
    if json:
        _print_json(infos)
    else:
        _print_table(
            ["id", "names", "model", "tokens", "size", "last used", "indexes"], [_row_of(info) for info in infos]
        )
    for info in infos:
        if info.problem and not json:
            cli_options.say(f"warning: {info.problem}")
    return OK


def stat(contexts: Folder = None, json: Json = False) -> int:
    """Show how many contexts there are, and the room that they take."""
    from vllm_relational.context.places import size_in_words

    found = _open(contexts).stat()
    if json:
        _print_json([found])
        return OK
    print(
        f"{printable(found.path)}: {_count(found.num_contexts, 'context')} of {_count(found.num_fingerprints, 'model')}"
    )
    print(f"{found.num_tokens:,} tokens, {size_in_words(found.num_bytes)}")
    print(f"{size_in_words(found.free_bytes)} free on the disk")
    if found.problems:
        print(f"cannot be read: {_count(found.problems, 'context')}; vllm-relational context verify says why")
    return OK


def remove(context: Wanted, contexts: Folder = None) -> int:
    """Delete a CONTEXT. Processes that use it go on."""
    db = _open(contexts)
    cli_options.say(f"{db.delete(context)}: deleted from {db.path}")
    return OK


def verify(
    context: Annotated[str | None, typer.Argument(help="Name or id; default: all contexts.")] = None,
    contexts: Folder = None,
    json: Json = False,
) -> int:
    """Read every file and compare it with its checksum. Exit status 1 where something is damaged."""
    problems = _open(contexts).verify(context)
    if json:
        _print_json(problems)
    for problem in problems:
        if not json:
            print(printable(f"{problem.id}: {problem.text}"))
    if not problems:
        cli_options.say("nothing is damaged")
    return SOME_ROWS_FAILED if problems else OK


def bring_in(
    file: Annotated[Path, typer.Argument(help="File of context export.")],
    contexts: Folder = None,
    name: Name = None,
    fingerprint: Annotated[str | None, typer.Option(help="Of the model, where the file does not say it.")] = None,
    limit: SizeLimit = None,
) -> int:
    """Store the context of a safetensors FILE."""
    from vllm_relational.context.exchange import read_export

    cli_files.check_files(reads={"FILE": file})
    exported = read_export(file)
    made_by = fingerprint or exported.fingerprint
    if not made_by:
        raise RelationalError(
            f"{file} does not say which model made it: give --fingerprint (context list --json has it)"
        )
    db = _open(contexts, limit, make=True)
    stored = db.import_(exported.token_ids, file, made_by, name)
    cli_options.say(f"{stored}: {len(exported.token_ids):,} tokens in {db.path}")
    return OK


def export(
    context: Wanted,
    file: Annotated[Path, typer.Argument(help="Safetensors file to write.")],
    contexts: Folder = None,
    overwrite: cli_files.Overwrite = False,
) -> int:
    """Write a CONTEXT into a safetensors FILE."""
    from vllm_relational.context.exchange import export_context

    cli_files.check_files(outputs={"FILE": file}, overwrite=overwrite)
    stored = _open(contexts).open(context)
    export_context(stored, file)
    cli_options.say(f"{file}: {stored.num_tokens:,} tokens of {stored.id}")
    return OK


def add_commands(command: Callable[..., Any]) -> None:
    """Register the commands."""
    for function, name in (
        (add, "add"),
        (show, "list"),
        (stat, "stat"),
        (remove, "rm"),
        (verify, "verify"),
        (bring_in, "import"),
        (export, "export"),
    ):
        command(function, into=group, name=name)


# --------------------------------------------------------------------------------------------------------- the parts
def _open(folder: Path | None, limit: str | None = None, make: bool = False) -> DB:
    from vllm_relational.context import DB
    from vllm_relational.context.places import bytes_of, default_folder

    place = folder or default_folder()
    if not make and not place.exists():
        raise RelationalError(f"there is no folder {place}: context add makes it, --contexts names another")
    return DB(place, max_bytes=None if limit is None else bytes_of(limit))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # a byte order mark is no text: no prompt begins with it
    except FileNotFoundError as error:
        raise RelationalError(f"there is no file {file}") from error
    except UnicodeDecodeError as error:
        raise RelationalError(
            f"{file} is no UTF-8 text (byte {error.start}): convert it first, e.g. with iconv"
        ) from error


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar for people; nothing in a log."""
    if not is_terminal(sys.stderr):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("tokens", total=total)
        yield lambda done: bar.update(task, completed=done)


def _row_of(info: ContextInfo) -> list[str]:
    from vllm_relational.context.places import size_in_words

    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.used)) if info.used else "damaged"
    names, indexes = ", ".join(info.names), ", ".join(info.indexes)
    size = size_in_words(info.num_bytes)
    return [info.id[:SHOWN_ID_CHARS], names, Path(info.model).name, f"{info.num_tokens:,}", size, used, indexes]


def _print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names)
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    Console(file=sys.stdout, highlight=False, emoji=False, markup=False).print(table)


def _print_json(values: Sequence[Any]) -> None:
    from vllm_relational.context.inventory import as_json

    for value in values:
        print(as_json(value).decode())

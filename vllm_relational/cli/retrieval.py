"""The commands of retrieval: ``index`` and ``retrieve``, and what ``run --retrieve`` shares with them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_relational.cli import errors as cli_errors
from vllm_relational.cli import files as cli_files
from vllm_relational.cli import options as cli_options
from vllm_relational.cli import output as cli_output
from vllm_relational.cli.options import Limit, Table
from vllm_relational.query import embedders
from vllm_relational.records import RelationalError
from vllm_relational.retrieval import retriever

if TYPE_CHECKING:
    import pyarrow as pa

Embedder = Annotated[
    str | None,
    typer.Option(help="Embedding model, folder or hub name, as the index names it; vllm:NAME runs it in vLLM."),
]


def index(
    table: Table,
    column: Annotated[str, typer.Argument(help="The text column to search in.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The index; PATH.json beside it says what it is.")],
    embedder: Annotated[
        str, typer.Option(help="Embedding model, folder or hub name; vllm:NAME runs it in vLLM instead.")
    ],
    search: Annotated[
        str, typer.Option(help="exact: every passage; approximate: nearest clusters, for a million passages or so.")
    ] = "exact",
    overwrite: cli_files.Overwrite = False,
) -> int:
    """Embed the texts of one COLUMN of TABLE and keep them for retrieval."""
    from vllm_relational.retrieval import build_index

    cli_files.check_files(reads={"TABLE": table}, outputs={"the index": output}, overwrite=overwrite)
    chosen: Any = search
    data = cli_options.read_rows(table, None)
    made = _open_embedder(embedder)
    try:
        built = build_index(data, column, made, output, search=chosen, source=table)
    finally:
        _close(made)
    facts = built.sidecar
    cli_options.say(f"{output}: {facts.num_passages} passages of {column!r}, {facts.dimension} dimensions, {search}")
    return 0


def retrieve(
    table: Table,
    question: Annotated[str, typer.Argument(help="The column of questions.")],
    index: Annotated[Path, typer.Option(help="Made with the command index.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Table with passages; default JSON lines on stdout.")
    ] = None,
    passages: Annotated[int, typer.Option("-k", min=1, help="Passages a question.")] = 5,
    name: Annotated[str, typer.Option(help="The columns are NAME_1 to NAME_k.")] = "context",
    ordered: Annotated[
        bool, typer.Option("--ordered", help="NAME_1 is the nearest; default is the order that shares most.")
    ] = False,
    passage_table: Annotated[
        Path | None, typer.Option(help="The table of the passages, if it is no longer where the index was made.")
    ] = None,
    embedder: Embedder = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build a stale index again.")] = False,
    limit: Limit = None,
    overwrite: cli_files.Overwrite = False,
) -> int:
    """Add the passages nearest to each QUESTION to TABLE, as columns that every other command takes."""
    cli_output.check_names({"--name": name})
    cli_files.check_files(
        reads={"TABLE": table, **index_files(None if rebuild else index), "--passage-table": passage_table},
        outputs={"--output": output},
        stores={"--index": index if rebuild else None},
        overwrite=overwrite,
    )
    cli_errors.check_standard_output(output)
    cli_output.check_file(output)
    found = with_passages(
        cli_options.read_rows(table, limit),
        question,
        index,
        passages,
        name=name,
        ordered=ordered,
        passage_table=passage_table,
        embedder=embedder,
        rebuild=rebuild,
    )
    cli_output.write(found, output)
    return 0


def add_commands(command: Callable[[Callable[..., int]], Any]) -> None:
    """Register both commands."""
    command(index)
    command(retrieve)


def index_files(index: Path | None) -> dict[str, Path | None]:
    """The files that a search in an index reads: the index, and the table of passages that it names."""
    from vllm_relational.retrieval import read_sidecar

    files: dict[str, Path | None] = {"--index": index}
    if index is not None:
        with suppress(RelationalError):  # no index: said where it is opened
            source = read_sidecar(index).source
            files["the index's table"] = None if source is None else index.parent / source
    return files


def with_passages(
    data: pa.Table,
    question: str,
    path: Path,
    k: int,
    *,
    name: str = "context",
    ordered: bool = False,
    passage_table: Path | None = None,
    embedder: str | None = None,
    rebuild: bool = False,
) -> pa.Table:
    """``data`` with the passages of the index at ``path``, see ``retrieval.retrieve_fields``."""
    from vllm_relational.retrieval import TextIndex, read_sidecar, retrieve_fields

    sidecar = read_sidecar(path)
    fix = "name the table of the passages, vllm-relational retrieve --passage-table TABLE"
    texts = retriever.passage_table(path, sidecar.source, passage_table, fix)
    made = _open_embedder(embedder or sidecar.embedder)
    try:
        return retrieve_fields(
            data, question, TextIndex.load(path, texts, made, rebuild=rebuild), k, name=name, ordered=ordered
        )
    finally:
        _close(made)


def retrieved(data: pa.Table, prompt: str, question: str | None, path: Path | None, k: int) -> pa.Table:
    """What ``run --retrieve`` asks of; a prompt that is wrong is found before anything is embedded."""
    from vllm_relational.prompts import parse_template

    if question is None or path is None:
        raise RelationalError("--retrieve COLUMN and --index PATH belong together: give both, or neither")
    parse_template(prompt, [*data.column_names, *(f"context_{place}" for place in range(1, k + 1))])
    return with_passages(data, question, path, k)


def _open_embedder(name: str) -> Any:
    cli_options.prepare_processes()
    return embedders.open_embedder(name)


def _close(embedder: Any) -> None:
    """An engine for embedding must give its memory back before one for answers starts."""
    if hasattr(embedder, "close"):
        embedder.close()

"""Retrieval as the commands and SQL use it: an index by its path, with the table and the model that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_relational import embed
from vllm_relational.records import RelationalError

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_relational.embed import Embedder
    from vllm_relational.retrieval import TextIndex

QUESTION = "question"


def passage_table(index: Path, source: str | None, given: Path | None, fix: str) -> pa.Table:
    """The table of the passages: ``given``, or the one that the index was made from. fix: what to do without any."""
    from vllm_relational.table import read_table

    if given is not None:
        return read_table(given)
    if source is None or not (index.parent / source).exists():
        where = "was not made from a file" if source is None else f"was made from {index.parent / source}, now gone"
        raise RelationalError(f"the index {index} {where}: {fix}")
    return read_table(index.parent / source)


class Retriever:
    """Opens indexes for SQL and keeps them open until one of their files changes; see ``sql.retrieve.Retrieves``.

    embedder: for the questions, in place of the model that an index names.
    opens:    makes an embedder of the name that an index keeps; by default a local model. Commands and SQL hand in
              ``query.embedders.open_embedder``, which knows ``vllm:NAME`` too.
    """

    def __init__(self, embedder: Embedder | None = None, opens: Callable[[str], Embedder] | None = None) -> None:
        self._embedder = embedder
        self._opens = opens or embed.load_embedder
        self._opened: dict[Path, tuple[object, TextIndex]] = {}

    def identity(self, path: str, k: int) -> str:
        """What the passages found in an index depend on beside the question.

        Raises ``RelationalError`` when the index is missing, stale, or holds fewer than ``k`` passages. Loads no model.
        """
        index = self._open(Path(path).absolute())
        index.check_k(k)
        return f"{index.sidecar.fingerprint} {index.sidecar.digest}"

    def passages(self, path: str, questions: pa.Array, k: int, ordered: bool) -> pa.Table:
        """The passages of each question, text columns ``[k]`` of ``len(questions)`` rows; see ``retrieve_fields``."""
        import pyarrow as pa

        from vllm_relational.retrieval import retrieve_fields

        index = self._open(Path(path).absolute())
        try:
            found = retrieve_fields(pa.table({QUESTION: questions}), QUESTION, index, k, ordered=ordered)
        finally:
            embed.release(index.embedder)
        return found.drop_columns([QUESTION])

    def _open(self, path: Path) -> TextIndex:
        from vllm_relational.retrieval import TextIndex, read_sidecar

        sidecar = read_sidecar(path)
        state = (sidecar, _stamp(path), _stamp(path.parent / sidecar.source) if sidecar.source is not None else None)
        known = self._opened.get(path)
        if known is None or known[0] != state:
            texts = passage_table(path, sidecar.source, None, "index the table that holds them now")
            embedder = self._embedder or self._opens(sidecar.embedder)
            self._opened[path] = (state, TextIndex.load(path, texts, embedder))
        return self._opened[path][1]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when the file is written again."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size

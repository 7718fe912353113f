"""Retrieval as the commands and SQL use it: an index by its path, with the table and the model that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_relational.records import RelationalError

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_relational.embed import Embedder
    from vllm_relational.retrieval import TextIndex

VLLM_PREFIX = "vllm:"
QUESTION = "question"


def open_embedder(name: str) -> Any:
    """An embedder by the name that an index keeps: a folder or hub name, or ``vllm:NAME`` for one in vLLM.

    Its model is loaded with the first text. Raises ``RelationalError`` where the library is missing.
    """
    if name.startswith(VLLM_PREFIX):
        from vllm_relational.engine.vllm_embedder import VllmEmbedder

        return VllmEmbedder(_whole_path(name.removeprefix(VLLM_PREFIX)))
    from vllm_relational import embed

    return embed.load_embedder(_whole_path(name))


def _whole_path(name: str) -> str:
    """The index keeps the name of its model: a folder must be found again from anywhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def release(embedder: Any) -> None:
    """Give back the memory of the model, as an engine for answers may need it; the next text loads it again."""
    getattr(embedder, "release", lambda: None)()


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
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._embedder = embedder
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
            release(index.embedder)
        return found.drop_columns([QUESTION])

    def _open(self, path: Path) -> TextIndex:
        from vllm_relational.retrieval import TextIndex, read_sidecar

        sidecar = read_sidecar(path)
        state = (sidecar, _stamp(path), _stamp(path.parent / sidecar.source) if sidecar.source is not None else None)
        known = self._opened.get(path)
        if known is None or known[0] != state:
            texts = passage_table(path, sidecar.source, None, "index the table that holds them now")
            embedder = self._embedder or open_embedder(sidecar.embedder)
            self._opened[path] = (state, TextIndex.load(path, texts, embedder))
        return self._opened[path][1]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when the file is written again."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size

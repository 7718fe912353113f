"""A vector index over the distinct texts of a column, kept beside the table.

The library is faiss: its exact search is one matrix product, its search of the nearest clusters has the same
interface, an index is a block of bytes, and deduplication needs it anyway. Vectors have length 1, so that a dot product
is the cosine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from vllm_relational.embed import Embedder, embed_texts
from vllm_relational.extras import import_faiss
from vllm_relational.files.atomic import check_writable
from vllm_relational.files.named import NamedFile, check_distinct
from vllm_relational.records import RelationalError
from vllm_relational.retrieval.passages import Passages, distinct_passages
from vllm_relational.retrieval.sidecar import REBUILD, Sidecar, digest_of, read_index, sidecar_path, write_index

Search = Literal["exact", "approximate"]
PURPOSE = "a vector index"  # what needs faiss

# Clusters (faiss IVF): as many as 4 sqrt(passages), each trained on 39 to 64 of them, as faiss advises; a search looks
# into 1 of 16, at least 16. Not a graph (HNSW): one over 100,000 vectors took 9 minutes to build on two busy cores.
MIN_TRAINING, MAX_TRAINING, TRAINING_ROUNDS = 39, 64, 10
MIN_PROBES, PROBED_SHARE = 16, 16
# How faiss's files begin: flat indexes, and those of clusters.
FAISS_MAGIC = (b"Ix", b"Iw")
# A text embedded again may differ by rounding (other batches, other precision): the distance of a cosine of 0.999.
SAME_VECTOR = 0.045


@dataclass(frozen=True)
class RetrievedTexts:
    """The nearest passages of each question, best first; equally near ones in the order of the table.

    ids:    int64 ``[num_questions, k]``: rows of the table, the first that holds the passage.
    scores: float32 ``[num_questions, k]``: cosines.
    """

    ids: np.ndarray
    scores: np.ndarray


def build_index(
    table: pa.Table,
    column: str,
    embedder: Embedder,
    path: str | Path,
    *,
    search: Search = "exact",
    source: str | Path | None = None,
) -> TextIndex:
    """Embed the distinct texts of ``column`` once each and keep them at ``path``, described in ``path`` + '.json'.

    A table without rows makes an index without passages, and embeds nothing.

    search: 'exact' compares a question with every passage; 'approximate' only with those of the nearest clusters: for a
            million passages or so.
    source: the file that the table was read from, for commands that name only the index.
    Raises ``RelationalError`` before anything is embedded when the column or the path is of no use.
    """
    path = Path(path)
    _check_search(search)
    _check_place(path, source)
    faiss = import_faiss(PURPOSE)
    passages = distinct_passages(table, column)
    vectors = embed_texts(embedder, passages.texts) if passages.texts else np.empty((0, 1), np.float32)
    index = _new_index(faiss, vectors, search)
    data = faiss.serialize_index(index).tobytes()
    sidecar = Sidecar(
        column=column,
        fingerprint=passages.fingerprint,
        num_passages=len(passages.texts),
        embedder=name_of(embedder),
        dimension=int(vectors.shape[1]),
        search=search,
        source=None if source is None else os.path.relpath(source, path.parent),
        digest=digest_of(data),
    )
    write_index(path, data, sidecar)
    return TextIndex(path, sidecar, passages, embedder, index)


class TextIndex:
    """Finds the passages nearest to questions. Made by ``build_index`` or ``load``.

    path, sidecar: where it is kept and what it was made from.
    passages:      the distinct texts, numbered as the index numbers them.
    embedder:      of the questions.
    """

    def __init__(self, path: Path, sidecar: Sidecar, passages: Passages, embedder: Embedder, index: Any) -> None:
        self.path, self.sidecar, self.passages = path, sidecar, passages
        self.embedder, self._index = embedder, index

    @classmethod
    def load(cls, path: str | Path, table: pa.Table, embedder: Embedder, *, rebuild: bool = False) -> TextIndex:
        """The index at ``path`` over a column of ``table``.

        A stale index, one whose passages are no longer those of the table, is an error, or with ``rebuild`` built
        again. That the embedding model is still the same is checked with each search, on one passage.
        """
        path, faiss = Path(path), import_faiss(PURPOSE)
        data, sidecar = read_index(path)
        _check_search(sidecar.search)
        passages = distinct_passages(table, sidecar.column)
        if passages.fingerprint != sidecar.fingerprint:
            if not rebuild:
                raise RelationalError(
                    f"the index {path} is stale: column {sidecar.column!r} of the table has changed since "
                    f"({sidecar.num_passages} passages then, {len(passages.texts)} now): load it with rebuild=True "
                    f"(vllm-relational retrieve --rebuild), or {REBUILD}"
                )
            source = None if sidecar.source is None else path.parent / sidecar.source
            search: Any = sidecar.search
            return build_index(table, sidecar.column, embedder, path, search=search, source=source)
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        return cls(path, sidecar, passages, embedder, index)

    def retrieve(self, questions: list[str], k: int) -> RetrievedTexts:
        """The ``k`` nearest passages of each question, best first; equal questions are embedded once.

        An index without passages finds row -1 with the score NaN. Raises ``RelationalError`` when there are fewer
        passages than ``k`` or the embedding model is another.
        """
        if not self.passages.texts:
            self.check_k(k)
            return RetrievedTexts(np.full((len(questions), k), -1), np.full((len(questions), k), np.nan, np.float32))
        found, scores = self.nearest(questions, k)
        return RetrievedTexts(self.passages.rows[found], scores)

    def nearest(self, questions: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``retrieve``, with numbers of passages: int64 ``[n, k]`` and float32 ``[n, k]``."""
        self.check_k(k)
        _check_list(questions)
        if not questions:
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        numbers = {text: number for number, text in enumerate(dict.fromkeys(questions))}
        scores, found = _ranked(*self._search(self._embed(list(numbers)), k))
        inverse = np.fromiter((numbers[text] for text in questions), np.int64, len(questions))
        return found[inverse].astype(np.int64, copy=False), scores[inverse]

    def _embed(self, questions: list[str]) -> np.ndarray:
        """Vectors of the questions; the first passage goes with them and must be where the index has it."""
        vectors = embed_texts(self.embedder, [*questions, self.passages.texts[0]])
        dimension, name = self.sidecar.dimension, name_of(self.embedder)
        if vectors.shape[1] != dimension:
            raise RelationalError(
                f"the index {self.path} is stale: it was made with {self.sidecar.embedder} of {dimension} dimensions, "
                f"and {name} has {vectors.shape[1]}: name that model, or {REBUILD}"
            )
        if np.linalg.norm(vectors[-1] - self._first_vector()) > SAME_VECTOR:
            raise RelationalError(
                f"the index {self.path} is stale: it was made with {self.sidecar.embedder}, and {name} embeds its "
                f"first passage otherwise: name that model, or {REBUILD}"
            )
        return vectors[:-1]

    def _search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self.sidecar.search == "exact":
            scores, found = self._index.search(vectors, k)
            return scores, found
        self._index.nprobe = max(MIN_PROBES, self._index.nlist // PROBED_SHARE)
        scores, found = self._index.search(vectors, k)
        few = (found < 0).any(axis=1)
        if few.any():  # the clusters looked into hold fewer than k
            self._index.nprobe = self._index.nlist
            scores[few], found[few] = self._index.search(vectors[few], k)
        return scores, found

    def _first_vector(self) -> np.ndarray:
        """As the index has it."""
        if self.sidecar.search == "approximate":
            self._index.make_direct_map()  # at once where it was made already
        vector: np.ndarray = self._index.reconstruct(0)
        return vector

    def check_k(self, k: Any) -> None:
        """Raise ``RelationalError`` unless so many passages can be found for a question."""
        if not isinstance(k, int | np.integer) or k < 1:
            raise RelationalError(f"k is {k!r}: retrieve 1 passage or more")
        if k > len(self.passages.texts) > 0:
            raise RelationalError(
                f"k is {k}, but the index {self.path} holds {len(self.passages.texts)} distinct passages: ask for at "
                "most so many"
            )


def _ranked(scores: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ``[n, k]``, best first and equals by number: passages that an embedder cuts to the same text are equals."""
    order = np.lexsort((found, -scores), axis=-1)
    return np.take_along_axis(scores, order, axis=-1), np.take_along_axis(found, order, axis=-1)


def name_of(embedder: Embedder) -> str:
    """What messages and the sidecar call an embedder: its ``name``, or that of the function."""
    name = getattr(embedder, "name", None) or getattr(embedder, "__qualname__", type(embedder).__qualname__)
    return str(name)


def _new_index(faiss: Any, vectors: np.ndarray, search: Search) -> Any:
    """An index that holds the vectors, float32 ``[num_passages, dimension]``, numbered as they stand."""
    count, dimension = vectors.shape
    index = faiss.IndexFlatIP(dimension)
    if search == "approximate" and count:
        clusters = max(1, min(int(4 * count**0.5), count // MIN_TRAINING))
        index = faiss.IndexIVFFlat(index, dimension, clusters, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.max_points_per_centroid = TRAINING_ROUNDS, MAX_TRAINING
        index.cp.spherical = True
        index.cp.min_points_per_centroid = 1  # no warning for a table that is too small to need clusters
        index.train(vectors)
    index.add(vectors)
    return index


def _check_list(questions: Any) -> None:
    if isinstance(questions, str):  # would be asked letter by letter
        raise RelationalError(f"questions is the text {questions[:40]!r}: give a list of questions")


def _check_search(search: str) -> None:
    if search not in get_args(Search):
        raise RelationalError(f"search is {search!r}: use one of {', '.join(get_args(Search))}")


def _check_place(path: Path, source: str | Path | None) -> None:
    """An index replaces an index only: no other file, and not the table."""
    if source is not None:
        tables = [NamedFile("the table", Path(source), False)]
        check_distinct([*tables, NamedFile("the index", path, True), NamedFile("the index", sidecar_path(path), True)])
    for file in (path, sidecar_path(path)):
        check_writable(file)
    if path.exists():
        with path.open("rb") as there:
            start = there.read(2)
        if start not in (b"", *FAISS_MAGIC):
            raise RelationalError(f"{path} is there already and is no index: name another file, or delete it")
